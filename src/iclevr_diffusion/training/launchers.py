"""Launchers that start the processes of a training: torchrun, srun, jsrun, or a script.

Lightning finds them by their environment variables, but checks their numbers late or, with
``trainer.devices=1``, not at all: each process would then train alone, all in one folder. Here the
numbers are checked before a training begins, and the processes agree on their run folder.
"""

import functools
import json
import os
import re
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from iclevr_diffusion.utils.errors import UserError

if TYPE_CHECKING:
    from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

FIRST_PROCESS = "ICLEVR_DIFFUSION_FIRST_PROCESS"  # its number, for those that Lightning starts
BY_HAND = ("bash", "interactive")  # names of SLURM jobs in which Lightning leaves SLURM aside
SPECIAL_STEPS = (
    0xFFFFFFF0  # steps of SLURM from here on are no srun's: batch scripts, salloc's shell
)
MPI_SIZES = ("OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE", "PMI_SIZE", "JSM_NAMESPACE_SIZE")
PATIENCE = 300  # seconds in which the processes of one launcher find each other
SHORT_PATIENCE = 30  # where nothing says that there are others


@dataclass(frozen=True)
class Launch:
    """Processes that a launcher, not Lightning, has started; this one is among them.

    Attributes:
        what: the launcher and its variables, in words.
        environment: the name of Lightning's class for it.
        rank: of this process among all.
        local_rank: of this process among those of its node.
        processes: their number; None where the launcher does not say.
        per_node: their number on each node; None where the launcher does not say.
        advice: how to ask for another number, with ``{devices}`` and ``{nodes}``.
        started: whether that many have been started, as far as is known.
        refusal: why no training can begin in them; empty if one can.
    """

    what: str
    environment: str
    rank: int = 0
    local_rank: int = 0
    processes: int | None = None
    per_node: int | None = None
    advice: str = ""
    started: bool = True
    refusal: str = ""

    @property
    def are_several(self) -> bool:
        return self.started and self.processes is not None and self.processes > 1


def launch() -> Launch | None:
    """The launcher of this process; None if it was started by hand, or by Lightning."""
    for find in (_torchrun, _lsf, _mpi, _slurm, _variables):
        try:
            found = find()
        except (KeyError, ValueError) as error:
            what = f"{error.args[0]} is not set" if isinstance(error, KeyError) else str(error)
            return Launch("", "", started=False, refusal=f"launcher's variables: {what}")
        if found is not None:
            return found
    return None


def is_first() -> bool:
    """Whether this is the first process of all; those that Lightning starts count, too."""
    found = launch()
    if found is not None:
        return found.rank == 0
    return all(os.environ.get(name, "0") == "0" for name in ("LOCAL_RANK", "NODE_RANK"))


def local_rank() -> int:
    """The number of this process among those of its node."""
    found = launch()
    return found.local_rank if found is not None else _number("LOCAL_RANK", 0)


def cluster_environment() -> "ClusterEnvironment":
    """Lightning's view of the launcher.

    Raises:
        UserError: no training can begin in this launcher's processes.
    """
    from lightning.fabric.plugins import environments
    from lightning.fabric.plugins.environments.lightning import LightningEnvironment

    found = launch()
    if found is None:
        return LightningEnvironment()
    if found.refusal:
        raise UserError(found.refusal)
    if found.environment == "SLURMEnvironment":
        return _slurm_environment(found)
    try:
        made: ClusterEnvironment = getattr(environments, found.environment)()
    except (KeyError, IndexError, ValueError) as error:
        raise UserError(f"{found.what}: its variables do not fit this machine: {error}") from error
    return made


def check_processes(devices: int, nodes: int) -> None:
    """Check that as many processes have been started as the settings ask for.

    Args:
        devices: of each node.
        nodes: ``trainer.num_nodes``.

    Raises:
        UserError: they have not.
    """
    found, asked = launch(), f"trainer.devices={devices} on trainer.num_nodes={nodes}"
    if found is None:
        if nodes > 1:
            raise UserError(
                f"trainer.num_nodes={nodes} needs a launcher that starts this command on each node:"
                f" srun, or torchrun --nnodes={nodes} --nproc_per_node={devices} --node_rank=…"
                " --master_addr=… -m iclevr_diffusion.train …"
            )
        return
    if found.refusal:
        raise UserError(found.refusal)
    total, started = devices * nodes, found.processes
    fits = started is None or started == total
    if fits and found.per_node is not None:
        fits = found.per_node == devices
    if not fits:
        per_node = found.per_node or started or 1
        several = (started or 1) // per_node
        settings = f"trainer.devices={per_node} trainer.num_nodes={several}"
        settings += "" if found.started else " and start it with srun"
        advice = found.advice.format(devices=devices, nodes=nodes, total=total)
        raise UserError(
            f"{found.what}, but {asked} makes {total} process{'es' * (total > 1)}: set {settings},"
            f" or {advice}"
        )
    if found.environment == "LightningEnvironment":
        node = _number("NODE_RANK", 0)
        rank = _number("RANK", node * devices + found.local_rank)
        if (
            node >= nodes
            or found.local_rank >= devices
            or rank != node * devices + found.local_rank
        ):
            raise UserError(f"{found.what} does not fit {asked}")


def meet() -> None:
    """Make sure that all processes will find each other, before they exchange anything.

    Those of a SLURM step wait for one another, as none of them ends with another.

    Raises:
        UserError: they did not come.
    """
    found = launch()
    if _number("TORCHELASTIC_RESTART_COUNT", 0) > 0:
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
    """Check that all processes of the launcher have the same value as the first one.

    Raises:
        UserError: this process has another, or the first does not answer.
    """
    first = agreed(name, lambda: value, in_slurm=True)
    if first != value:
        raise UserError(f"{name}: {value}, but {first} in the first process; {advice}")


def agreed(name: str, choose: Callable[[], str], in_slurm: bool = False) -> str:
    """Have the first process choose, and return its choice in all processes of the launcher.

    Args:
        name: of what is chosen.
        choose: is called in the first process only.
        in_slurm: whether tasks of SLURM ask the first, too; otherwise each of them chooses.

    Raises:
        UserError: it could not choose, or does not answer.
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


def restarts() -> int:
    """How often SLURM or torchrun has started this command again."""
    return _number("SLURM_RESTART_COUNT", 0) + _number("TORCHELASTIC_RESTART_COUNT", 0)


def torchrun_id() -> str | None:
    """A name for this torchrun that its restarts share; None outside of one."""
    run = os.environ.get("TORCHELASTIC_RUN_ID")
    return None if run is None else f"{run} of process {os.getppid()} on {socket.gethostname()}"


def slurm_job() -> str | None:
    """A name for this job of SLURM's, the same each time it is queued; None outside of SLURM."""
    job = os.environ.get("SLURM_ARRAY_JOB_ID") or os.environ.get("SLURM_JOB_ID")
    if job is None or _is_by_hand():
        return None
    parts = [job, os.environ.get("SLURM_ARRAY_TASK_ID"), os.environ.get("SLURM_STEP_ID")]
    return "_".join(["job", *(part for part in parts if part)])


def given_devices(devices: int | str | Sequence[int]) -> int | None:
    """The number of devices that ``trainer.devices`` asks for, if it says one.

    Args:
        devices: how many, or a list of their numbers, as Lightning takes them.
    """
    if isinstance(devices, str):
        return int(devices) if devices.isdecimal() else None
    if isinstance(devices, int):
        return devices if devices > 0 else None
    return len(devices)


def _torchrun() -> Launch | None:
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return None
    processes, per_node = _needed("WORLD_SIZE"), _needed("LOCAL_WORLD_SIZE")
    return Launch(
        f"torchrun started {processes} process{'es' * (processes > 1)} ({per_node} on this node)",
        "TorchElasticEnvironment",
        _needed("RANK"),
        _needed("LOCAL_RANK"),
        processes,
        per_node,
        "torchrun --nnodes={nodes} --nproc_per_node={devices}",
    )


def _lsf() -> Launch | None:
    needed = ("LSB_JOBID", "LSB_DJOB_RANKFILE", "JSM_NAMESPACE_LOCAL_RANK", "JSM_NAMESPACE_SIZE")
    if not all(name in os.environ for name in needed):
        return None
    processes = _needed("JSM_NAMESPACE_SIZE")
    return Launch(
        f"jsrun started {processes} processes (JSM_NAMESPACE_SIZE)",
        "LSFEnvironment",
        _needed("JSM_NAMESPACE_RANK"),
        _needed("JSM_NAMESPACE_LOCAL_RANK"),
        processes,
        advice="jsrun --np={total}",
    )


def _mpi() -> Launch | None:
    """Processes of mpirun, and of others whose variables Lightning does not read."""
    for name in MPI_SIZES:
        processes = _number(name, 1)
        if name == "PMI_SIZE" and "SLURM_STEP_ID" in os.environ:
            continue  # srun sets it, too
        if processes > 1:
            ranks = {"OMPI": "OMPI_COMM_WORLD", "MV2": "MV2_COMM_WORLD", "JSM": "JSM_NAMESPACE"}
            prefix = ranks.get(name.split("_")[0], "PMI")
            return Launch(
                f"mpirun ({name}={processes})",
                "",
                _number(f"{prefix}_RANK", 0),
                _number(f"{prefix}_LOCAL_RANK", _number(f"{prefix}_RANK", 0)),
                processes,
                refusal=f"{name}={processes}: processes that mpirun started cannot train together"
                " here; start them with srun, or with torchrun --nproc_per_node=…",
            )
    return None


def _slurm() -> Launch | None:
    """Tasks of SLURM; None where there is one, which Lightning may give others beside it."""
    per_node = _number("SLURM_NTASKS_PER_NODE", 1)
    nodes = _number(
        "SLURM_STEP_NUM_NODES", _number("SLURM_NNODES", _number("SLURM_JOB_NUM_NODES", 0))
    )
    tasks = _number("SLURM_NTASKS", per_node * max(nodes, 1))
    rank = _number("SLURM_PROCID", 0)
    if tasks <= 1 or _is_by_hand():
        return None
    layout = _layout(tasks)
    if not layout and nodes and tasks % nodes == 0:
        layout = [tasks // nodes] * nodes
    if not layout and tasks % per_node == 0 and "SLURM_NTASKS_PER_NODE" in os.environ:
        layout = [per_node] * (tasks // per_node)
    names = ("SLURM_NTASKS", "SLURM_NTASKS_PER_NODE", "SLURM_NNODES")
    said = ", ".join(f"{name}={os.environ[name]}" for name in names if name in os.environ)
    what = f"SLURM was asked for {tasks} tasks ({said})"
    uneven = len(set(layout)) > 1
    return Launch(
        what,
        "SLURMEnvironment",
        rank,
        _number("SLURM_LOCALID", rank % layout[0] if layout else rank),
        tasks,
        layout[0] if layout else None,
        "ask for --nodes={nodes} --ntasks-per-node={devices} (--cpus-per-task for more processor"
        " cores); SLURM_JOB_NAME=interactive leaves SLURM aside",
        started=_is_a_step() or rank > 0,
        refusal=f"{what}, {', '.join(map(str, layout))} of them on each: ask for"
        " --ntasks-per-node=…, the same number on each node" * uneven,
    )


def _variables() -> Launch | None:
    """Processes that a script started with the variables of ``torch.distributed``."""
    ranks = [name for name in ("RANK", "NODE_RANK", "LOCAL_RANK") if name in os.environ]
    names = ["WORLD_SIZE"] * ("WORLD_SIZE" in os.environ) + ranks
    if not names or FIRST_PROCESS in os.environ:
        return None
    processes = _number("WORLD_SIZE", 0) or None
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    alone = processes in (None, 1) and not any(_number(name, 0) for name in ranks)
    if alone and missing:
        if names == ["NODE_RANK"]:
            return None
        processes = 1
    what = f"{', '.join(f'{name}={os.environ[name]}' for name in names)} in the environment"
    one_a_node = "RANK" in names and not {"LOCAL_RANK", "NODE_RANK"} & set(names)
    local = _number("LOCAL_RANK", 0)
    rank = _number("RANK", local + _number("NODE_RANK", 0))
    refusal = ""
    if missing and not alone:
        refusal = f"{what}: {missing[0]} is missing; set it, or unset these, or use torchrun"
    return Launch(
        what,
        "KubeflowEnvironment" if one_a_node and not alone else "LightningEnvironment",
        rank,
        local,
        processes,
        1 if one_a_node else None,
        "start {total}, or unset these",
        refusal=refusal,
    )


def _is_by_hand() -> bool:
    """Whether this is a shell of an interactive job of SLURM's, not a task that srun started."""
    name = os.environ.get("SLURM_JOB_NAME")
    if name not in BY_HAND or _number("SLURM_PROCID", 0) > 0:
        return False
    # Below salloc, whose jobs have this name, srun starts tasks, too.
    return not (name == "interactive" and _is_a_step() and _number("SLURM_STEP_NUM_TASKS", 1) > 1)


def _is_a_step() -> bool:
    """Whether srun started this process, and not a shell that it runs in."""
    step = _number("SLURM_STEP_ID", SPECIAL_STEPS)
    return step < SPECIAL_STEPS and "SLURM_PTY_PORT" not in os.environ


def _layout(tasks: int) -> list[int]:
    """The number of tasks on each node, such as ``2(x3),1``; empty where that is not known."""
    for name in ("SLURM_STEP_TASKS_PER_NODE", "SLURM_TASKS_PER_NODE"):
        layout: list[int] = []
        for part in os.environ.get(name, "").split(","):
            match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)
            layout += [int(match[1])] * int(match[2] or 1) if match else []
        if sum(layout) == tasks:
            return layout
    return []


def _slurm_environment(found: Launch) -> "ClusterEnvironment":
    from lightning.fabric.plugins.environments.slurm import SLURMEnvironment

    class Tasks(SLURMEnvironment):
        """Takes ``--ntasks``, too; :func:`check_processes` has checked the numbers."""

        @staticmethod
        def _validate_srun_variables() -> None: ...

        def validate_settings(self, num_devices: int, num_nodes: int) -> None: ...

        def world_size(self) -> int:
            return found.processes or 1

        def local_rank(self) -> int:
            return found.local_rank

        def node_rank(self) -> int:
            return _number("SLURM_NODEID", found.rank // (found.per_node or found.processes or 1))

    return Tasks()


def _leave_old_addresses() -> None:
    """Have torch make a store of its own, at a new port.

    With ``--master_port``, torchrun keeps its store when it starts its processes again: gloo would
    wait for the addresses of those that have ended.
    """
    with socket.socket() as server:
        server.bind(("", 0))
        port = server.getsockname()[1]
    os.environ["MASTER_PORT"] = agreed("port", lambda: str(port))
    os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "False"


def _has_address(found: Launch, in_slurm: bool) -> bool:
    """Whether this process and the first one can find each other."""
    if found.environment == "SLURMEnvironment":
        return in_slurm
    return found.environment == "LSFEnvironment" or "MASTER_PORT" in os.environ


@functools.cache
def _store(found: Launch, patience: float) -> "TCPStore":
    """The key-value store by which torch's processes find each other, on rank 0 or in torchrun."""
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


def _needed(name: str) -> int:
    return _number(name, None)


def _number(name: str, default: int | None) -> int:
    value = os.environ.get(name)
    if value is None or (value == "" and default is not None):
        if default is None:
            raise KeyError(name)
        return default
    if not value.isdecimal():
        raise ValueError(f"{name} must be a whole number, got {value!r}")
    return int(value)
