"""Networks that start from trained ones: experts by noise level, and a single one of them."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

from iclevr_diffusion.data.labels import NUM_LABELS
from iclevr_diffusion.diffusion.io import load_model
from iclevr_diffusion.diffusion.schedule import Schedule, schedule_config
from iclevr_diffusion.diffusion.trained import Model
from iclevr_diffusion.models.detail import DetailNet
from iclevr_diffusion.models.experts import NETWORK, NoiseExperts
from iclevr_diffusion.models.known_networks import network_config, network_from_config
from iclevr_diffusion.models.uvit import UViT
from iclevr_diffusion.utils.registry import CLASS_NAME


@dataclass(frozen=True)
class DetailSettings:
    """Arguments of the :class:`~iclevr_diffusion.models.detail.DetailNet` for low noise."""

    channels: Sequence[int] = (32, 64, 96)
    blocks: Sequence[int] = (2, 2, 1)
    data_std: float = 0.12


def load_experts(
    schedule: Schedule,
    coarse_weights: Path | str = "pretrained",
    detail_weights: Path | str | None = None,
    switch: float = 0.35,
    detail: DetailSettings | None = None,
    image_size: int = 64,
    num_labels: int = NUM_LABELS,
) -> NoiseExperts:
    """Combine a trained network and one for low noise, which is to be trained, into experts.

    Args:
        schedule: The noise schedule of the training; the trained network must have the same.
        coarse_weights: Weights of a U-ViT or ``DetailNet`` with positions, or of experts with one;
            see :func:`~iclevr_diffusion.diffusion.io.load_model`.
        detail_weights: Weights of experts, whose network for low noise the training starts from;
            None: random weights.
        switch: Noise-to-signal ratio below which the network for low noise is used.
        detail: Its settings.
        image_size: H = W in pixels.
        num_labels: L, the size of the vocabulary; its number of colors is the trained network's.

    Raises:
        UserError: There are no such weights.
        ValueError: They are of another network, prediction, schedule, image size or number of
            labels, or the network for low noise has other settings.
    """
    coarse = _load_coarse(schedule, coarse_weights, image_size, num_labels)
    settings = network_config(coarse)
    settings.pop("image_size")
    settings[NETWORK] = settings.pop(CLASS_NAME)
    of_detail = asdict(detail or DetailSettings()) | {"timesteps": schedule.timesteps}
    experts: NoiseExperts = NoiseExperts(
        settings, of_detail, image_size, switch, num_labels, settings.get("num_colors")
    )
    experts.coarse.load_state_dict(coarse.state_dict())
    if detail_weights is not None:
        experts.detail.load_state_dict(_load_detail(schedule, detail_weights, experts).state_dict())
    return experts


def load_detail(
    timesteps: int,
    weights: Path | str = "pretrained",
    headings: bool = False,
    data_std: float | None = None,
    image_size: int = 64,
    num_labels: int = NUM_LABELS,
) -> DetailNet:
    """Build a network for all noise levels from a trained one, to continue its training.

    Args:
        timesteps: T of the noise schedule.
        weights: Weights of a :class:`~iclevr_diffusion.models.detail.DetailNet`, or of experts with
            one; see :func:`~iclevr_diffusion.diffusion.io.load_model`.
        headings: As the network's argument. If it is new, its inputs have no effect at first.
        data_std: As the network's argument; None for that of the weights.
        image_size: H = W in pixels.
        num_labels: L, the size of the vocabulary.

    Raises:
        UserError: There are no such weights.
        ValueError: They are of another network, image size, or number of labels or timesteps.
    """
    net: Any = load_model(weights).net
    trained = net.detail if isinstance(net, NoiseExperts) else net
    if not isinstance(trained, DetailNet):
        raise ValueError(f"weights={weights} have no DetailNet")
    settings = network_config(trained)
    needed = {"timesteps": timesteps, "image_size": image_size, "num_labels": num_labels}
    _check_settings(f"weights={weights}", settings, needed)
    settings |= {"positions": True, "headings": headings or settings["headings"]}
    settings |= {} if data_std is None else {"data_std": data_std}
    result = cast(DetailNet, network_from_config(settings))
    state = trained.state_dict()
    if result.config["headings"] and not trained.config["headings"]:
        state["conv_in.weight"] = trained.with_heading_inputs(state["conv_in.weight"])
    # The prior over positions, which low-noise experts lack, is fitted to the data.
    result.load_state_dict(result.state_dict() | state)
    return result


def _load_detail(schedule: Schedule, weights: Path | str, experts: NoiseExperts) -> DetailNet:
    model = load_model(weights)
    where = f"detail_weights={weights}"
    if not isinstance(model, Model) or not isinstance(model.net, NoiseExperts):
        raise ValueError(f"{where}: these weights are not of experts")
    _check_schedule(where, model.schedule, schedule)
    detail: DetailNet = model.net.detail
    _check_settings(where, network_config(detail), network_config(experts.detail))
    return detail


def _load_coarse(
    schedule: Schedule, weights: Path | str, image_size: int, num_labels: int
) -> UViT | DetailNet:
    model = load_model(weights)
    where = f"coarse_weights={weights}"
    net: Any = model.net.coarse if isinstance(model.net, NoiseExperts) else model.net
    if not isinstance(model, Model) or not isinstance(net, UViT | DetailNet) or net.layout is None:
        raise ValueError(f"{where}: these weights are not of a U-ViT or DetailNet with positions")
    if model.prediction.name != "sample":
        raise ValueError(f"{where} predict {model.prediction.name}, not sample")
    _check_schedule(where, model.schedule, schedule)
    if net.config["image_size"] != image_size:
        raise ValueError(f"{where} are of data.image_size={net.config['image_size']}")
    if net.num_labels != num_labels:
        raise ValueError(f"{where} know {net.num_labels} labels, but the data has {num_labels}")
    coarse: UViT | DetailNet = net
    return coarse


def _check_settings(where: str, given: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    for name, value in wanted.items():
        if given[name] != value:
            raise ValueError(f"{where} have {name}={given[name]}, not {value}")


def _check_schedule(where: str, trained: Schedule, schedule: Schedule) -> None:
    if schedule_config(trained) != schedule_config(schedule):
        raise ValueError(f"{where} were trained with another schedule: {schedule_config(trained)}")
