"""Launchers of several processes: their variables by name, and real processes of torchrun's."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lightning.pytorch.strategies import StrategyRegistry

from helpers import SMALL_RUN as SMALL
from iclevr_diffusion import evaluate, report, sample, train
from iclevr_diffusion.cli import trainer_settings
from iclevr_diffusion.training import launchers
from iclevr_diffusion.training.launchers import rendezvous
from iclevr_diffusion.utils.errors import UserError

SLURM = {"SLURM_JOB_ID": "77", "SLURM_JOB_NAME": "x", "SLURM_PROCID": "0"}
TWO = SLURM | {"SLURM_NTASKS": "2"}
STEP = {"SLURM_STEP_ID": "0", "SLURM_NTASKS": "4"}
ADDRESS = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
TORCHRUN = ADDRESS | {
    "TORCHELASTIC_RUN_ID": "none",
    "RANK": "0",
    "LOCAL_RANK": "0",
    "WORLD_SIZE": "2",
    "LOCAL_WORLD_SIZE": "2",
}
LSF = {
    "LSB_JOBID": "1",
    "LSB_DJOB_RANKFILE": "hosts",
    "JSM_NAMESPACE_LOCAL_RANK": "0",
    "JSM_NAMESPACE_RANK": "0",
    "JSM_NAMESPACE_SIZE": "2",
}
PATIENCE = 400  # seconds for a loaded machine


@pytest.fixture(autouse=True)
def _by_hand(monkeypatch):
    monkeypatch.delenv(launchers.FIRST_PROCESS, raising=False)  # a training in this process sets it
    rendezvous._store.cache_clear()


def set_all(monkeypatch, variables):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


FIT = {
    "by hand": ({}, 2, 1, "LightningEnvironment"),
    "one task of SLURM's": (SLURM | {"SLURM_NTASKS": "1"}, 2, 1, "LightningEnvironment"),
    "--ntasks alone": (TWO | STEP | {"SLURM_NTASKS": "2"}, 2, 1, "Tasks"),
    "srun with PMIx": (TWO | STEP | {"PMIX_RANK": "1", "PMI_RANK": "1"}, 4, 1, "Tasks"),
    "a rank of one process": (
        {"PMI_RANK": "0", "PALS_LOCAL_SIZE": "1"},
        2,
        1,
        "LightningEnvironment",
    ),
    "two nodes": (SLURM | STEP | {"SLURM_TASKS_PER_NODE": "2(x2)"}, 2, 2, "Tasks"),
    "another step's number": (SLURM | STEP | {"SLURM_NTASKS_PER_NODE": "8"}, 4, 1, "Tasks"),
    "a shell of srun's": (TWO | STEP | {"SLURM_JOB_NAME": "bash"}, 2, 1, "LightningEnvironment"),
    "a shell of salloc's": (TWO | {"SLURM_JOB_NAME": "interactive"}, 1, 1, "LightningEnvironment"),
    "srun below salloc": (
        SLURM | STEP | {"SLURM_JOB_NAME": "interactive", "SLURM_STEP_NUM_TASKS": "4"},
        4,
        1,
        "Tasks",
    ),
    "torchrun": (TORCHRUN, 2, 1, "TorchElasticEnvironment"),
    "torchrun on two nodes": (
        TORCHRUN | {"LOCAL_WORLD_SIZE": "1"},
        1,
        2,
        "TorchElasticEnvironment",
    ),
    "torchrun within SLURM": (TORCHRUN | TWO | STEP, 2, 1, "TorchElasticEnvironment"),
    "Kubeflow": (ADDRESS | {"WORLD_SIZE": "2", "RANK": "1"}, 1, 2, "KubeflowEnvironment"),
    "a script for each process": (
        ADDRESS | {"WORLD_SIZE": "2", "LOCAL_RANK": "1"},
        2,
        1,
        "LightningEnvironment",
    ),
    "a script for each node": (ADDRESS | {"NODE_RANK": "1"}, 2, 2, "LightningEnvironment"),
    "what Lightning started": (
        ADDRESS | {"WORLD_SIZE": "2", "LOCAL_RANK": "1", launchers.FIRST_PROCESS: "1"},
        2,
        1,
        "LightningEnvironment",
    ),
}


@pytest.mark.parametrize("case", FIT)
def test_as_many_processes_as_asked_for_are_taken(monkeypatch, case):
    variables, devices, nodes, environment = FIT[case]
    set_all(monkeypatch, variables)
    launchers.check_processes(devices, nodes)
    assert type(launchers.cluster_environment()).__name__ == environment


MISFIT = {
    "a rank too large": (
        {"WORLD_SIZE": "2", "RANK": "5", "LOCAL_RANK": "0"} | ADDRESS,
        2,
        1,
        "rank 5 is not below the 2 processes",
    ),
    "jupyter": (TWO | {"SLURM_JOB_NAME": "jupyter"}, 1, 1, "asked for 2 tasks (SLURM_NTASKS=2)"),
    "two copies": (TWO | STEP, 1, 1, "set trainer.devices=4 trainer.num_nodes=1, or"),
    "no srun": (TWO, 1, 1, "set trainer.devices=2 trainer.num_nodes=1 and start it with srun"),
    "salloc's shell as a step": (TWO | {"SLURM_STEP_ID": "4294967290"}, 1, 1, "start it with srun"),
    "a shell of salloc's with a name": (
        {"SLURM_JOB_ID": "77", "SLURM_JOB_NAME": "mine", "SLURM_NTASKS": "2"},
        2,
        1,
        "and this process is not one of them: start the command with srun",
    ),
    "per node": (SLURM | {"SLURM_NTASKS_PER_NODE": "4"}, 1, 1, "(SLURM_NTASKS_PER_NODE=4)"),
    "other nodes": (
        SLURM | STEP | {"SLURM_TASKS_PER_NODE": "2(x2)"},
        4,
        1,
        "set trainer.devices=2 trainer.num_nodes=2, or ask for --nodes=1 --ntasks-per-node=4",
    ),
    "uneven": (SLURM | STEP | {"SLURM_TASKS_PER_NODE": "3,1"}, 2, 2, "3, 1 of them on each"),
    "a second task below bash": (
        TWO | {"SLURM_JOB_NAME": "bash", "SLURM_PROCID": "1"},
        1,
        1,
        "asked for 2 tasks",
    ),
    "no number": (SLURM | {"SLURM_NTASKS": "many"}, 1, 1, "SLURM_NTASKS must be a whole number"),
    "one task for two nodes": (SLURM | {"SLURM_NTASKS": "1"}, 1, 2, "needs a launcher that"),
    "two nodes by hand": ({}, 1, 2, "torchrun --nnodes=2 --nproc_per_node=1"),
    "torchrun": (TORCHRUN, 1, 1, "torchrun started 2 processes (2 on this node), but"),
    "torchrun, uneven": (TORCHRUN | {"WORLD_SIZE": "4"}, 1, 4, "set trainer.devices=2"),
    "torchrun, incomplete": ({"TORCHELASTIC_RUN_ID": "1"}, 1, 1, "WORLD_SIZE is not set"),
    "mpirun": ({"OMPI_COMM_WORLD_SIZE": "2"}, 2, 1, "with torchrun --nproc_per_node=…"),
    "MPICH": ({"PMI_SIZE": "3"}, 3, 1, "PMI_SIZE=3: processes that mpirun started"),
    "MVAPICH": ({"MVP_COMM_WORLD_SIZE": "2"}, 1, 1, "MVP_COMM_WORLD_SIZE=2: processes that mpirun"),
    "horovodrun": ({"HOROVOD_SIZE": "2"}, 1, 1, "HOROVOD_SIZE=2: processes that horovodrun"),
    "a second rank without a number": ({"PMIX_RANK": "1"}, 1, 1, "PMIX_RANK=1: processes that mpi"),
    "a second rank of Intel's": ({"MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"}, 2, 1, "mpirun"),
    "Flux": ({"FLUX_JOB_SIZE": "2", "FLUX_TASK_RANK": "0"}, 2, 1, "that flux run started cannot"),
    "PALS": ({"PALS_LOCAL_SIZE": "2", "PALS_RANKID": "0"}, 2, 1, "PALS_LOCAL_SIZE=2: processes"),
    "PALS, one on each node": ({"PALS_LOCAL_SIZE": "1", "PALS_RANKID": "1"}, 1, 2, "that PALS st"),
    "SLURM_NPROCS alone": (SLURM | {"SLURM_NPROCS": "2"}, 1, 1, "for 2 tasks (SLURM_NPROCS=2, "),
    "a step's number alone": (
        SLURM | {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2"},
        1,
        1,
        "SLURM was asked for 2 tasks",
    ),
    "a second task without a number": (SLURM | {"SLURM_PROCID": "1"}, 1, 1, "rank 1 is not below"),
    "mpirun within SLURM": (TWO | {"OMPI_COMM_WORLD_SIZE": "2"}, 2, 1, "that mpirun started"),
    "LSF": (LSF, 1, 1, "jsrun started 2 processes"),
    "Kubeflow": (ADDRESS | {"WORLD_SIZE": "2", "RANK": "1"}, 1, 1, "trainer.num_nodes=2, or"),
    "no address": ({"WORLD_SIZE": "2", "LOCAL_RANK": "1"}, 2, 1, "MASTER_ADDR is missing"),
    "a node too many": (ADDRESS | {"NODE_RANK": "1"}, 2, 1, "NODE_RANK=1 in the environment does"),
    "the first of one": ({"LOCAL_RANK": "0"}, 2, 1, "or start 2, or unset these"),
}


@pytest.mark.parametrize("case", MISFIT)
def test_another_number_of_processes_is_refused_in_one_line(monkeypatch, case):
    variables, devices, nodes, line = MISFIT[case]
    set_all(monkeypatch, variables)
    with pytest.raises(UserError) as error:
        launchers.check_processes(devices, nodes)
    assert line in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "variables", [TWO | {"SLURM_JOB_NAME": "jupyter"}, TORCHRUN | ADDRESS, {"PMI_SIZE": "2"}]
)
def test_training_is_refused_before_it_writes_anything(run, monkeypatch, tmp_path, variables):
    set_all(monkeypatch, variables | {"TORCHELASTIC_USE_AGENT_STORE": "False"})
    if "MASTER_PORT" in variables:
        monkeypatch.setenv("MASTER_PORT", str(free_port()))
    code, _, err = run(train, *SMALL, "trainer.devices=1")
    assert code == 2
    assert len(err.splitlines()) == 1
    assert "Traceback" not in err
    assert not list(tmp_path.iterdir())


def test_missing_tasks_of_slurm_are_noticed(monkeypatch):
    set_all(monkeypatch, TWO | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())})
    monkeypatch.setattr(rendezvous, "SHORT_PATIENCE", 0.1)
    launchers.check_processes(2, 1)
    with pytest.raises(UserError, match=r"not found each other within 0\.1 s: start the command"):
        launchers.meet()


@pytest.mark.parametrize("program", [sample, evaluate, report])
@pytest.mark.parametrize("variables", [TORCHRUN, SLURM | STEP, {"OMPI_COMM_WORLD_SIZE": "2"}])
def test_commands_for_one_process_refuse_several(run, monkeypatch, tmp_path, program, variables):
    set_all(monkeypatch, variables)
    words = {sample: "labels=[red cube]", evaluate: "seeds=1", report: "."}
    code, _, err = run(program, words[program])
    assert code == 2
    assert "this command runs in one process: start it without a launcher" in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("launcher", ["basic", "joblib"])
def test_sweep_in_several_processes_is_refused_in_one_line(run, monkeypatch, tmp_path, launcher):
    set_all(monkeypatch, TORCHRUN)
    code, _, err = run(train, "-m", *SMALL, "seed=0,1", f"hydra/launcher={launcher}")
    assert code == 2
    assert err.startswith("error: torchrun started 2 processes")
    assert len(err.splitlines()) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", StrategyRegistry.available_strategies())
def test_every_strategy_of_lightning_is_used_or_refused_by_name(name):
    if name in trainer_settings.STRATEGIES:
        assert trainer_settings.strategy(name.upper(), several=True, gan=False) == name
        return
    with pytest.raises(UserError) as error:
        trainer_settings.strategy(name, several=True, gan=False)
    assert str(error.value).startswith(f"trainer.strategy={name} ")
    assert str(error.value).endswith("use trainer.strategy=ddp")


def test_first_process_chooses_and_the_others_learn(monkeypatch):
    set_all(monkeypatch, TORCHRUN | {"MASTER_PORT": str(free_port())})
    assert launchers.agreed("folder", lambda: "a") == "a"

    def fail():
        raise UserError("no such folder")

    with pytest.raises(UserError, match="no such folder"):
        launchers.agreed("resumed", fail)
    monkeypatch.setenv("RANK", "1")
    assert launchers.agreed("folder", pytest.fail) == "a"
    with pytest.raises(UserError, match="no such folder"):
        launchers.agreed("resumed", pytest.fail)
    with pytest.raises(UserError, match="folder: b, but a in the first process; share"):
        launchers.check_same("folder", "b", "share it")
    monkeypatch.setattr(rendezvous, "PATIENCE", 0.1)
    with pytest.raises(UserError, match=r"the first process does not answer at 127\.0\.0\.1"):
        launchers.agreed("another", pytest.fail)


def free_port():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def start(folder, words, **variables):
    folder.mkdir(exist_ok=True)
    return subprocess.Popen(
        [sys.executable, *words],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", **variables},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(*processes):
    outputs = [process.communicate(timeout=PATIENCE)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), outputs


def processes_of(run):
    assert json.loads((run / "status.json").read_text())["status"] == "finished"
    return json.loads((run / "summary.json").read_text())["machine"]["processes"]


def torchrun(*words):
    return ["-m", "torch.distributed.run", *words]


@pytest.mark.slow
def test_torchruns_of_two_nodes_train_in_one_folder_each_time(tmp_path):
    for count in (1, 2):  # both have the id that torchrun gives where none is given
        port, nodes = free_port(), []
        for rank in (0, 1):
            words = ["--nnodes=2", "--nproc_per_node=1", f"--node_rank={rank}"]
            words += ["--master_addr=127.0.0.1", f"--master_port={port}"]
            words += ["-m", "iclevr_diffusion.train", *SMALL]
            words += ["trainer.num_nodes=2", "trainer.devices=1", "trainer.max_steps=1"]
            nodes.append(start(tmp_path / "run", torchrun(*words)))
        finish(*nodes)
        runs = list((tmp_path / "run" / "outputs" / "run").iterdir())
        assert len(runs) == count
        assert [processes_of(run) for run in runs] == [2] * count


FAILS_ONCE = """
import os
from iclevr_diffusion import train
from iclevr_diffusion.training.callbacks.checkpoint import Checkpoints

save = Checkpoints.on_train_batch_start

def on_train_batch_start(self, trainer, *batch):
    save(self, trainer, *batch)
    restarts = os.environ["TORCHELASTIC_RESTART_COUNT"]
    with open("steps", "a") as file:
        print(restarts, trainer.global_step, file=file)
    if trainer.global_step == 2 and restarts == "0":
        os._exit(3)

Checkpoints.on_train_batch_start = on_train_batch_start
train.main()
"""


@pytest.mark.slow
def test_torchrun_that_starts_again_continues_in_its_folder(tmp_path):
    script = tmp_path / "fails_once.py"
    script.write_text(FAILS_ONCE)
    words = ["--nproc_per_node=2", "--max-restarts=1", f"--master_port={free_port()}", str(script)]
    words += [*SMALL, "data.batch_size=2", "trainer.devices=2", "trainer.max_steps=3"]
    words += ["callbacks.checkpoint.every_n_steps=1", "trainer.log_every_n_steps=1"]
    finish(start(tmp_path / "run", torchrun(*words)))
    (run,) = (tmp_path / "run" / "outputs" / "run").iterdir()
    assert processes_of(run) == 2
    last = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["progress"]["steps"] == 3
    steps = (tmp_path / "run" / "steps").read_text().splitlines()
    assert {line for line in steps if line.startswith("1 ")} == {"1 2"}  # not the first two again


@pytest.mark.slow
@pytest.mark.parametrize("tasks", [1, 2])
def test_tasks_of_slurm_train_together(tmp_path, tasks):
    words = ["-m", "iclevr_diffusion.train", *SMALL, "data.batch_size=2"]
    words += ["trainer.devices=2", "trainer.max_steps=1"]
    variables = SLURM | {"SLURM_NTASKS": str(tasks), "SLURM_STEP_ID": "0"}
    variables |= {"MASTER_PORT": str(free_port())}
    finish(*(start(tmp_path / "run", words, **(variables | place(rank))) for rank in range(tasks)))
    (run,) = (tmp_path / "run" / "outputs" / "run").iterdir()
    assert run == Path(tmp_path / "run" / "outputs" / "run" / "job_77_0")
    assert processes_of(run) == 2


def place(rank):
    return {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank), "SLURM_NODEID": "0"}
