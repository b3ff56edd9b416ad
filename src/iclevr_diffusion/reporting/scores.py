"""The scores of a run: of an evaluation where there is one, and those from its training."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from iclevr_diffusion.reporting.run_files import RunFiles, number, words
from iclevr_diffusion.utils.errors import UserError

EVALUATION = "evaluation/evaluation.json"
MEASURES = ("accuracy", "exact_match", "extra")


@dataclass(frozen=True)
class Scores:
    """What one evaluator read in what one network drew.

    evaluator: its name.
    drawn: the sampler, its steps and the guidance scale, in words.
    conditions: whose condition lists these are, in words.
    values: by list and measure, a value for each draw.
    by_step: by list, the accuracy after each denoising step of the first draw.
    """

    evaluator: str
    drawn: str
    conditions: str
    values: Mapping[str, Mapping[str, list[float]]]
    by_step: Mapping[str, list[float]] = field(default_factory=dict)

    @property
    def how(self) -> tuple[str, str, str]:
        """What two scores have to have in common to be averaged."""
        return self.evaluator, self.drawn, self.conditions

    @property
    def draws(self) -> int:
        return max(len(v) for measures in self.values.values() for v in measures.values())


def scores_of_evaluation(
    files: RunFiles, summary: dict[str, Any], config: dict[str, Any]
) -> Scores | None:
    """Those that ``evaluate out=<run>/evaluation`` left, of the run's own way to draw."""
    content = files.json(EVALUATION)
    if content is None:
        return None
    known = words(summary, "weights", "sha256")
    if known and words(content, "weights_sha256") != known:
        files.problems.append(f"{EVALUATION}: of other weights than the run's; evaluate it again")
        return None
    try:
        setting = _chosen(content["settings"], config)
        lists = {name: setting["lists"][name] for name in setting["lists"]}
        values = {
            name: {m: _numbers(score[m]["each"]) for m in MEASURES if m in score}
            for name, score in lists.items()
        }
        origins = {name: words(content["lists"], name) for name in ("test", "new_test")}
        scores = Scores(
            words(content, "evaluator"),
            _drawn(
                words(setting, "sampler"),
                number(setting, "steps"),
                number(setting, "guidance_scale"),
                words(setting, "sampler") == "generator",
                words(setting, "layout"),
            ),
            ", ".join(dict.fromkeys(origin for origin in origins.values() if origin)),
            values,
            {name: _numbers(score.get("by_step", [])) for name, score in lists.items()},
        )
        return scores if scores.draws else None
    except (KeyError, TypeError, ValueError, AttributeError, IndexError):
        files.problems.append(f"{EVALUATION}: not what an evaluation leaves")
        return None


def scores_of_training(
    files: RunFiles, summary: dict[str, Any], config: dict[str, Any]
) -> Scores | None:
    """The one draw by which the scoring callback described the weights that it kept."""
    try:
        kept = summary.get("weights", {}).get("scores", {})
        values: dict[str, dict[str, list[float]]] = {}
        for key, value in kept.items():
            _, name, measure = key.split("/")
            if measure in MEASURES:
                values.setdefault(name, {})[measure] = _numbers([value])
    except (TypeError, ValueError, AttributeError, UserError):
        files.problems.append("summary.json: its scores are not what a training leaves")
        return None
    if not values:
        return None
    return Scores(
        words(summary, "evaluator"),
        _drawn(
            words(config, "callbacks", "scoring", "sampler", "name"),
            number(config, "callbacks", "scoring", "sampler", "steps"),
            number(config, "guidance", "scale"),
            words(config, "net", "latent") != "",
            _layout_of_training(config),
        ),
        "this project's own" if words(summary, "data") == "synthetic" else "the course's",
        values,
    )


def _chosen(settings: list[Any], config: dict[str, Any]) -> dict[str, Any]:
    """The setting that draws as the run's own config says, else the first."""
    own = (words(config, "sampler", "name"), number(config, "sampler", "steps"))
    scale = number(config, "guidance", "scale")
    for setting in settings:
        drawn = (words(setting, "sampler"), number(setting, "steps"))
        if (*drawn, number(setting, "guidance_scale")) == (*own, scale):
            return dict(setting)
    return dict(settings[0])


def _layout_of_training(config: dict[str, Any]) -> str:
    """How the scoring callback sampled positions; empty if the network takes none."""
    is_told = words(config, "net", "places").lower() == "true"
    if not is_told and not words(config, "net", "data_std") and not words(config, "net", "switch"):
        return ""
    return words(config, "callbacks", "scoring", "layout") or "clear"  # the only one at first


def _drawn(name: str, steps: float | None, scale: float | None, by_a_gan: bool, layout: str) -> str:
    if by_a_gan:
        return "one forward pass"
    if not name or steps is None:
        return "it is not known how"
    guidance = "" if scale is None else f", guidance {scale:g}"
    return f"{name} {steps:.0f} steps{guidance}" + (f", layout {layout}" if layout else "")


def _numbers(values: list[Any]) -> list[float]:
    """The values, all of which have to be finite numbers."""
    found = [number({"": value}, "") for value in values]
    if None in found:
        raise ValueError("a value is no number")
    return [value for value in found if value is not None]
