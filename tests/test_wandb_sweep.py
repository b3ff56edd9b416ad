"""``conf/wandb_sweep.yaml``, started as the agent of W&B starts it."""

import pytest
import yaml
from wandb import wandb_agent
from wandb.sdk.launch.sweeps.utils import load_sweep_config

from helpers import SMALL_RUN as SMALL
from helpers import folders, wandb_records_of
from iclevr_diffusion import train
from iclevr_diffusion.cli.command import CONF
from wandb_server import forget

pytestmark = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # of wandb
SWEEP = CONF / "wandb_sweep.yaml"


@pytest.fixture
def agent_starts(home, monkeypatch):
    """The command that W&B's own agent builds for parameters, as it comes from the server."""
    commands = []

    class Process:
        def __init__(self, command, env, **_):
            commands.append(command)

    monkeypatch.setattr(wandb_agent, "AgentProcess", Process)
    for name in ("WANDB_RUN_ID", "WANDB_SWEEP_PARAM_PATH", "WANDB_DIR"):  # which the agent sets
        monkeypatch.setenv(name, str(home) if name == "WANDB_DIR" else "")
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep7")

    def start(**values):
        config = load_sweep_config(str(SWEEP))
        agent = wandb_agent.Agent(api=None, queue=None, sweep_id="sweep7")
        agent._sweep_command = config["command"]
        values = {name.replace("__", "."): {"value": value} for name, value in values.items()}
        agent._command_run({"args": values, "run_id": "run8", "program": config["program"]})
        env, python, *words = commands.pop()
        assert (env, python, words[:2]) == ("/usr/bin/env", "python", ["-m", train.__name__])
        return words[2:]

    return start


def test_each_parameter_of_the_sweep_is_a_setting_of_train(agent_starts, run):
    parameters = yaml.safe_load(SWEEP.read_text())["parameters"]
    first = {
        name.replace(".", "__"): settings.get("min", settings.get("values", [None])[-1])
        for name, settings in parameters.items()
    }
    words = agent_starts(**first)
    assert "optimizer.lr=0.0001" in words
    code, out, err = run(train, *words, "--cfg", "job")
    assert (code, err) == (0, "")
    assert "lr: 0.0001" in out


def test_values_are_taken_as_python_writes_them(agent_starts, run):
    words = agent_starts(
        optimizer__clip_norm=None, compile=False, optimizer__betas=[0.9, 0.95], name="my sweep"
    )
    assert words[-4:] == [
        "optimizer.clip_norm=None",
        "compile=False",
        "optimizer.betas=[0.9, 0.95]",
        "name=my sweep",
    ]
    code, out, err = run(train, *words, "--cfg", "job")
    assert (code, err) == (0, "")
    for line in ("  clip_norm: null", "compile: false", "  - 0.9\n  - 0.95", "name: my sweep"):
        assert line in out


def test_unknown_parameter_ends_with_one_line(agent_starts, run):
    code, _, err = run(train, *agent_starts(optimizer__lrr=0.1))
    assert code == 2
    (line,) = err.splitlines()
    assert line.startswith("error: there is no setting 'optimizer.lrr'; did you mean optimizer.lr?")


@pytest.mark.slow
def test_agents_command_trains_a_run_of_the_sweep(agent_starts, run, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    words = agent_starts(optimizer__lr=0.001, callbacks__ema__decay=0.9)
    words.remove("experiment=quickstart")  # the smallest network instead
    forget()
    code, _, err = run(train, *words, *SMALL, "trainer.max_steps=2")
    assert code == 0, err
    forget()
    (folder,) = folders("run")
    (record,) = wandb_records_of(folder, "run")
    assert (record.run_id, record.sweep_id) == ("run8", "sweep7")
    assert "optimizer" in str(wandb_records_of(folder, "config"))
