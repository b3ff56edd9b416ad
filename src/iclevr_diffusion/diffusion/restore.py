"""From the contents of a weights folder or a checkpoint to a checked model."""

import math
from pathlib import Path
from types import NoneType
from typing import Any

from torch import Tensor, nn

from iclevr_diffusion.data.labels import ICLEVR_LABELS, Vocabulary
from iclevr_diffusion.diffusion.prediction import check_compatible, find_prediction
from iclevr_diffusion.diffusion.schedule import schedule_from_config
from iclevr_diffusion.diffusion.trained import Model
from iclevr_diffusion.models.dcgan import Generator
from iclevr_diffusion.models.known_networks import network_from_config
from iclevr_diffusion.models.protocol import CheckedNetwork
from iclevr_diffusion.utils.errors import UserError
from iclevr_diffusion.utils.weights import fill, nothing_allocated

PLAIN = (str, int, float, bool, NoneType)


def build_model(
    network: dict[str, Any],
    state: dict[str, Tensor],
    schedule_settings: dict[str, Any],
    prediction_name: str,
    vocabulary: Vocabulary,
) -> Model:
    """Build a diffusion model.

    Args:
        network: Config, as :func:`~iclevr_diffusion.models.known_networks.network_config` gives it.
        state: Its weights.
        schedule_settings: Config, as :func:`~.schedule.schedule_config` gives it.
        prediction_name: The prediction.
        vocabulary: The labels.

    Returns:
        The model, without sampling settings and without a description of its training data.

    Raises:
        ValueError: A class is unknown, a setting is out of range, or the weights do not fit.
        KeyError, TypeError: A setting is missing or unknown.
    """
    schedule = schedule_from_config(schedule_settings)
    prediction = find_prediction(prediction_name)
    check_compatible(prediction, schedule)
    net = _filled(network, state, vocabulary)
    if isinstance(net, CheckedNetwork):
        net.check_weights(schedule.timesteps)
    return Model(net, schedule, prediction, {}, vocabulary=vocabulary)


def build_generator(
    settings: dict[str, Any], state: dict[str, Tensor], vocabulary: Vocabulary
) -> Generator:
    """Build a GAN's generator; as :func:`build_model`."""
    net = _filled(settings, state, vocabulary)
    if not isinstance(net, Generator):
        raise TypeError("the network is not a generator")
    generator: Generator = net
    return generator


def _filled(
    settings: dict[str, Any], state: dict[str, Tensor], vocabulary: Vocabulary
) -> nn.Module:
    with nothing_allocated():
        net = network_from_config(settings)
    if net.num_labels != len(vocabulary):
        raise ValueError(
            f"the network has {net.num_labels} labels, but {len(vocabulary)} are named"
        )
    fill(net, state)
    return net.eval()


def read_vocabulary(names: Any) -> Vocabulary:
    """Return the vocabulary of a list of names.

    Raises:
        ValueError: It is not a list of names.
    """
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"labels must be a list of names, got {names!r:.60}")
    return ICLEVR_LABELS if tuple(names) == ICLEVR_LABELS.names else Vocabulary(names)


def plain_values(path: Path, content: dict[str, Any]) -> dict[str, Any]:
    """Return the description of the training data in a file, which may have any names.

    Raises:
        UserError: A value is not text, a finite number, true, false or null.
    """
    for key, value in content.items():
        finite = type(value) is not float or math.isfinite(value)
        if type(value) not in PLAIN or not finite:
            raise UserError(f"{path}: invalid {key}: {value!r:.60}")
    if type(content.get("source", "")) is not str:
        raise UserError(f"{path}: invalid source: {content['source']!r:.60}")
    return content


def known_settings(path: Path, content: dict[str, Any], types: dict[str, type]) -> dict[str, Any]:
    """Return the settings of a file that have one of ``types``; unknown ones are left out.

    Raises:
        UserError: A setting has another type, or is NaN or infinite.
    """
    known = {key: content[key] for key in types if key in content}
    for key, value in known.items():
        is_number = type(value) in (int, float) and math.isfinite(value)
        if not (type(value) is types[key] or (types[key] is float and is_number)):
            raise UserError(f"{path}: invalid {key}: {value!r:.60}")
    return known
