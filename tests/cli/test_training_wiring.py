"""What the commands give to the objects that a config names."""

from contextlib import nullcontext
from types import SimpleNamespace

import lightning as L
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from torch.nn import Conv2d

from helpers import PixelReader
from iclevr_diffusion.cli.callback_wiring import build_callbacks
from iclevr_diffusion.cli.command import CONF
from iclevr_diffusion.cli.cross_checks import check_can_be_loaded, check_forward, default_sampling
from iclevr_diffusion.cli.schema import Train
from iclevr_diffusion.cli.training_wiring import build_datamodule, build_net
from iclevr_diffusion.cli.validate import check_config
from iclevr_diffusion.data.labels import ICLEVR_LABELS, Vocabulary
from iclevr_diffusion.diffusion.composed_guidance import ComposedGuidance
from iclevr_diffusion.diffusion.guidance import Guidance
from iclevr_diffusion.diffusion.loss import Objective
from iclevr_diffusion.diffusion.samplers import Sampler
from iclevr_diffusion.diffusion.schedule import NoiseSchedule
from iclevr_diffusion.models.protocol import forward_flops
from iclevr_diffusion.models.uvit import UViT
from iclevr_diffusion.training.callbacks.scoring import Scoring
from iclevr_diffusion.training.diffusion import DiffusionModule
from iclevr_diffusion.training.optimizer import OptimizerSettings
from iclevr_diffusion.utils.errors import UserError

NET = {
    "_target_": "iclevr_diffusion.models.UViT",
    "channels": [8],
    "blocks": [1],
    "width": 32,
    "depth": 1,
}


@pytest.mark.parametrize(
    ("vocabulary", "settings", "colors"),
    [
        (ICLEVR_LABELS, {}, 8),
        (Vocabulary("abcdefghijklmnopqrstuvwx"), {}, 24),  # 24 labels that are not i-CLEVR's
        (Vocabulary("abcdef"), {}, 6),
        (Vocabulary("abcdef"), {"num_colors": 3}, 3),
    ],
)
def test_only_labels_of_iclevr_are_colors_and_shapes_unless_told(vocabulary, settings, colors):
    cfg = OmegaConf.create({"net": NET | settings})
    net = build_net(cfg, SimpleNamespace(image_size=16, vocabulary=vocabulary))
    assert (net.num_labels, net.num_colors) == (len(vocabulary), colors)


def test_a_data_module_without_an_image_size_is_refused():
    node = {"_target_": "types.SimpleNamespace"}
    cfg = OmegaConf.create({"data": node, "paths": {"cache": "cache"}, "seed": 0})
    with pytest.raises(UserError, match="the data module needs image_size"):
        build_datamodule(cfg)


TINY = (16, [8], [1], 32, 1, 16)


class Copied(UViT):
    """A network of a user's that is not registered."""


class CopiedSchedule(NoiseSchedule):
    """A noise schedule of a user's that is not registered."""


def without(member):
    net = UViT(*TINY, positions=True)
    delattr(net, member)
    return net


@pytest.mark.parametrize(
    ("net", "schedule", "line"),
    [
        (lambda: Copied(*TINY), NoiseSchedule, "Copied .* register_network"),
        (lambda: UViT(*TINY), CopiedSchedule, "CopiedSchedule .* register_schedule"),
        (lambda: without("layout"), NoiseSchedule, "UViT is not a DenoisingNetwork; .* layout"),
        (lambda: without("takes_positions"), NoiseSchedule, "it lacks takes_positions"),
        (lambda: Conv2d(3, 3, 1), NoiseSchedule, "it lacks config, num_labels, takes_positions"),
    ],
)
def test_a_network_that_could_not_be_loaded_is_refused_before_it_is_trained(net, schedule, line):
    with pytest.raises(UserError, match=line):
        check_can_be_loaded(net(), schedule(timesteps=20))


def forward_of(function):
    """A network of a user's with this ``forward``."""
    own = type("Own", (UViT,), {"__module__": __name__, "forward": function})
    return own(*TINY)


@pytest.mark.parametrize(
    ("forward", "line"),
    [
        (lambda self, x_t, timesteps, labels: x_t, "takes 4 positional arguments but 5"),
        (lambda self, x_t, timesteps, labels, positions=None: x_t[:, :1], r"\(1, 1, 16, 16\)"),
        (lambda self, x_t, timesteps, labels, positions=None: (x_t,), "got tuple"),
    ],
)
def test_a_network_whose_forward_does_not_fit_is_refused_before_it_is_trained(forward, line):
    with pytest.raises(UserError, match=f"^net: Own .*{line}"):
        check_forward(forward_of(forward))


def test_the_operations_of_a_network_that_needs_values_are_counted():
    def forward(self, x_t, timesteps, labels, positions=None):
        return UViT.forward(self, x_t * (1 + timesteps.max().item()), timesteps, labels)

    check_forward(forward_of(forward))
    assert forward_flops(forward_of(forward)) == forward_flops(UViT(*TINY)) > 0


class OwnSampler(Sampler):
    """A sampler of a user's."""


class OwnGuidance(Guidance):
    """Guidance of a user's."""


@pytest.mark.parametrize(
    ("sampler", "guidance", "line"),
    [
        (OwnSampler, Guidance, "sampler: OwnSampler cannot be stored"),
        (Sampler, OwnGuidance, "guidance: OwnGuidance cannot be stored"),
        (Sampler, ComposedGuidance, None),
    ],
)
def test_sampling_that_weights_could_not_store_is_refused(sampler, guidance, line):
    objective = Objective(NoiseSchedule(timesteps=20))
    module = DiffusionModule(UViT(*TINY), objective, OptimizerSettings())
    nodes = {"sampler": sampler, "guidance": guidance}
    names = {key: f"{kind.__module__}.{kind.__name__}" for key, kind in nodes.items()}
    cfg = OmegaConf.create({key: {"_target_": name} for key, name in names.items()})
    cfg.guidance.label_drop = 0.1
    with pytest.raises(UserError, match=line) if line else nullcontext():
        default_sampling(cfg, module)


class Watching(L.Callback):
    """A callback of a user's."""

    def __init__(self, folder, settings, conditions, evaluator):
        self.given = (folder, settings, conditions, evaluator)


def test_a_callback_of_the_users_gets_what_it_asks_for(tmp_path):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", [f"+callbacks.watching={{_target_: {__name__}.Watching}}"])
    check_config(cfg, Train)
    reader = PixelReader()
    scoring = Scoring({"validation": [("red cube",)]}, reader, None, None, 0, tmp_path)
    built = build_callbacks(cfg, tmp_path, {"seed": 0}, {}, scoring)
    (watching,) = (callback for callback in built if isinstance(callback, Watching))
    assert watching.given == (tmp_path, {"seed": 0}, scoring.conditions, reader)
