import io

import numpy as np
import pytest
import torch
from PIL import Image

from iclevr_diffusion.diffusion.samplers import Step
from iclevr_diffusion.diffusion.schedule import NoiseSchedule
from iclevr_diffusion.evaluation.image_grid import (
    BAD,
    GAP,
    Strip,
    caption,
    grid,
    save_animation,
    save_image,
    write_animation,
)
from iclevr_diffusion.evaluation.plots import (
    accuracy_by_step_plot,
    accuracy_plot,
    confusion_plot,
    curves_plot,
    schedule_plot,
)
from iclevr_diffusion.utils.pixels import to_uint8


def test_range_maps_to_bytes_and_what_lies_outside_is_cut_off():
    values = torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0])
    assert to_uint8(values).tolist() == [0, 0, 128, 255, 255]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_images_that_are_no_numbers_are_refused(bad):
    with pytest.raises(ValueError, match="NaN or infinite"):
        to_uint8(torch.tensor([0.0, bad]))


def test_grid_shows_each_image_at_its_place():
    levels = torch.tensor([0, 50, 100, 150, 200], dtype=torch.uint8)
    images = levels.view(5, 1, 1, 1).expand(5, 3, 4, 4)
    pixels = np.asarray(grid(images, columns=3, zoom=2))
    assert pixels.shape == (2 * 10 + 2, 3 * 10 + 2, 3)
    assert [pixels[6, 6 + 10 * k, 0] for k in range(3)] == [0, 50, 100]
    assert [pixels[16, 6 + 10 * k, 0] for k in range(2)] == [150, 200]


def test_captions_make_room_for_themselves():
    images = torch.zeros(2, 3, 32, 32)
    plain, captioned = (
        grid(images),
        grid(images, captions=[caption(["red cube", "blue sphere"]), []]),
    )
    assert captioned.height > plain.height
    assert (np.asarray(captioned)[-20:] < 100).any()


def test_small_images_are_enlarged_until_their_captions_fit():
    lines = caption(["purple cylinder"], [])
    small, usual = (grid(torch.zeros(1, 3, n, n), captions=[lines]) for n in (32, 64))
    assert (small.width, usual.width) == (3 * 32 + 2 * GAP, 2 * 64 + 2 * GAP)


def test_wrong_images_are_framed_and_the_title_is_above_all():
    images = torch.zeros(2, 3, 32, 32)
    pixels = np.asarray(grid(images, title=["read by nobody"], framed=[False, True]))
    top = pixels.shape[0] - 2 * 32 - 4
    assert (pixels[:top] < 100).any()
    frames = (pixels == BAD).all(2)
    assert frames[top + 2, 2 + 66 : 66 + 66].all()
    assert not frames[:, :66].any()


def test_caption_says_what_is_missing_and_what_is_too_much():
    lines = caption(["red cube", "blue sphere"], ["red cube", "cyan cube"])
    assert [text for text, _ in lines] == ["red cube", "- blue sphere", "+ cyan cube"]
    assert [color == BAD for _, color in lines] == [False, True, True]
    assert len(caption(["red cube"], [f"cube {n}" for n in range(20)])) == 9


def test_strip_keeps_images_of_the_first_batch_only():
    strip = Strip(1)
    for start in (0, 2):
        value = torch.full((2, 3, 2, 2), float(start) / 2)
        strip(Step(slice(start, start + 2), 0, 0, value, value))
    pixels = np.asarray(strip.image(zoom=1))
    assert pixels.shape[:2] == (4 * 4 + 2, 4 + 2)
    assert pixels[3, 3, 0] == 128


@pytest.mark.parametrize(("steps", "kept"), [(1000, 10), (20, 10), (4, 4)])
def test_strip_keeps_evenly_spaced_steps_and_the_last(steps, kept):
    strip = Strip(steps, frames=10)
    for number in range(steps):
        value = torch.full((1, 3, 2, 2), number / steps)
        strip(Step(slice(0, 1), number, steps - number, value, value))
    pixels = np.asarray(strip.image(zoom=1))
    assert pixels.shape[:2] == (2 * 4 + 2, kept * 4 + 2)  # x_t above x_0
    assert pixels[3, -3, 0] == round(((steps - 1) / steps + 1) * 127.5)


def test_an_animation_shows_each_step_and_repeats(tmp_path):
    strip = Strip(3, frames=3)
    for number, level in enumerate((-1.0, 0.0, 1.0)):
        value = torch.full((2, 3, 4, 4), level)
        strip(Step(slice(0, 2), number, 0, -value, value))
    frames = strip.animation(zoom=1)
    path = save_animation(frames, tmp_path / "film.png")
    with Image.open(path) as film:
        assert (film.format, film.n_frames, film.info["loop"]) == ("PNG", 3, 0)
        assert film.size == (2 * 4 + 3 * GAP, 2 * 4 + 3 * GAP)
        for number, (noisy, clean) in enumerate(((255, 0), (128, 128), (0, 255))):
            film.seek(number)
            pixels = np.asarray(film.convert("L"))
            assert (pixels[GAP, GAP], pixels[-GAP - 1, GAP]) == (noisy, clean)
    write_animation(frames, file := io.BytesIO(), "gif")
    assert Image.open(file).n_frames == 3


@pytest.mark.slow
def test_plots_are_atomic_path_or_not_at_all(tmp_path):
    rows = [{"step": 1.0, "train/loss": 0.5, "val/x0_error": 0.2}, {"step": 2.0, "train/loss": 0.4}]
    figures = (
        curves_plot(rows),
        curves_plot([]),
        schedule_plot({"linear": NoiseSchedule()}),
        confusion_plot(torch.zeros(24, 25), torch.zeros(24, 25), "nothing asked for"),
        accuracy_by_step_plot({"test": ([0.1, 0.9], [0.1, 0.4])}, "two steps"),
        accuracy_plot(
            {"test": [(5, 0.8, 0.7, 0.9), (10, 0.9, torch.nan, torch.nan)]}, "", "calls", "log"
        ),
    )
    for index, figure in enumerate(figures):
        with Image.open(save_image(figure, tmp_path / f"{index}.png")) as image:
            assert image.width > 500
    with pytest.raises(AttributeError):
        save_image(None, tmp_path / "none.png")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"{n}.png" for n in range(len(figures))
    ]
