"""Launchers that start the processes of a training: torchrun, srun, jsrun, or a script.

Lightning finds them by their environment variables, but checks their numbers late or, with
``trainer.devices=1``, not at all: each process would then train alone, all in one folder. Here the
numbers are checked before a training begins, and the processes agree on their run folder.
"""

from iclevr_diffusion.training.launchers.cluster_environment import (
    check_processes,
    cluster_environment,
    given_devices,
)
from iclevr_diffusion.training.launchers.detect import (
    FIRST_PROCESS,
    is_first,
    launch,
    local_rank,
    restarts,
    torchrun_id,
)
from iclevr_diffusion.training.launchers.processes import Launch
from iclevr_diffusion.training.launchers.rendezvous import agreed, check_same, meet
from iclevr_diffusion.training.launchers.slurm import slurm_job

__all__ = [
    "FIRST_PROCESS",
    "Launch",
    "agreed",
    "check_processes",
    "check_same",
    "cluster_environment",
    "given_devices",
    "is_first",
    "launch",
    "local_rank",
    "meet",
    "restarts",
    "slurm_job",
    "torchrun_id",
]
