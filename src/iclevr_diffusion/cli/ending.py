"""End a command after a mistake, a failure or a signal, with one line and an exit code."""

import os
import re
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from iclevr_diffusion.training import launchers
from iclevr_diffusion.utils.errors import Stopped, TrainingError, UserError
from iclevr_diffusion.utils.files import reason
from iclevr_diffusion.utils.signals import HANG_UP, handling

REPORT_DELAY = 5.0  # seconds in which a launcher ends its other processes after a failure
ENDS_WITH_A_LINE = (
    UserError,
    TrainingError,
    Stopped,
    HydraException,
    OmegaConfBaseException,
    OSError,
    KeyboardInterrupt,
)


@contextmanager
def ends_with_a_line(debug: bool) -> Iterator[None]:
    """End the program after a mistake or a signal, as :func:`~.command.command` documents."""
    try:
        yield
    except ENDS_WITH_A_LINE as error:
        if debug:
            raise
        end(error)


@contextmanager
def ends_by_signals() -> Iterator[None]:
    """Raise ``Stopped`` on SIGTERM, and when the terminal is closed, within the block.

    A training has handlers of its own, which save a checkpoint first.
    """
    process = os.getpid()

    def stop(signum: int, frame: FrameType | None) -> NoReturn:
        if os.getpid() != process:  # a worker that was forked off
            os._exit(128 + signum)
        raise Stopped(signal.Signals(signum).name, signum)

    signals = [signal.SIGTERM, *HANG_UP]
    # nohup ignores SIGHUP.
    with handling([one for one in signals if signal.getsignal(one) is signal.SIG_DFL], stop):
        yield


@contextmanager
def user_settings() -> Iterator[None]:
    """Report an object's refusal of its settings as a mistake of the user.

    Raises:
        UserError: With the object's message.
    """
    try:
        yield
    except ValueError as error:
        raise UserError(str(error)) from error


def end(error: BaseException) -> NoReturn:
    """Print the reason in one line, and end the program."""
    rank = launchers.local_rank()
    stopped = isinstance(error, Stopped | KeyboardInterrupt)
    if stopped and rank:
        sys.exit(0)  # the first process reports it
    if rank and launchers.launch() is not None:
        time.sleep(REPORT_DELAY)  # most likely the first process reports the same error
    process = f" in process {rank}" if rank else ""
    what = "stopped" if stopped else f"error{process}"
    print(f"{what}: {error_in_a_line(error)}", file=sys.stderr, flush=True)
    sys.exit(exit_code(error))


def exit_code(error: BaseException) -> int:
    """Return the exit code for an exception, as :func:`~.command.command` documents."""
    if isinstance(error, Stopped):
        return 128 + error.signum
    if isinstance(error, KeyboardInterrupt):
        return 128 + signal.SIGINT
    if isinstance(error, TrainingError) or not isinstance(error, ENDS_WITH_A_LINE):
        return 1
    return 2


def error_in_a_line(error: BaseException) -> str:
    """Return the message of an error in one line, without Hydra's and OmegaConf's details."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    if not isinstance(error, ENDS_WITH_A_LINE):
        return f"{type(error).__name__}: {' '.join(str(error).split())}"
    if isinstance(error, OSError) and not isinstance(error, HydraException):
        return f"{error.filename or 'a file'}: {reason(error)}"
    if isinstance(error, OmegaConfBaseException) and isinstance(error.__cause__, OSError):
        return error_in_a_line(error.__cause__)
    if isinstance(error, HydraException) and isinstance(error.__cause__, OmegaConfBaseException):
        return f"{' '.join(str(error).split())} {error_in_a_line(error.__cause__)}"
    bare_text = str(error).partition("\nConfig search path:")[0]
    text = re.sub(
        r"\n\s*(full_key|object_type|reference_type|See https?://\S+)[^\n]*", "", bare_text
    )
    return " ".join(text.split()).removeprefix("UserError raised while resolving interpolation: ")
