"""Lightning's cluster environment for a launcher, and a check of the number of processes."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from iclevr_diffusion.training.launchers.detect import launch
from iclevr_diffusion.training.launchers.processes import number
from iclevr_diffusion.utils.errors import UserError
from iclevr_diffusion.utils.lightning_internals import slurm_environment

if TYPE_CHECKING:
    from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment


def cluster_environment() -> "ClusterEnvironment":
    """Return Lightning's environment for the launcher.

    Raises:
        UserError: No training can start in the processes of this launcher.
    """
    from lightning.fabric.plugins import environments
    from lightning.fabric.plugins.environments.lightning import LightningEnvironment

    found = launch()
    if found is None:
        return LightningEnvironment()
    if found.refusal:
        raise UserError(found.refusal)
    if found.environment == "SLURMEnvironment":
        node_rank = number("SLURM_NODEID", found.rank // (found.per_node or found.processes or 1))
        return slurm_environment(found.processes or 1, found.local_rank, node_rank)
    try:
        made: ClusterEnvironment = getattr(environments, found.environment)()
    except (KeyError, IndexError, ValueError) as error:
        raise UserError(f"{found.what}: its variables do not fit this machine: {error}") from error
    return made


def check_processes(devices: int, nodes: int) -> None:
    """Check that as many processes were started as the settings request, ``devices`` per node.

    Raises:
        UserError: The numbers differ.
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
        node = number("NODE_RANK", 0)
        rank = number("RANK", node * devices + found.local_rank)
        if (
            node >= nodes
            or found.local_rank >= devices
            or rank != node * devices + found.local_rank
        ):
            raise UserError(f"{found.what} does not fit {asked}")


def given_devices(devices: int | str | Sequence[int]) -> int | None:
    """Return the number of devices that ``trainer.devices`` requests; None if it gives none.

    Args:
        devices: A number, or a list of device numbers, as in Lightning.
    """
    if isinstance(devices, str):
        return int(devices) if devices.isdecimal() else None
    if isinstance(devices, int):
        return devices if devices > 0 else None
    return len(devices)
