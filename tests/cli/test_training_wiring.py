"""What the commands give to the objects that a config names."""

from types import SimpleNamespace

import pytest
from omegaconf import OmegaConf

from iclevr_diffusion.cli.training_wiring import build_net
from iclevr_diffusion.data.labels import ICLEVR_LABELS, Vocabulary

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
