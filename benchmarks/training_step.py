"""The overhead of Lightning, callbacks and loader per training step, and the share of the peak.

    python benchmarks/training_step.py --experiment cosine_eps -- trainer=gpu compile=true
    python benchmarks/training_step.py --experiment quickstart --rounds 10

Two timings alternate in one run: ``--steps`` steps of the training as ``train`` runs it, and as
many of a bare PyTorch loop with the same network, batch size, precision, optimizer, clipping and
average, on frames that are already on the device. The overhead is the median over the rounds of
(ours / bare - 1). The share of the peak is the number of operations of matrix products and
convolutions, three forward passes per step, over that of a large matrix product of the same
precision in the same time on the same device.
"""

import copy
import statistics
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import lightning as L
import torch
from omegaconf import DictConfig
from torch import nn

from common import experiment_config, leave, machine, matmul_peak, parser, table, wait_for
from iclevr_diffusion.cli.callback_wiring import build_callbacks
from iclevr_diffusion.cli.trainer import make_trainer
from iclevr_diffusion.cli.training_wiring import build_datamodule, build_module
from iclevr_diffusion.data.adapters import ICLEVRDataModule
from iclevr_diffusion.data.types import Batch, to_unit_range
from iclevr_diffusion.models.protocol import forward_flops
from iclevr_diffusion.training.diffusion import DiffusionModule
from iclevr_diffusion.training.optimizer import OptimizerSettings

WARM_UP = 5


class BareLoop:
    """The same training without Lightning, callbacks or loader."""

    def __init__(
        self, module: DiffusionModule, data: ICLEVRDataModule, decay: float, bf16: bool
    ) -> None:
        self.net = copy.deepcopy(module.net)
        if module.net._compiled_call_impl is not None:
            self.net.compile()
        self.average = copy.deepcopy(module.net).requires_grad_(False)
        self.settings: OptimizerSettings = module.optimizer_settings
        self.optimizer = self.settings.build(self.net)
        self.schedule, self.objective = module.schedule, module.objective
        self.label_drop = module.label_drop
        self.images = data.frames.images
        everything = torch.arange(len(data.frames))
        self.labels, self.positions = module.condition(
            Batch(self.images, data.frames.labels, everything, data.positions)
        )
        self.batch_size, self.decay, self.bf16 = data.batch_size, decay, bf16

    def step(self) -> None:
        device = self.images.device
        picked = torch.randint(len(self.images), (self.batch_size,), device=device)
        x0 = to_unit_range(self.images[picked])
        keep = (torch.rand(self.batch_size, 1, device=device) >= self.label_drop).float()
        timesteps = self.objective.timesteps(self.batch_size, None, device)
        noise = torch.randn_like(x0)
        x_t = self.schedule.add_noise(x0, noise, timesteps)
        positions = None
        if self.positions is not None:
            positions = self.positions[picked] * keep[:, :, None]
        with torch.autocast(device.type, torch.bfloat16, enabled=self.bf16):
            output = self.net(x_t, timesteps, self.labels[picked] * keep, positions)
        self.objective.loss(output, x0, noise, timesteps).backward()
        bound = self.settings.clip_norm
        if bound is not None:
            nn.utils.clip_grad_norm_(self.net.parameters(), bound)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            torch._foreach_lerp_(
                list(self.average.parameters()), list(self.net.parameters()), 1 - self.decay
            )


class SideBySide(L.Callback):
    """Times as many steps of the bare loop after every ``steps`` steps of the training."""

    def __init__(self, cfg: DictConfig, steps: int, rounds: int) -> None:
        self.cfg, self.steps, self.rounds = cfg, steps, rounds
        self.ours: list[float] = []
        self.bare: list[float] = []
        self.loop: BareLoop | None = None
        self.memory: float | None = None
        self.since = 0.0

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if module.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, index: int
    ) -> None:
        done = trainer.global_step
        if self.loop is None:
            if done == WARM_UP:
                self._begin(trainer, module)
            return
        if (done - WARM_UP) % self.steps:
            return
        wait_for(module.device)
        self.ours.append(time.perf_counter() - self.since)
        start = time.perf_counter()
        for _ in range(self.steps):
            self.loop.step()
        wait_for(module.device)
        self.bare.append(time.perf_counter() - start)
        ours, bare = (1e3 * times[-1] / self.steps for times in (self.ours, self.bare))
        print(f"round {len(self.ours)}: {ours:.2f} ms per step, bare {bare:.2f} ms", flush=True)
        if len(self.ours) == self.rounds:
            trainer.should_stop = True
        self.since = time.perf_counter()

    def _begin(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        assert isinstance(module, DiffusionModule)
        if module.device.type == "cuda":
            self.memory = torch.cuda.max_memory_allocated() / 2**30
        data = trainer.datamodule  # type: ignore[attr-defined]
        self.loop = BareLoop(
            module, data, self.cfg.callbacks.ema.decay, trainer.precision == "bf16-mixed"
        )
        for _ in range(WARM_UP):
            self.loop.step()
        wait_for(module.device)
        self.since = time.perf_counter()


def main() -> int:
    arguments = parser(__doc__)
    arguments.add_argument("--experiment", default="best")
    arguments.add_argument("--steps", type=int, default=20, help="per timing (20)")
    arguments.add_argument("--rounds", type=int, default=6, help="of timings (6)")
    arguments.add_argument("--peak", type=float, help="operations per second, instead of measuring")
    arguments.add_argument("overrides", nargs="*", help="settings of the training, after --")
    options = arguments.parse_args()
    cfg = experiment_config(
        options.experiment,
        [
            "data.sequences=500",
            "trainer.max_epochs=-1",
            f"trainer.max_steps={2 * (WARM_UP + options.steps * options.rounds)}",
            "trainer.check_val_every_n_epoch=1000000",
            "trainer.enable_progress_bar=false",
            "callbacks.checkpoint.every_n_epochs=1000000",
            *options.overrides,
        ],
    )
    with TemporaryDirectory() as folder:
        side_by_side = SideBySide(cfg, options.steps, options.rounds)
        datamodule = build_datamodule(cfg)
        module = build_module(cfg, datamodule)
        assert isinstance(module, DiffusionModule)
        callbacks = build_callbacks(cfg, Path(folder), {}, {}, None, side_by_side)
        trainer = make_trainer(cfg, Path(folder), callbacks)
        device = trainer.strategy.root_device
        bf16 = trainer.precision == "bf16-mixed"
        here = machine(device)
        peak = options.peak or matmul_peak(device, torch.bfloat16 if bf16 else torch.float32)
        trainer.fit(module, datamodule)
    figures = summary(cfg, options, module, side_by_side, peak)
    print(table([{key: value for key, value in figures.items() if not isinstance(value, list)}]))
    leave(figures | {"precision": trainer.precision, "machine": here}, options.json)
    return 0


def summary(
    cfg: DictConfig, options: Any, module: DiffusionModule, timed: SideBySide, peak: float
) -> dict[str, Any]:
    forward = forward_flops(module.net)
    step_flops = cfg.data.batch_size * module.flops_per_training_image(forward)
    ours, bare = (statistics.median(times) / options.steps for times in (timed.ours, timed.bare))
    ratios = [mine / theirs - 1 for mine, theirs in zip(timed.ours, timed.bare, strict=True)]
    return {
        "experiment": options.experiment,
        "overrides": options.overrides,
        "batch_size": cfg.data.batch_size,
        "compile": cfg.compile,
        "ms_per_step": round(1e3 * ours, 3),
        "ms_per_bare_step": round(1e3 * bare, 3),
        "overhead": round(statistics.median(ratios), 4),
        "overheads": [round(ratio, 4) for ratio in ratios],
        "images_per_second": round(cfg.data.batch_size / ours, 1),
        "tflops": round(step_flops / ours / 1e12, 4),
        "peak_tflops": round(peak / 1e12, 4),
        "share_of_peak": round(step_flops / ours / peak, 4),
        "peak_memory_gib": timed.memory if timed.memory is None else round(timed.memory, 2),
    }


if __name__ == "__main__":
    sys.exit(main())
