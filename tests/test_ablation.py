"""The programs of the ablation, on tiny weights and made-up runs."""

import json
from types import SimpleNamespace

import pytest
import torch
from hydra import compose, initialize_config_dir

from iclevr_diffusion.cli.command import CONF
from iclevr_diffusion.diffusion.guidance import Denoiser
from iclevr_diffusion.diffusion.prediction import find_prediction
from iclevr_diffusion.diffusion.schedule import NoiseSchedule


class KnowsTheImage(torch.nn.Module):
    takes_positions = False

    def __init__(self, x0):
        super().__init__()
        self.x0 = x0

    def forward(self, x_t, timesteps, labels, positions=None):
        return self.x0[: len(x_t)] + 0.1


def test_errors_of_x0_are_those_of_the_network_at_the_nearest_noise_levels(program):
    x0_errors = program("x0_errors")
    x0 = torch.zeros(2, 3, 4, 4)
    denoiser = Denoiser(KnowsTheImage(x0), NoiseSchedule("linear"), find_prediction("sample"))
    found = x0_errors.errors(denoiser, x0, torch.zeros(2, 24), None)
    assert [entry["error"] for entry in found] == pytest.approx([0.01] * len(x0_errors.RATIOS))
    assert [entry["ratio"] for entry in found] == pytest.approx(x0_errors.RATIOS, rel=0.1)


def test_differences_are_paired_by_seed_and_skip_what_one_of_two_lacks(program):
    ablation_tables = program("ablation_tables")
    one = {0: {"accuracy": 0.9, "auc": 0.5}, 1: {"accuracy": 0.8}, 2: {"accuracy": 0.1}}
    other = {0: {"accuracy": 0.8, "auc": 0.6}, 1: {"accuracy": 0.6}}
    found = ablation_tables.paired(one, other)
    assert found["accuracy"].per_seed == pytest.approx([0.1, 0.2])
    assert found["auc"].per_seed == pytest.approx([-0.1])


def test_cells_differ_in_the_schedule_or_in_the_prediction(program):
    ablation_tables = program("ablation_tables")
    cells = ["cosine_epsilon", "cosine_sample", "linear_epsilon", "flow"]
    assert ablation_tables.pairs(cells) == [
        ("cosine_epsilon", "linear_epsilon"),
        ("cosine_epsilon", "cosine_sample"),
        ("flow", "cosine_epsilon"),
        ("flow", "cosine_sample"),
        ("flow", "linear_epsilon"),
    ]


def test_unknown_cell_is_refused_with_those_there_are(program, capsys):
    ablation = program("ablation")
    arguments = SimpleNamespace(group="without_positions", steps=2, cells=["cosine_v"])
    with pytest.raises(SystemExit) as ended:
        ablation.chosen(arguments)
    assert ended.value.code == 2
    assert "no such cell: cosine_v; there are cosine_epsilon, " in capsys.readouterr().err


@pytest.mark.parametrize("group", ["positions", "without_positions"])
def test_cells_show_no_published_figure_of_another_system(program, group):
    ablation = program("ablation")
    arguments = SimpleNamespace(group=group, steps=2)
    for cell in ablation.group(arguments):
        with initialize_config_dir(str(CONF), version_base="1.3"):
            assert compose("train", overrides=list(cell.settings)).published is None


@pytest.mark.parametrize(
    ("errors", "next_one"),
    [
        ({0.5: 0.3, 1: 0.1, 2: 0.2}, None),
        ({0.5: 0.3, 1: 0.2, 2: 0.1}, 4),
        ({0.5: 0.1, 1: 0.2, 2: 0.3}, 0.25),
        ({0.5: 0.5, 1: 0.4, 2: 0.3, 4: 0.2, 8: 0.1}, None),
        ({0.5: 0.2, 1: 0.1}, None),
    ],
)
def test_search_goes_on_while_the_best_learning_rate_is_an_end(program, errors, next_one):
    assert program("ablation").next_multiplier(errors) == next_one


def test_search_finds_the_errors_beside_the_logs(program, tmp_path):
    ablation = program("ablation")
    cell = ablation.Cell("flow", (), search=True)
    for multiplier, errors in (("0.5", (0.1, 0.4)), ("2", (0.3, 0.3))):
        search = tmp_path / "flow" / "search"
        trained = search / multiplier / "flow" / "2026-01-01"
        trained.mkdir(parents=True)
        (search / f"{multiplier}.log").write_text("a log")
        (trained / "config.yaml").write_text("seed: 0")
        entries = [{"ratio": 1, "error": error} for error in errors]
        (trained / "x0_errors.json").write_text(json.dumps(entries))
    assert ablation.search_errors(tmp_path, cell) == pytest.approx({0.5: 0.2, 2.0: 0.3})
