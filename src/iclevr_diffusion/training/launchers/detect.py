"""Detection of the launcher that started this process, from its environment variables."""

import os
import socket
from dataclasses import replace

from iclevr_diffusion.training.launchers.processes import Launch, number
from iclevr_diffusion.training.launchers.slurm import slurm
from iclevr_diffusion.utils.errors import UserError

FIRST_PROCESS = "ICLEVR_DIFFUSION_FIRST_PROCESS"  # its id, for processes that Lightning starts
# Launchers whose variables Lightning does not read: the name, the variable of the number of
# processes (of all, or on this node), and that of the rank. Some set only one of the two.
OTHER_LAUNCHERS = (
    ("mpirun", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
    ("mpirun", "MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_RANK"),
    ("mpirun", "MVP_COMM_WORLD_SIZE", "MVP_COMM_WORLD_RANK"),
    ("mpirun", "PMI_SIZE", "PMI_RANK"),
    ("mpirun", "PMIX_SIZE", "PMIX_RANK"),
    ("mpirun", "MPI_LOCALNRANKS", "MPI_LOCALRANKID"),
    ("mpirun", "JSM_NAMESPACE_SIZE", "JSM_NAMESPACE_RANK"),
    ("horovodrun", "HOROVOD_SIZE", "HOROVOD_RANK"),
    ("flux run", "FLUX_JOB_SIZE", "FLUX_TASK_RANK"),
    ("PALS", "PALS_LOCAL_SIZE", "PALS_RANKID"),
)
OF_SRUN = ("PMI_SIZE", "PMIX_SIZE")  # srun sets the variables of these, too


def launch() -> Launch | None:
    """Return the launcher of this process; None if it was started by hand or by Lightning."""
    for find in (_torchrun, _lsf, _other, slurm, _variables):
        try:
            found = find()
        except (KeyError, ValueError) as error:
            what = f"{error.args[0]} is not set" if isinstance(error, KeyError) else str(error)
            return Launch("", "", started=False, refusal=f"launcher's variables: {what}")
        if found is not None:
            return _with_valid_rank(found)
    return None


def _with_valid_rank(found: Launch) -> Launch:
    if found.refusal or found.processes is None or found.rank < found.processes:
        return found
    wrong = f"{found.what}: rank {found.rank} is not below the {found.processes} processes"
    return replace(found, refusal=wrong)


def is_first() -> bool:
    """Return whether this is the first process, among those that Lightning starts, too."""
    found = launch()
    if found is not None:
        return found.rank == 0
    return all(os.environ.get(name, "0") == "0" for name in ("LOCAL_RANK", "NODE_RANK"))


def local_rank() -> int:
    """Return the rank of this process on its node."""
    found = launch()
    return found.local_rank if found is not None else number("LOCAL_RANK", 0)


def restarts() -> int:
    """Return how often SLURM or torchrun has restarted this command.

    Raises:
        UserError: Their variables are not numbers.
    """
    try:
        return number("SLURM_RESTART_COUNT", 0) + number("TORCHELASTIC_RESTART_COUNT", 0)
    except ValueError as error:
        raise UserError(f"launcher's variables: {error}") from error


def torchrun_id() -> str | None:
    """Return a name for this torchrun, shared by its restarts; None outside of torchrun."""
    run = os.environ.get("TORCHELASTIC_RUN_ID")
    return None if run is None else f"{run} of process {os.getppid()} on {socket.gethostname()}"


def _torchrun() -> Launch | None:
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return None
    processes, per_node = number("WORLD_SIZE"), number("LOCAL_WORLD_SIZE")
    return Launch(
        f"torchrun started {processes} process{'es' * (processes > 1)} ({per_node} on this node)",
        "TorchElasticEnvironment",
        number("RANK"),
        number("LOCAL_RANK"),
        processes,
        per_node,
        "torchrun --nnodes={nodes} --nproc_per_node={devices}",
    )


def _lsf() -> Launch | None:
    needed = ("LSB_JOBID", "LSB_DJOB_RANKFILE", "JSM_NAMESPACE_LOCAL_RANK", "JSM_NAMESPACE_SIZE")
    if not all(name in os.environ for name in needed):
        return None
    processes = number("JSM_NAMESPACE_SIZE")
    return Launch(
        f"jsrun started {processes} processes (JSM_NAMESPACE_SIZE)",
        "LSFEnvironment",
        number("JSM_NAMESPACE_RANK"),
        number("JSM_NAMESPACE_LOCAL_RANK"),
        processes,
        advice="jsrun --np={total}",
    )


def _other() -> Launch | None:
    """Return processes of mpirun, and of launchers whose variables Lightning does not read."""
    for launcher, size, rank_name in OTHER_LAUNCHERS:
        if size in OF_SRUN and "SLURM_STEP_ID" in os.environ:
            continue
        rank = number(rank_name, 0)
        processes = max(number(size, 1), rank + 1)
        if processes > 1:
            name = size if size in os.environ else rank_name
            variable = f"{name}={os.environ[name]}"
            return Launch(
                f"{launcher} ({variable})",
                "",
                rank,
                rank,
                processes,
                refusal=f"{variable}: processes that {launcher} started cannot train together here;"
                " start them with srun, or with torchrun --nproc_per_node=…",
            )
    return None


def _variables() -> Launch | None:
    """Return processes started by a script with the variables of ``torch.distributed``."""
    ranks = [name for name in ("RANK", "NODE_RANK", "LOCAL_RANK") if name in os.environ]
    names = ["WORLD_SIZE"] * ("WORLD_SIZE" in os.environ) + ranks
    if not names or FIRST_PROCESS in os.environ:
        return None
    processes = number("WORLD_SIZE", 0) or None
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    alone = processes in (None, 1) and not any(number(name, 0) for name in ranks)
    if alone and missing:
        if names == ["NODE_RANK"]:
            return None
        processes = 1
    what = f"{', '.join(f'{name}={os.environ[name]}' for name in names)} in the environment"
    one_a_node = "RANK" in names and not {"LOCAL_RANK", "NODE_RANK"} & set(names)
    local = number("LOCAL_RANK", 0)
    rank = number("RANK", local + number("NODE_RANK", 0))
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
