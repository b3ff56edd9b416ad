"""Several processes that train together live and die together.

Lightning starts the others from the first one. Left to itself, a process whose peer has died waits
in the next exchange of gradients, for minutes or for ever, and Lightning's own watch kills the
first one without a word.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from iclevr_diffusion.training.launchers import FIRST_PROCESS
from iclevr_diffusion.utils.errors import Stopped, TrainingError
from iclevr_diffusion.utils.lightning_internals import without_process_observer

PERIOD = 0.5  # seconds between two looks
PATIENCE = 3.0  # seconds a process has to end after it has broken the connection


def are_several(devices: object, nodes: int) -> bool:
    """Whether a training on so many devices and nodes takes several processes, as far as is known.

    Args:
        devices: how many, or a list of their numbers, as Lightning takes them.
    """
    if isinstance(devices, Sequence) and not isinstance(devices, str):
        return nodes != 1 or len(devices) != 1
    return nodes != 1 or devices not in (1, "1")


@contextmanager
def together(started: Callable[[], Sequence[subprocess.Popen[bytes]]]) -> Iterator[None]:
    """Inside, the end of one process by an error ends all, within seconds.

    Args:
        started: the processes that this one has started so far; none in those themselves.

    Raises:
        TrainingError: one of them has died.
    """
    done = threading.Event()
    first = os.environ.get("LOCAL_RANK", "0") == "0"
    if first:
        os.environ[FIRST_PROCESS] = str(os.getpid())
    watch: Callable[..., None] = _watch_children if first else _watch_parent
    threading.Thread(target=watch, args=(done, started), daemon=True).start()
    try:
        with without_process_observer():
            yield
    except (Stopped, KeyboardInterrupt):
        raise  # the others have been told too
    except BaseException as error:
        done.set()
        dead = _first_dead(started, PATIENCE if isinstance(error, RuntimeError) else 0)
        _kill(started)
        if dead is not None:
            raise TrainingError(dead) from error
        raise
    finally:
        done.set()


def _watch_parent(done: threading.Event, started: Callable[[], object]) -> None:
    # Under srun or torchrun, which end the others themselves, the first is no parent of this one.
    parent = int(os.environ.get(FIRST_PROCESS, os.getppid()))
    while os.getppid() == parent:
        if done.wait(PERIOD):
            return
    os._exit(1)


def _watch_children(
    done: threading.Event, started: Callable[[], Sequence[subprocess.Popen[bytes]]]
) -> None:
    while not done.wait(PERIOD):
        # The main thread notices by itself if it waits for a connection that has been closed. It
        # does not if it waits for an accelerator, or is busy for longer.
        dead = _first_dead(started, 0)
        if dead is None or done.wait(PATIENCE):
            continue
        print(f"error: {dead}", file=sys.stderr, flush=True)
        _kill(started)
        os._exit(1)


def _first_dead(
    started: Callable[[], Sequence[subprocess.Popen[bytes]]], patience: float
) -> str | None:
    """Which process has ended with an error, in words; waits for that as long as said."""
    end = time.monotonic() + patience
    while True:
        for rank, process in enumerate(started(), start=1):
            code = process.poll()
            if code:
                how = f"signal {signal.Signals(-code).name}" if code < 0 else f"code {code}"
                return f"process {rank} ended with {how}; what it said is above"
        if time.monotonic() >= end or not started():
            return None
        time.sleep(0.05)


def _kill(started: Callable[[], Sequence[subprocess.Popen[bytes]]]) -> None:
    for process in started():
        if process.poll() is None:
            process.kill()
