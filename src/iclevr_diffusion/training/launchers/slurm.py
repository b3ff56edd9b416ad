"""SLURM: the tasks of a job or step, and its name."""

import os
import re

from iclevr_diffusion.training.launchers.processes import Launch, number

INTERACTIVE = ("bash", "interactive")  # names of SLURM jobs in which Lightning ignores SLURM
SPECIAL_STEPS = 0xFFFFFFF0  # step ids from here on are batch scripts and the shell of salloc


def slurm() -> Launch | None:
    """Tasks of SLURM; None for a single one, which lets Lightning start the other processes."""
    per_node = number("SLURM_NTASKS_PER_NODE", 1)
    nodes = number("SLURM_STEP_NUM_NODES", number("SLURM_NNODES", number("SLURM_JOB_NUM_NODES", 0)))
    of_step = number("SLURM_STEP_NUM_TASKS", per_node * max(nodes, 1))
    tasks = number("SLURM_NTASKS", number("SLURM_NPROCS", of_step))
    rank = number("SLURM_PROCID", 0)
    if (tasks <= 1 and rank == 0) or _is_by_hand():
        return None
    layout = _layout(tasks)
    if not layout and nodes and tasks % nodes == 0:
        layout = [tasks // nodes] * nodes
    if not layout and tasks % per_node == 0 and "SLURM_NTASKS_PER_NODE" in os.environ:
        layout = [per_node] * (tasks // per_node)
    said = _said("SLURM_NTASKS", "SLURM_NTASKS_PER_NODE", "SLURM_NNODES")
    said = said or _said("SLURM_NPROCS", "SLURM_STEP_NUM_TASKS", "SLURM_PROCID")
    what = f"SLURM was asked for {tasks} task{'s' * (tasks > 1)} ({said})"
    refusal = ""
    if len(set(layout)) > 1:
        refusal = f"{what}, {', '.join(map(str, layout))} of them on each: ask for"
        refusal += " --ntasks-per-node=…, the same number on each node"
    elif "SLURM_PROCID" not in os.environ:
        refusal = f"{what}, and this process is not one of them: start the command with srun, or"
        refusal += " ignore SLURM with SLURM_JOB_NAME=interactive"
    return Launch(
        what,
        "SLURMEnvironment",
        rank,
        number("SLURM_LOCALID", rank % layout[0] if layout else rank),
        tasks,
        layout[0] if layout else None,
        "ask for --nodes={nodes} --ntasks-per-node={devices} (--cpus-per-task for more processor"
        " cores); to ignore SLURM, set SLURM_JOB_NAME=interactive",
        started=_is_a_step() or rank > 0,
        refusal=refusal,
    )


def _said(*names: str) -> str:
    return ", ".join(f"{name}={os.environ[name]}" for name in names if name in os.environ)


def slurm_job() -> str | None:
    """Return a name for this SLURM job, the same after a requeue; None outside of SLURM."""
    job = os.environ.get("SLURM_ARRAY_JOB_ID") or os.environ.get("SLURM_JOB_ID")
    if job is None or _is_by_hand():
        return None
    parts = [job, os.environ.get("SLURM_ARRAY_TASK_ID"), os.environ.get("SLURM_STEP_ID")]
    return "_".join(["job", *(part for part in parts if part)])


def _is_by_hand() -> bool:
    """Return whether this is the shell of an interactive job, not a task that srun started."""
    name = os.environ.get("SLURM_JOB_NAME")
    if name not in INTERACTIVE or number("SLURM_PROCID", 0) > 0:
        return False
    # Jobs of salloc have this name, and srun may start tasks in them.
    return not (name == "interactive" and _is_a_step() and number("SLURM_STEP_NUM_TASKS", 1) > 1)


def _is_a_step() -> bool:
    """Return whether srun started this process, not a shell in which it runs."""
    step = number("SLURM_STEP_ID", SPECIAL_STEPS)
    return step < SPECIAL_STEPS and "SLURM_PTY_PORT" not in os.environ


def _layout(tasks: int) -> list[int]:
    """Return the number of tasks on each node, from ``2(x3),1``; empty if unknown."""
    for name in ("SLURM_STEP_TASKS_PER_NODE", "SLURM_TASKS_PER_NODE"):
        layout: list[int] = []
        for part in os.environ.get(name, "").split(","):
            match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)
            layout += [int(match[1])] * int(match[2] or 1) if match else []
        if sum(layout) == tasks:
            return layout
    return []
