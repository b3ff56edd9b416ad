"""Lines of progress where no terminal shows a bar."""

import io
import re

import pytest

from helpers import datamodule, tiny_module, trainer
from iclevr_diffusion.training.callbacks.progress import ProgressInLines, Throughput
from iclevr_diffusion.utils.progress_bar import LINES, ProgressLines, progress


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def lines_of(total, count, seconds):
    """What is written of ``count`` updates, ``seconds`` apart."""
    clock, stream = Clock(), io.StringIO()
    lines = ProgressLines("step", total, stream, clock)
    for _ in range(count):
        clock.now += seconds
        lines.update()
    return stream.getvalue().splitlines()


@pytest.mark.parametrize("count", [300, 30_000, 1_000_000])
@pytest.mark.parametrize("seconds", [0.01, 1.0, 60.0])
def test_a_log_gets_some_twenty_lines_whatever_the_length(count, seconds):
    assert len(lines_of(count, count, seconds)) <= LINES
    if count * seconds > 1000:
        assert len(lines_of(count, count, seconds)) > 10


def test_an_unknown_length_gets_few_lines_too():
    assert 5 < len(lines_of(None, 100_000, 1.0)) < 30


def test_what_takes_seconds_gets_no_line():
    assert lines_of(100, 100, 0.05) == []


def test_a_line_says_how_far_it_is_and_when_it_ends():
    first, *_, last = lines_of(1000, 1000, 4.0)
    assert first == "50/1000 steps (5 %), 03:20 so far, 1:03:20 to go"
    assert last == "1000/1000 steps (100 %), 1:06:40 so far"


def test_a_file_gets_lines_and_no_bar(capsys, monkeypatch):
    clock = Clock()
    monkeypatch.setattr("iclevr_diffusion.utils.progress_bar.time.monotonic", clock)
    with progress(4, "image") as bar:
        bar.set_description("ddim")
        bar.update(2)
    assert isinstance(bar, ProgressLines)
    assert "\r" not in capsys.readouterr().err


def test_a_training_writes_its_last_line_with_the_steps(tmp_path):
    stream = io.StringIO()
    lines = ProgressLines("step", stream=stream)
    callback = ProgressInLines(Throughput(), max_steps=-1, lines=lines)
    fitted = trainer(tmp_path, [callback], max_epochs=1, enable_progress_bar=True)
    fitted.fit(tiny_module(), datamodule())
    text = stream.getvalue()
    assert re.fullmatch(r"(\d+)/\1 steps \(100 %\), 00:\d\d so far, epoch \d\n", text), text


def test_validation_does_not_count_as_training_time(tmp_path, monkeypatch):
    seconds = [0.0]
    clock = "iclevr_diffusion.training.callbacks.progress.time.perf_counter"
    monkeypatch.setattr(clock, lambda: seconds[0])
    throughput, module = Throughput(every_n_steps=2), tiny_module()
    training, validation = module.training_step, module.validation_step

    def training_step(batch, batch_idx):
        seconds[0] += 1
        return training(batch, batch_idx)

    def validation_step(batch, batch_idx):
        seconds[0] += 100
        validation(batch, batch_idx)

    module.training_step, module.validation_step = training_step, validation_step
    fitted = trainer(tmp_path, [throughput], max_epochs=1, val_check_interval=1)
    fitted.fit(module, datamodule())
    assert throughput.images_per_second == pytest.approx(4)
