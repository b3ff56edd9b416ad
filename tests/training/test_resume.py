"""A stopped run resumes as if it had not been stopped: bit for bit, wherever it stopped."""

import os
import shutil
import signal
import time
from types import SimpleNamespace

import lightning as L
import pytest
import torch
from lightning.pytorch.trainer import call

from helpers import PixelReader, RandomFrames, assert_same, datamodule, result, tiny_module, trainer
from iclevr_diffusion.data.conditions import CHOOSE_BY
from iclevr_diffusion.diffusion.guidance import Guidance
from iclevr_diffusion.diffusion.samplers import Sampler
from iclevr_diffusion.training import resume
from iclevr_diffusion.training.callbacks.checkpoint import (
    AtomicCheckpointIO,
    Checkpoints,
    newest_checkpoint,
)
from iclevr_diffusion.training.callbacks.ema import EMA
from iclevr_diffusion.training.callbacks.limits import Limits
from iclevr_diffusion.training.callbacks.nan_guard import NaNGuard
from iclevr_diffusion.training.callbacks.preemption import StopOnSignal, may_communicate
from iclevr_diffusion.training.callbacks.scoring import Scoring
from iclevr_diffusion.training.fit import fit
from iclevr_diffusion.training.loggers import MetricsCSV, read_metrics
from iclevr_diffusion.training.resume import find_checkpoint
from iclevr_diffusion.utils.errors import Stopped, UserError
from iclevr_diffusion.utils.files import is_intact
from iclevr_diffusion.utils.signals import handling

SETTINGS = {"batch_size": 4}
BATCHES = 8  # an epoch: 33 frames to train on, 4 a batch


class At(L.Callback):
    """Does something once: in a hook, of an epoch and, for those of batches, a batch."""

    def __init__(self, hook, epoch, batch, action):
        done = []

        def moment(trainer, *arguments, **named):
            here = next((a for a in reversed(arguments) if isinstance(a, int)), None)
            if trainer.current_epoch == epoch and here in (batch, None) and not done:
                done.append(True)
                action()

        setattr(self, hook, moment)


def send(signum):
    return lambda: os.kill(os.getpid(), signum)


def run(
    folder,
    *more,
    epochs=2,
    max_steps=-1,
    max_time=None,
    accumulate=1,
    every_n_steps=0,
    val_check_interval=1.0,
    min_steps=None,
    evaluator=None,
    resume=False,
    data=None,
):
    """One process of a run; the seconds it trained."""
    csv = MetricsCSV(folder / "metrics.csv")
    checkpoints = Checkpoints(folder / "checkpoints", SETTINGS, every_n_steps=every_n_steps)
    stop = StopOnSignal(checkpoints)
    conditions = RandomFrames().conditions()
    scoring = Scoring(
        {**conditions, CHOOSE_BY: conditions["test"]},
        evaluator or PixelReader(),
        Sampler("ddpm", 5),
        Guidance(),
        1,
        folder / "images",
        folder / "checkpoints" / "best.ckpt",
    )
    program = trainer(
        folder,
        [
            *more,
            NaNGuard(),
            Limits(max_steps, max_time, min_steps=min_steps),
            stop,
            EMA(0.9),
            scoring,
            checkpoints,
        ],
        max_epochs=epochs,
        accumulate_grad_batches=accumulate,
        val_check_interval=val_check_interval,
        log_every_n_steps=1,
        enable_checkpointing=True,
        plugins=[AtomicCheckpointIO()],
    )
    program.loggers = [csv]
    resumed = find_checkpoint(folder, SETTINGS, 1) if resume else None
    module = tiny_module(dropout=0.1, warmup_steps=3, decay="cosine")
    with stop.handled(program):
        return fit(program, module, data or datamodule(), resumed, {}, folder / "none.json")


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """The results of unbroken runs, by their settings."""
    known = {}

    def of(**settings):
        key = repr(sorted(settings.items()))
        if key not in known:
            folder = tmp_path_factory.mktemp("unbroken")
            run(folder, **settings)
            known[key] = result(folder)
        return known[key]

    return of


MOMENTS = [
    ("on_train_batch_end", 1, 5, {}),
    ("on_validation_batch_start", 1, 0, {}),
    ("on_train_batch_end", 0, 1, {"accumulate": 3}),  # half-way to an optimizer step
]
MORE_MOMENTS = [  # near those above, or with other settings
    ("on_save_checkpoint", 0, None, {}),
    ("on_train_batch_start", 0, 0, {}),
    ("on_train_batch_end", 0, BATCHES - 1, {}),  # the last of an epoch
    ("on_train_epoch_end", 0, None, {}),
    ("on_train_epoch_end", 1, None, {"epochs": 9, "max_steps": 13}),
    ("on_validation_end", 0, None, {"val_check_interval": 0.4}),
    ("on_train_batch_end", 0, 0, {}),
    ("on_before_optimizer_step", 0, None, {}),
    ("on_train_batch_start", 1, 3, {}),
    ("on_validation_start", 0, None, {}),
    ("on_validation_end", 0, None, {}),
    ("on_train_end", 2, None, {}),
    ("on_train_batch_start", 1, 4, {"accumulate": 3}),
    ("on_train_batch_end", 1, BATCHES - 1, {"accumulate": 3}),
    ("on_train_batch_end", 1, 2, {"epochs": 9, "max_steps": 13}),
    ("on_train_batch_end", 0, 2, {"val_check_interval": 3}),  # validation comes next
    ("on_train_batch_start", 1, 4, {"val_check_interval": 3}),
    ("on_validation_batch_start", 1, 0, {"val_check_interval": 0.4}),
]


@pytest.mark.parametrize(
    ("hook", "epoch", "batch", "settings"),
    [*MOMENTS, *(pytest.param(*moment, marks=pytest.mark.slow) for moment in MORE_MOMENTS)],
)
def test_stopped_by_a_signal(tmp_path, unbroken, hook, epoch, batch, settings):
    signum = signal.SIGINT if batch == 5 else signal.SIGTERM
    with pytest.raises(Stopped) as stop:
        run(tmp_path, At(hook, epoch, batch, send(signum)), **settings)
    assert stop.value.signum == signum
    run(tmp_path, resume=True, **settings)
    assert_same(result(tmp_path), unbroken(**settings))


def test_stopped_before_the_first_batch(tmp_path, unbroken):
    with pytest.raises(Stopped, match="before the first step: there is nothing to save yet"):
        run(tmp_path, At("on_train_start", 0, None, send(signal.SIGTERM)))
    assert not list(tmp_path.rglob("*.ckpt"))
    run(tmp_path, resume=True)
    assert_same(result(tmp_path), unbroken())


def test_stopped_while_the_data_is_set_up(tmp_path):
    class Slow(RandomFrames):
        def load_frames(self):
            send(signal.SIGTERM)()
            raise AssertionError("the signal was ignored")

    data = datamodule()
    data.source = Slow()
    with pytest.raises(Stopped, match="SIGTERM; the same command with resume=true continues"):
        run(tmp_path, data=data)


def test_a_second_interrupt_does_not_wait_for_a_checkpoint(tmp_path):
    def interrupt_twice():
        send(signal.SIGINT)()
        send(signal.SIGINT)()

    with pytest.raises(Stopped, match="interrupted; resume=true continues") as stop:
        run(tmp_path, At("on_train_batch_end", 0, 2, interrupt_twice))
    assert stop.value.signum == signal.SIGINT
    assert not list(tmp_path.rglob("*.ckpt"))


def test_a_third_interrupt_does_not_disturb_the_end():
    stop = StopOnSignal(checkpoints=None)
    stop.in_fit = True
    with handling([signal.SIGINT], stop._note):
        send(signal.SIGINT)()
        with pytest.raises(Stopped):
            send(signal.SIGINT)()
        send(signal.SIGINT)()


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings", [{}, pytest.param({"epochs": 9, "max_steps": 13}, marks=pytest.mark.slow)]
)
def test_stopped_while_scoring(tmp_path, unbroken, settings):
    readings = iter(range(99))
    evaluator = PixelReader(lambda: next(readings) == 2 and send(signal.SIGTERM)())
    with pytest.raises(Stopped, match=r"SIGTERM at step \d+, saved in .*last.ckpt"):
        run(tmp_path, evaluator=evaluator, **settings)
    progress = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["progress"]
    assert not progress["epoch_ended"]
    run(tmp_path, resume=True, **settings)
    assert_same(result(tmp_path), unbroken(**settings))


@pytest.mark.slow
def test_stopped_between_two_sampling_steps(tmp_path, unbroken, monkeypatch):
    steps = iter(range(99))
    check = StopOnSignal.check

    def signal_then_check(self, trainer):
        if trainer.current_epoch == 1 and not trainer.validating and next(steps) == 12:
            send(signal.SIGTERM)()
        check(self, trainer)

    monkeypatch.setattr(StopOnSignal, "check", signal_then_check)
    with pytest.raises(Stopped):
        run(tmp_path)
    monkeypatch.undo()
    run(tmp_path, resume=True)
    assert_same(result(tmp_path), unbroken())


@pytest.mark.parametrize(
    ("hook", "epoch", "batch", "accumulate"),
    [
        ("on_train_batch_start", 0, 6, 1),
        pytest.param("on_train_batch_end", 1, 4, 3, marks=pytest.mark.slow),
        pytest.param("on_validation_end", 1, None, 1, marks=pytest.mark.slow),
        pytest.param("on_train_end", 2, None, 1, marks=pytest.mark.slow),
    ],
)
def test_torn_down_without_warning(tmp_path, unbroken, hook, epoch, batch, accumulate):
    def fall():
        raise ZeroDivisionError

    settings = {"every_n_steps": 2, "accumulate": accumulate}
    with pytest.raises(ZeroDivisionError):
        run(tmp_path, At(hook, epoch, batch, fall), **settings)
    run(tmp_path, resume=True, **settings)
    assert_same(result(tmp_path), unbroken(**settings))


@pytest.mark.slow
def test_killed_right_after_the_checkpoint_of_an_epoch(tmp_path, unbroken, monkeypatch):
    write = Checkpoints.on_train_epoch_end

    def write_and_fall(self, trainer, module):
        write(self, trainer, module)
        raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "on_train_epoch_end", write_and_fall)
        patch.setattr(call, "_interrupt", lambda *arguments: None)  # what a SIGKILL leaves out
        with pytest.raises(ZeroDivisionError):
            run(tmp_path)
    run(tmp_path, resume=True)
    assert_same(result(tmp_path), unbroken())


def test_resumed_run_names_the_checkpoint_it_went_on_from(tmp_path):
    run(tmp_path, max_steps=3)
    last = tmp_path / "checkpoints" / "last.ckpt"
    known = []
    note = At("on_train_start", 0, None, lambda: None)
    note.on_train_start = lambda trainer, module: known.append(newest_checkpoint(trainer))
    run(tmp_path, note, max_steps=5, resume=True)
    assert known == [last]


@pytest.mark.slow
def test_of_several_checkpoints_the_one_that_came_furthest_is_taken(tmp_path):
    run(tmp_path, max_steps=3)
    last = tmp_path / "checkpoints" / "last.ckpt"
    early = shutil.copy(last, last.with_name("epoch_0001.ckpt"))
    run(tmp_path, max_steps=5, resume=True)
    os.utime(early)  # as if the folder had been copied
    found = find_checkpoint(tmp_path, SETTINGS, 1)
    assert (found.path.name, found.steps) == ("last.ckpt", 5)


def test_time_that_is_over_within_a_step_waits_for_its_end(tmp_path):
    run(
        tmp_path,
        At("on_train_batch_end", 0, 0, lambda: time.sleep(1.1)),
        max_time="00:00:00:01",
        accumulate=4,
    )
    assert find_checkpoint(tmp_path, SETTINGS, 1).steps == 1


@pytest.mark.slow
def test_stopped_again_and_again(tmp_path, unbroken):
    for batch in range(1, BATCHES):
        stop = At("on_train_batch_start", 0, batch, send(signal.SIGTERM))
        with pytest.raises(Stopped):
            run(tmp_path, stop, resume=True)
    run(tmp_path, resume=True)
    assert_same(result(tmp_path), unbroken())


@pytest.mark.slow
def test_run_that_ended_by_steps_continues_within_its_epoch(tmp_path, unbroken):
    # The learning rate's decay ends with the run, so that it depends on max_steps: none is used.
    ends = {"max_steps": 13, "epochs": 9}
    run(tmp_path, **ends)
    assert torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["progress"] == {
        "epoch": 1,
        "batches": 13 - BATCHES,
        "batches_per_epoch": BATCHES,
        "epoch_ended": True,
        "steps": 13,
        "frames_seen": 13 * 4,
    }
    run(tmp_path, max_steps=15, epochs=9, resume=True)
    steps = [row["step"] for row in read_metrics(tmp_path / "metrics.csv")]
    assert steps == list(range(15))


@pytest.mark.slow
def test_time_does_not_end_a_run_before_its_least_steps(tmp_path):
    slow = At("on_train_batch_end", 0, 0, lambda: time.sleep(1.1))
    run(tmp_path, slow, max_time="00:00:00:01", min_steps=BATCHES + 3, epochs=9)
    assert find_checkpoint(tmp_path, SETTINGS, 1).steps == BATCHES + 3


@pytest.mark.slow
def test_run_that_ended_by_time_continues_when_given_more(tmp_path):
    run(tmp_path, max_time="00:00:00:01", epochs=99)
    first = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["progress"]
    assert first["epoch_ended"]
    assert run(tmp_path, max_time="00:00:00:01", epochs=99, resume=True) == 0.0
    run(tmp_path, max_time="00:01:00:00", epochs=first["epoch"] + 2, resume=True)
    then = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["progress"]
    assert then["steps"] > first["steps"]


@pytest.mark.slow
def test_time_that_is_over_before_an_epochs_first_batch_costs_no_epoch(tmp_path):
    slow = At("on_train_epoch_start", 1, 0, lambda: time.sleep(2))
    run(tmp_path, slow, max_time="00:00:00:02", epochs=99)
    first = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["progress"]
    run(tmp_path, max_time="00:01:00:00", epochs=first["epoch"] + 2, resume=True)
    then = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["progress"]
    assert then["steps"] == (first["epoch"] + 2) * BATCHES


def test_a_later_signal_does_not_cancel_a_requeue():
    stop = StopOnSignal(checkpoints=None)
    stop.in_fit = True
    stop._note(signal.SIGUSR1, None)
    stop._note(signal.SIGTERM, None)
    assert stop._signum == signal.SIGUSR1


@pytest.mark.parametrize(
    ("device", "processes", "asks"), [("cuda", 1, 20), ("cpu", 2, 20), ("cuda", 2, 2)]
)
def test_several_accelerators_do_not_wait_for_one_another_at_every_step(device, processes, asks):
    def may(step):
        strategy = SimpleNamespace(root_device=torch.device(device))
        trainer = SimpleNamespace(world_size=processes, global_step=step, strategy=strategy)
        return may_communicate(trainer, every_n_steps=10)

    assert sum(map(may, range(20))) == asks


def test_damaged_checkpoints_are_passed_over(tmp_path, unbroken, caplog):
    run(tmp_path, epochs=2)
    last = tmp_path / "checkpoints" / "last.ckpt"
    content = bytearray(last.read_bytes())
    content[len(content) // 2] ^= 1  # one bit
    last.write_bytes(content)
    assert find_checkpoint(tmp_path, SETTINGS, 1).path.name == "best.ckpt"
    assert "last.ckpt is damaged" in caplog.text
    run(tmp_path, resume=True)
    assert_same(result(tmp_path), unbroken())
    for path in last.parent.iterdir():
        path.write_bytes(b"no checkpoint")
    with pytest.raises(UserError, match=r"(best|last)\.ckpt is damaged"):
        find_checkpoint(tmp_path, SETTINGS, 1)


def test_any_flipped_bit_of_a_checkpoint_is_noticed(tmp_path):
    path, spoiled = tmp_path / "last.ckpt", tmp_path / "spoiled.ckpt"
    weights = {f"layer{i}": torch.randn(16, 8, generator=torch.Generator()) for i in range(4)}
    AtomicCheckpointIO().save_checkpoint({"state_dict": weights}, path)
    assert is_intact(path)
    loaded = AtomicCheckpointIO().load_checkpoint(path)["state_dict"]
    assert torch.equal(loaded["layer3"], weights["layer3"])
    content = path.read_bytes()
    for position in [*range(0, len(content), 7), *range(len(content) - 40, len(content))]:
        flipped = bytearray(content)
        flipped[position] ^= 1 << position % 8
        spoiled.write_bytes(flipped)
        with pytest.raises(UserError, match=r"spoiled\.ckpt is damaged"):
            resume._check_bytes(spoiled)
    spoiled.write_bytes(content[:-1])
    with pytest.raises(UserError, match=r"spoiled\.ckpt is damaged"):
        resume._check_bytes(spoiled)


def test_checkpoint_without_a_sum_over_all_of_it_is_checked_by_its_entries(tmp_path):
    path = tmp_path / "old.ckpt"
    torch.save({"weight": torch.zeros(10_000)}, path)
    resume._check_bytes(path)
    content = bytearray(path.read_bytes())
    content[20_000] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"old\.ckpt is damaged"):
        resume._check_bytes(path)
