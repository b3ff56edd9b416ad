"""The forward process: the amount of signal and noise at each timestep.

A schedule defines x_t = α_t x_0 + σ_t ε for t = 0 … T-1, from almost no noise to almost no signal.

===================  =================  =================  =========================
schedule             α_t                σ_t                reference
===================  =================  =================  =========================
``NoiseSchedule``    √ᾱ_t               √(1 - ᾱ_t)         Ho et al. 2020, eq. 4
``FlowSchedule``     1 - s_t            s_t                Liu et al. 2023, eq. 1
===================  =================  =================  =========================
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from diffusers import DDPMScheduler
from torch import Tensor, nn

from iclevr_diffusion.utils.checks import MAX_TIMESTEPS, check_int
from iclevr_diffusion.utils.registry import CLASS_NAME, Registry

DIFFUSERS_CLASS = "DDPMScheduler"  # in the configs of weights that are trained with its betas


class Schedule(nn.Module, ABC):
    """A noise schedule. It has no parameters; ``to(device)`` moves its tables.

    A schedule of your own gives α and σ, and registers itself for its weights to be loaded::

        @register_schedule
        class MySchedule(Schedule): ...

    Args:
        timesteps: T, in 1..100,000.
        config: The constructor's arguments as plain values, which are saved with the weights.

    Attributes:
        variance_preserving: Whether α² + σ² = 1.

    Raises:
        ValueError: ``timesteps`` is out of range.
    """

    variance_preserving: bool = False

    def __init__(self, timesteps: int, config: Mapping[str, Any]) -> None:
        super().__init__()
        check_int("timesteps", timesteps, MAX_TIMESTEPS)
        self.timesteps = timesteps
        self.config = dict(config)

    @abstractmethod
    def alpha(self, timesteps: Tensor, like: Tensor) -> Tensor:
        """Return α_t for int64 timesteps (B,), in the dtype of ``like`` and shaped to multiply it.

        Args:
            timesteps: int64, (B,).
            like: (B, …).

        Returns:
            (B, 1, …), with as many dimensions as ``like``.
        """

    @abstractmethod
    def sigma(self, timesteps: Tensor, like: Tensor) -> Tensor:
        """Return σ_t; as :meth:`alpha`."""

    @property
    def device(self) -> torch.device:
        """The device of the tables, which are buffers."""
        return next(self.buffers(), torch.empty(0)).device

    def snr(self, timesteps: Tensor) -> Tensor:
        """Return the signal-to-noise ratio α² / σ², float32, (B,), for int64 timesteps (B,)."""
        like = torch.empty(len(timesteps), device=timesteps.device)
        return (self.alpha(timesteps, like) / self.sigma(timesteps, like)).square()

    def noise_to_signal(self) -> Tensor:
        """Return the noise-to-signal ratio σ / α of every timestep, float32, (T,); it rises."""
        return self.sigmas / self.alphas

    @property
    def alphas(self) -> Tensor:
        """α of every timestep, float32, (T,)."""
        return self.alpha(*self._all_timesteps())

    @property
    def sigmas(self) -> Tensor:
        """σ of every timestep, float32, (T,)."""
        return self.sigma(*self._all_timesteps())

    @property
    def alphas_cumprod(self) -> Tensor:
        """ᾱ = α² / (α² + σ²) of every timestep, float32, (T,).

        That is the ᾱ of x_t / √(α² + σ²), whose variance is preserved. diffusers' schedulers see
        every schedule this way.
        """
        return 1 / (1 + self.noise_to_signal().square())

    def scale(self, timestep: int) -> float:
        """Return √(α² + σ²) at a timestep: x_t is this times the variance-preserving x_t."""
        if self.variance_preserving:
            return 1.0
        return float(torch.hypot(self.alphas[timestep], self.sigmas[timestep]))

    def add_noise(self, x0: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Return x_t = α_t x_0 + σ_t ε.

        Args:
            x0: Images, (B, C, H, W), in float32 or better: bfloat16 would round α at low noise
                (0.9989 → 0.9961).
            noise: ε, of the same shape.
            timesteps: int64, (B,).
        """
        return self.alpha(timesteps, x0) * x0 + self.sigma(timesteps, x0) * noise

    def diffusers_config(self) -> dict[str, Any] | None:
        """Return the schedule as arguments of diffusers' schedulers; None if it is not theirs."""
        return None

    @staticmethod
    def look_up(table: Tensor, timesteps: Tensor, like: Tensor) -> Tensor:
        """Return ``table[timesteps]``, of a table (T,), as :meth:`alpha` returns it."""
        return table.to(like.dtype)[timesteps].view(-1, *[1] * (like.ndim - 1))

    def _all_timesteps(self) -> tuple[Tensor, Tensor]:
        timesteps = torch.arange(self.timesteps, device=self.device)
        return timesteps, torch.empty(self.timesteps, device=self.device)

    def __str__(self) -> str:
        return f"{type(self).__name__}, T={self.timesteps}"


class NoiseSchedule(Schedule):
    """A beta schedule of diffusers: α_t = √ᾱ_t and σ_t = √(1 - ᾱ_t).

    q(x_t | x_0) = N(√ᾱ_t x_0, (1 - ᾱ_t) I) (Ho et al. 2020, arXiv 2006.11239, eq. 4). The betas are
    those of diffusers' schedulers, so training and sampling share one table.

    Args:
        name: A ``beta_schedule`` of diffusers: ``linear``, ``scaled_linear``,
            ``squaredcos_cap_v2`` (Nichol & Dhariwal 2021, eq. 17), ``sigmoid``, …
        timesteps: T, in 1..100,000.
        beta_start: The first beta, in (0, 1); not used by ``squaredcos_cap_v2``.
        beta_end: The last beta, likewise.

    Raises:
        ValueError: The schedule is unknown, a number is out of range, or the last ᾱ is too small
            for float32.
    """

    variance_preserving = True
    alpha_bars: Tensor

    def __init__(
        self,
        name: str = "squaredcos_cap_v2",
        timesteps: int = 1000,
        beta_start: float = 1e-4,
        beta_end: float = 0.02,
    ) -> None:
        config = {"name": name, "timesteps": timesteps}
        super().__init__(timesteps, config | {"beta_start": beta_start, "beta_end": beta_end})
        for end, beta in (("beta_start", beta_start), ("beta_end", beta_end)):
            if not isinstance(beta, int | float) or not 0 < beta < 1:
                raise ValueError(f"{end} must be above 0 and below 1, got {beta!r:.60}")
        try:
            table = DDPMScheduler(**self.diffusers_config()).alphas_cumprod
        except NotImplementedError:
            raise ValueError(f"diffusers has no beta schedule named {name!r:.60}") from None
        if table.min() < torch.finfo(torch.float32).tiny:
            raise ValueError(
                f"{name} leaves nothing of the image before the last of {timesteps} timesteps;"
                " use fewer, or a smaller beta_end"
            )
        self.register_buffer("alpha_bars", table, persistent=False)

    def diffusers_config(self) -> dict[str, Any]:
        """Return the schedule as arguments of diffusers' schedulers."""
        return {
            "beta_schedule": self.config["name"],
            "num_train_timesteps": self.timesteps,
            "beta_start": self.config["beta_start"],
            "beta_end": self.config["beta_end"],
        }

    @property
    def alphas_cumprod(self) -> Tensor:
        """ᾱ of every timestep, float32, (T,)."""
        return self.alpha_bars

    def alpha(self, timesteps: Tensor, like: Tensor) -> Tensor:
        """Return √ᾱ_t; as :meth:`Schedule.alpha`."""
        return self.look_up(self.alpha_bars, timesteps, like).sqrt()

    def sigma(self, timesteps: Tensor, like: Tensor) -> Tensor:
        """Return √(1 - ᾱ_t); as :meth:`Schedule.alpha`."""
        return (1 - self.look_up(self.alpha_bars, timesteps, like)).sqrt()

    def snr(self, timesteps: Tensor) -> Tensor:
        """Return ᾱ_t / (1 - ᾱ_t), float32, (B,), for int64 timesteps (B,)."""
        alpha_bar = self.alpha_bars[timesteps]
        return alpha_bar / (1 - alpha_bar)

    def noise_to_signal(self) -> Tensor:
        """Return √((1 - ᾱ_t) / ᾱ_t) of every timestep, float32, (T,); it rises."""
        return ((1 - self.alpha_bars) / self.alpha_bars).sqrt()

    def __str__(self) -> str:
        text = f"{self.config['name']}, T={self.timesteps}"
        if self.config["name"] == "squaredcos_cap_v2":
            return text
        return text + ", β {beta_start:g}…{beta_end:g}".format(**self.config)


class FlowSchedule(Schedule):
    """The straight paths of rectified flow: α_t = 1 - s_t and σ_t = s_t.

    (Liu et al. 2023, arXiv 2209.03003, eq. 1; Lipman et al. 2023, arXiv 2210.02747, eq. 22.) s_t
    = (t + ½) / T are the centers of T equal parts of [0, 1], so that neither α nor σ is ever zero.

    Args:
        timesteps: T, in 1..100,000.

    Raises:
        ValueError: ``timesteps`` is out of range.
    """

    signal: Tensor
    noise: Tensor

    def __init__(self, timesteps: int = 1000) -> None:
        super().__init__(timesteps, {"timesteps": timesteps})
        noise = (torch.arange(timesteps, dtype=torch.float64) + 0.5) / timesteps
        self.register_buffer("signal", (1 - noise).float(), persistent=False)
        self.register_buffer("noise", noise.float(), persistent=False)

    def alpha(self, timesteps: Tensor, like: Tensor) -> Tensor:
        """Return 1 - s_t; as :meth:`Schedule.alpha`."""
        return self.look_up(self.signal, timesteps, like)

    def sigma(self, timesteps: Tensor, like: Tensor) -> Tensor:
        """Return s_t; as :meth:`Schedule.alpha`."""
        return self.look_up(self.noise, timesteps, like)

    def __str__(self) -> str:
        return f"flow, T={self.timesteps}"


ScheduleClass = TypeVar("ScheduleClass", bound=type[Schedule])

SCHEDULES: Registry[type[Schedule]] = Registry("schedule")


def register_schedule(schedule: ScheduleClass) -> ScheduleClass:
    """Register a schedule's class under its name, so that weights trained with it can be loaded.

    Raises:
        ValueError: Another class of that name is registered.
    """
    SCHEDULES.add(schedule.__name__, schedule)
    return schedule


register_schedule(NoiseSchedule)
register_schedule(FlowSchedule)


def schedule_config(schedule: Schedule) -> dict[str, Any]:
    """Return a schedule's class name and arguments, as plain values."""
    return {CLASS_NAME: type(schedule).__name__, **schedule.config}


def schedule_from_config(config: Mapping[str, Any]) -> Schedule:
    """Create the schedule of :func:`schedule_config`, or of a scheduler config of diffusers.

    Raises:
        ValueError: The class is unknown, or an argument is out of range.
        KeyError, TypeError: An argument is missing or unknown.
    """
    name = config.get(CLASS_NAME)
    if name == DIFFUSERS_CLASS:
        for setting in ("trained_betas", "rescale_betas_zero_snr"):
            if config.get(setting):
                raise ValueError(f"a {DIFFUSERS_CLASS} with {setting} is not supported")
        return NoiseSchedule(
            name=config["beta_schedule"],
            timesteps=config["num_train_timesteps"],
            beta_start=config["beta_start"],
            beta_end=config["beta_end"],
        )
    arguments = {key: value for key, value in config.items() if not key.startswith("_")}
    return SCHEDULES.find(name)(**arguments)
