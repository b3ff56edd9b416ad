"""End all processes of a training when one of them fails.

Lightning starts the other processes from the first one. By default, a process whose peer has died
waits in the next exchange of gradients, for minutes or forever, and Lightning's own observer kills
the first process without a message.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from iclevr_diffusion.training.launchers import FIRST_PROCESS, given_devices
from iclevr_diffusion.utils.errors import Stopped, TrainingError
from iclevr_diffusion.utils.lightning_internals import without_process_observer

PERIOD = 0.5  # seconds between checks
PATIENCE = 3.0  # seconds for a process to end after the connection has broken


def are_several(devices: int | str | Sequence[int], nodes: int) -> bool:
    """Return whether a training on these devices and nodes uses several processes, if known.

    Args:
        devices: A number, or a list of device numbers, as in Lightning.
        nodes: The number of nodes.
    """
    return nodes != 1 or given_devices(devices) != 1


@contextmanager
def together(started: Callable[[], Sequence[subprocess.Popen[bytes]]]) -> Iterator[None]:
    """Within the context, a failure of one process ends all of them within seconds.

    Args:
        started: Returns the processes that this one has started so far; none in those themselves.

    Raises:
        TrainingError: One of them has died.
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
        raise  # the others received the signal, too
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
    # srun and torchrun end the other processes themselves; the first one is not their parent.
    parent = int(os.environ.get(FIRST_PROCESS, os.getppid()))
    while os.getppid() == parent:
        if done.wait(PERIOD):
            return
    os._exit(1)


def _watch_children(
    done: threading.Event, started: Callable[[], Sequence[subprocess.Popen[bytes]]]
) -> None:
    while not done.wait(PERIOD):
        # The main thread notices a closed connection by itself, but not while it waits for an
        # accelerator or is busy for longer.
        dead = _first_dead(started, 0)
        if dead is None or done.wait(PATIENCE):
            continue
        print(f"error: {dead}", file=sys.stderr, flush=True)
        _kill(started)
        os._exit(1)


def _first_dead(
    started: Callable[[], Sequence[subprocess.Popen[bytes]]], patience: float
) -> str | None:
    """Describe the first process that has failed; wait for one up to ``patience`` seconds."""
    end = time.monotonic() + patience
    while True:
        for rank, process in enumerate(started(), start=1):
            code = process.poll()
            if code:
                how = f"signal {signal.Signals(-code).name}" if code < 0 else f"code {code}"
                return f"process {rank} ended with {how}; see its output above"
        if time.monotonic() >= end or not started():
            return None
        time.sleep(0.05)


def _kill(started: Callable[[], Sequence[subprocess.Popen[bytes]]]) -> None:
    for process in started():
        if process.poll() is None:
            process.kill()
