"""Exchange of small values between processes before ``torch.distributed`` is initialized."""

import functools
import json
import os
import socket
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING

from iclevr_diffusion.training.launchers.cluster_environment import cluster_environment
from iclevr_diffusion.training.launchers.detect import launch
from iclevr_diffusion.training.launchers.processes import Launch, number
from iclevr_diffusion.utils.errors import UserError

if TYPE_CHECKING:
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

PATIENCE = 300  # seconds in which the processes of one launcher find each other
SHORT_PATIENCE = 30  # if nothing shows that the others were started


def meet() -> None:
    """Make sure that all processes find each other, before they exchange anything.

    The tasks of a SLURM step wait for one another, as none of them ends when another one does.

    Raises:
        UserError: Some did not connect in time.
    """
    found = launch()
    if number("TORCHELASTIC_RESTART_COUNT", 0) > 0:
        _leave_old_addresses()
    if found is None or found.environment != "SLURMEnvironment" or found.processes is None:
        return
    patience = PATIENCE if found.started else SHORT_PATIENCE
    try:
        store = _store(found, patience)
        store.add(_key("came"), 1)
        if store.add(_key("came"), 0) >= found.processes:
            store.set(_key("all came"), "yes")
        store.wait([_key("all came")], timedelta(seconds=patience))
    except Exception as error:  # torch raises several kinds, also plain RuntimeErrors
        raise UserError(
            f"{found.what}, but they have not found each other within {patience} s: start the"
            " command with srun, or ask for --ntasks=1 and let the one process start the others"
        ) from error


def check_same(name: str, value: str, advice: str) -> None:
    """Check that this process has the same value as the first process of the launcher.

    Raises:
        UserError: This process has another, or the first does not answer.
    """
    first = agreed(name, lambda: value, in_slurm=True)
    if first != value:
        raise UserError(f"{name}: {value}, but {first} in the first process; {advice}")


def agreed(name: str, choose: Callable[[], str], in_slurm: bool = False) -> str:
    """Call ``choose`` in the first process, and return its choice in all processes.

    Args:
        name: Name of the choice.
        choose: Called in the first process only.
        in_slurm: Whether SLURM tasks ask the first one, too; if not, each of them chooses.

    Raises:
        UserError: The first process fails, or does not answer.
    """
    found = launch()
    if found is None or found.refusal or not _has_address(found, in_slurm):
        return choose()
    if found.rank == 0:
        store, key = _store(found, PATIENCE), _key(name)
        try:
            choice = choose()
        except Exception as error:
            store.set(key, json.dumps({"error": " ".join(str(error).split())}))
            raise
        store.set(key, json.dumps({"choice": choice}))
        return choice
    try:
        answer = json.loads(_store(found, PATIENCE).get(_key(name)))
    except Exception as error:  # torch raises several kinds, also plain RuntimeErrors
        raise UserError(
            f"{found.what}: the first process does not answer at"
            f" {os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        ) from error
    if "error" in answer:
        raise UserError(answer["error"])
    return str(answer["choice"])


def _leave_old_addresses() -> None:
    """Make torch create its own store, at a new port.

    With ``--master_port``, torchrun keeps its store when it restarts the processes: gloo would wait
    at the addresses of processes that have ended.
    """
    with socket.socket() as server:
        server.bind(("", 0))
        port = server.getsockname()[1]
    os.environ["MASTER_PORT"] = agreed("port", lambda: str(port))
    os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "False"


def _has_address(found: Launch, in_slurm: bool) -> bool:
    """Return whether this process can find the first one."""
    if found.environment == "SLURMEnvironment":
        return in_slurm
    return found.environment == "LSFEnvironment" or "MASTER_PORT" in os.environ


@functools.cache
def _store(found: Launch, patience: float) -> "TCPStore":
    """Open the key-value store of ``torch.distributed``, on rank 0 or in torchrun."""
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    environment = cluster_environment()
    torchruns = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    return TCPStore(
        environment.main_address,
        environment.main_port,
        is_master=found.rank == 0 and not torchruns,
        timeout=timedelta(seconds=patience),
        wait_for_workers=False,
        multi_tenant=True,  # torch.distributed opens it again
    )


def _key(name: str) -> str:
    return f"iclevr_diffusion/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}/{name}"
