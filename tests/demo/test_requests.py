"""What a visitor of the app sends is checked, and never repeated."""

import math

import pytest

from iclevr_diffusion.data.labels import ICLEVR_LABELS
from iclevr_diffusion.demo.requests import Settings, read_scene
from iclevr_diffusion.demo.visitor_limits import Limits
from iclevr_diffusion.utils.errors import UserError

LIMITS = Limits(objects=3, steps=50)
HTML = "<img src=x onerror=alert(1)>"
CUBE = {"label": "red cube", "x": 0.5, "y": -0.25}
SPHERE = {"label": "blue sphere", "x": 0, "y": 0}


def read(value, takes_positions=True):
    return read_scene(value, ICLEVR_LABELS, LIMITS, takes_positions)


def test_a_scene_is_read_and_written():
    scene = read({"objects": [CUBE, SPHERE]})
    assert scene.label_set == ("red cube", "blue sphere")
    assert scene.positions == ((0.5, -0.25), (0, 0))
    assert read(scene.to_value()) == scene
    positions = scene.tensor(ICLEVR_LABELS)
    assert positions[ICLEVR_LABELS.index["red cube"]].tolist() == [0.5, -0.25]
    assert positions.abs().sum() == 0.75


def test_objects_without_a_position_have_sampled_ones():
    scene = read({"objects": [CUBE, SPHERE | {"x": None}]})
    assert scene.positions is None
    assert read(scene.to_value()) == scene
    assert read({"objects": [CUBE]}, takes_positions=False).positions is None


@pytest.mark.parametrize(
    "value",
    [
        None,
        HTML,
        [],
        {},
        {"objects": HTML},
        {"objects": []},
        {"objects": [HTML]},
        {"objects": [CUBE] * 2},
        {"objects": [SPHERE, CUBE, {"label": "cyan cube"}, {"label": "gray cube"}]},
        {"objects": [CUBE | {"label": HTML}]},
        {"objects": [CUBE | {"label": "../../etc/passwd"}]},
        {"objects": [CUBE | {"label": ["red cube"]}]},
        {"objects": [CUBE | {"label": 7}]},
        *(
            {"objects": [CUBE | {"x": x}]}
            for x in ("0", HTML, True, 1.01, -7, math.nan, math.inf, 10**400, [], {})
        ),
        {"objects": [{"label": "red cube", "x": 0.5}]},
    ],
    ids=str,
)
def test_other_scenes_are_refused_without_repeating_them(value):
    with pytest.raises(UserError) as refused:
        read(value)
    assert "<" not in str(refused.value)
    assert "passwd" not in str(refused.value)


def test_settings_are_returned_as_numbers():
    settings = Settings("ddim", 8.0, 2, 7).check(LIMITS)
    assert settings == Settings("ddim", 8, 2.0, 7)
    assert type(settings.steps) is int
    assert type(settings.guidance_scale) is float


@pytest.mark.parametrize(
    "wrong",
    [
        {"sampler": HTML},
        {"sampler": None},
        {"sampler": ["ddim"]},
        *({"steps": steps} for steps in ("8", 0, 51, 10**9, 1.5, None, True, math.nan)),
        *({"guidance_scale": scale} for scale in ("1", -1, 10.5, 1e308, None, math.inf)),
        *({"seed": seed} for seed in ("0", -1, 2**31, 10**400, 0.5, None, HTML)),
    ],
    ids=str,
)
def test_settings_out_of_range_are_refused(wrong):
    right = {"sampler": "ddim", "steps": 8, "guidance_scale": 1.0, "seed": 0}
    with pytest.raises(UserError) as refused:
        Settings(**right | wrong).check(LIMITS)
    assert "<" not in str(refused.value)
    assert "e+" not in str(refused.value)  # as in "from 0 to 2.14748e+09"


@pytest.mark.parametrize("name", ["objects", "steps", "seconds", "kept", "queue", "sessions"])
@pytest.mark.parametrize("value", [0, 10_001, math.nan])
def test_limits_have_limits(name, value):
    with pytest.raises(ValueError, match=f"{name} must be in 1..10000"):
        Limits(**{name: value})
