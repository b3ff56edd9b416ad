"""Generate and score images during training, and keep the best checkpoint."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import lightning as L
import torch
from torch import Tensor

from iclevr_diffusion.data.conditions import CHOOSE_BY
from iclevr_diffusion.data.labels import LabelSet
from iclevr_diffusion.diffusion.guidance import Guidance
from iclevr_diffusion.diffusion.samplers import Sampler
from iclevr_diffusion.evaluation.classifier import Evaluator
from iclevr_diffusion.evaluation.classifier_output import is_exact, shown_names
from iclevr_diffusion.evaluation.image_grid import LEGEND, caption, grid, save_image
from iclevr_diffusion.evaluation.metric_collection import EvaluationMetrics, second_opinion
from iclevr_diffusion.models.layout import CLEAR
from iclevr_diffusion.training.callbacks.checkpoint import (
    is_last_epoch,
    newest_checkpoint,
    save_logs,
)
from iclevr_diffusion.training.callbacks.ema import averaged_net
from iclevr_diffusion.training.callbacks.nan_guard import last_good
from iclevr_diffusion.training.callbacks.preemption import stop_if_signalled
from iclevr_diffusion.training.diffusion import DiffusionModule
from iclevr_diffusion.training.gan import GANModule
from iclevr_diffusion.training.loggers import (
    ScoredImages,
    alert,
    log_checkpoint,
    log_image,
    log_scored_images,
)
from iclevr_diffusion.utils.checks import check_at_least
from iclevr_diffusion.utils.errors import TrainingError
from iclevr_diffusion.utils.lightning_internals import autocast
from iclevr_diffusion.utils.rng import image_generators

CHOICE = f"score/{CHOOSE_BY}"  # the name of the sum by which the best checkpoint is chosen
COLLAPSED = 1 / 255  # standard deviation over all images, of the pixel that varies most

log = logging.getLogger(__name__)


def _merit(scores: Mapping[str, float]) -> float:
    """Return the sum by which the best checkpoint is chosen."""
    measures = (f"score/{CHOOSE_BY}/{measure}" for measure in ("accuracy", "exact_match"))
    return sum(scores.get(measure, 0.0) for measure in measures)


class Scoring(L.Callback):
    """Samples each condition list with the averaged network, and scores the images.

    This happens every n epochs and after the last one, with the same noise each time, so that
    images of different epochs can be compared. Each process generates and scores its share. All
    metrics of :class:`~iclevr_diffusion.evaluation.metric_collection.EvaluationMetrics` are logged
    as ``score/<list>/<metric>``; the first process writes ``sample_<list>_<epoch>.png``.

    The checkpoint with the highest sum of accuracy and exact match on the list ``validation`` is
    kept: accuracy alone says little once it is near 1, exact match alone while it is near 0. Test
    lists are not used for this choice: that would be training on them.

    Args:
        conditions: Condition lists by name.
        evaluator: Classifies the images; its vocabulary is that of the conditions.
        sampler: The sampler; None for a GAN.
        guidance: Classifier-free guidance; None for a GAN.
        every_n_epochs: 0 for only after the last epoch.
        folder: Folder for the image grids.
        best: Path of the best checkpoint; None to keep none.
        seed: Seed of the noise.
        layout: How positions are sampled: ``clear`` or ``data``.
        second: Another evaluator, whose accuracy is logged as ``score/<list>/second_accuracy`` and
            not used for the choice.
        max_conditions: Maximum number of conditions per list; None for all.

    Raises:
        ValueError: ``every_n_epochs`` is negative, or ``max_conditions`` below 1.
        TrainingError: An image contains NaN or infinity.
        Stopped: A signal was received; see
            :class:`~iclevr_diffusion.training.callbacks.preemption.StopOnSignal`.
    """

    def __init__(
        self,
        conditions: Mapping[str, Sequence[LabelSet]],
        evaluator: Evaluator,
        sampler: Sampler | None,
        guidance: Guidance | None,
        every_n_epochs: int,
        folder: Path,
        best: Path | None = None,
        seed: int = 0,
        layout: str = CLEAR,
        second: Evaluator | None = None,
        max_conditions: int | None = None,
    ) -> None:
        if max_conditions is not None:
            check_at_least("max_conditions", max_conditions, 1)
            conditions = {name: sets[:max_conditions] for name, sets in conditions.items()}
        check_at_least("every_n_epochs", every_n_epochs, 0)
        self.conditions = conditions
        self.max_conditions = max_conditions
        self.evaluator, self.second = evaluator, second
        self.sampler = sampler
        self.guidance = guidance
        self.every_n_epochs = every_n_epochs
        self.folder = folder
        self.best = best
        self.seed = seed
        self.layout = layout
        self.scored_epoch = -1  # the last one after which the lists were scored
        self.best_scores: dict[str, float] = {}
        self.collapsed_lists: list[str] = []  # lists whose images were all the same

    def labels(self) -> Tensor:
        """Return the labels of all lists, (N, L)."""
        label_sets = [label_set for sets in self.conditions.values() for label_set in sets]
        return self.evaluator.vocabulary.encode_all(label_sets)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        for evaluator in (self.evaluator, self.second):
            if evaluator is not None:
                evaluator.to(pl_module.device)
        if self.best is not None and not self.best.is_file():
            self.best_scores = {}  # it was deleted, or not copied with the run

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        epoch = trainer.current_epoch + 1
        due = self.every_n_epochs > 0 and epoch % self.every_n_epochs == 0
        if not (due or is_last_epoch(trainer)):
            return
        module = cast(DiffusionModule | GANModule, pl_module)
        self.collapsed_lists = []
        scores = {
            name: self._score(trainer, module, name, label_sets)
            for name, label_sets in self.conditions.items()
        }
        named = {
            f"score/{name}/{measure}": value
            for name, measures in scores.items()
            for measure, value in measures.items()
        }
        for logger in trainer.loggers:
            # Lightning logs metrics only once the epoch's checkpoint has been written: a run killed
            # in between would never log them. The step is the one Lightning would use.
            logger.log_metrics({**named, "epoch": trainer.current_epoch}, trainer.global_step - 1)
        self.scored_epoch = trainer.current_epoch
        if CHOOSE_BY in scores:  # for callbacks such as early stopping
            module.log(CHOICE, _merit(named), logger=False, sync_dist=True)
        # On ties, the later one wins: it was trained for longer.
        is_best = CHOOSE_BY in scores and _merit(named) >= _merit(self.best_scores)
        if self.best is not None and is_best:
            self.best_scores = named
            save_logs(trainer)
            trainer.save_checkpoint(self.best)
            log_checkpoint(trainer.loggers, self.best, trainer.current_epoch, trainer.global_step)

    @property
    def state_key(self) -> str:
        """The key of this callback's state in checkpoints, also of a subclass of yours."""
        return "Scoring"

    def state_dict(self) -> dict[str, Any]:
        return {
            "best_scores": self.best_scores,
            "generated_and_scored_by": self._method(),
            "collapsed_lists": self.collapsed_lists,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        # Scores of another evaluator or sampler cannot be compared.
        if state_dict.get("generated_and_scored_by") == self._method():
            self.best_scores = state_dict["best_scores"]

    def _method(self) -> dict[str, Any]:
        """Return how images are generated and scored, as plain values."""
        return {
            "evaluator": self.evaluator.name,
            "sampler": None if self.sampler is None else self.sampler.description(),
            "guidance": (self.guidance or Guidance()).description(),
            "seed": self.seed,
            "layout": self.layout,
            "max_conditions": self.max_conditions,
        }

    def _score(
        self,
        trainer: L.Trainer,
        module: DiffusionModule | GANModule,
        name: str,
        label_sets: Sequence[LabelSet],
    ) -> dict[str, float]:
        labels = self.evaluator.vocabulary.encode_all(label_sets).to(module.device)
        # All ranks generate the same number, so that images can be gathered; the surplus repeats
        # the last condition and is not counted.
        share = -(-len(labels) // trainer.world_size)
        mine = trainer.global_rank * share + torch.arange(share)
        counted = mine[mine < len(labels)].to(module.device)
        images = self._generate(trainer, module, labels, mine.clamp(max=len(labels) - 1))
        _refuse_nan(trainer, name, images)
        scores, found = self._evaluate(images[: len(counted)], labels[counted])
        module.log_dict(
            {f"score/{name}/{measure}": value for measure, value in scores.items()},
            logger=False,
            sync_dist=True,  # the metrics are already synchronized
        )
        seen = torch.zeros(share, found.shape[1], device=module.device)
        seen[: len(counted)] = found
        if trainer.world_size > 1:
            images, seen = (
                trainer.strategy.all_gather(part).flatten(0, 1)[: len(labels)]
                for part in (images, seen)
            )
        self._check_collapse(trainer, name, images)
        if trainer.is_global_zero:
            self._show(trainer, name, label_sets, images, seen, scores["accuracy"])
        return scores

    def _evaluate(self, images: Tensor, labels: Tensor) -> tuple[dict[str, float], Tensor]:
        """Return the metrics of the images of all processes, and what is seen in these ones."""
        metrics = EvaluationMetrics(self.evaluator).to(images.device)
        output = metrics.update(images, labels)
        scores = metrics.compute()
        if self.second is not None:
            opinion = second_opinion(self.second, images, labels)
            scores |= {f"second_{name}": value for name, value in opinion.items()}
        return scores, output.all_scores

    def _check_collapse(self, trainer: L.Trainer, name: str, images: Tensor) -> None:
        """Warn if all images of a list are the same."""
        if len(images) == 1 or float(images.std(0).max()) >= COLLAPSED:
            return
        self.collapsed_lists.append(name)
        problem = (
            f"the network has collapsed at step {trainer.global_step}: all images of the list"
            f" {name} are the same"
        )
        if trainer.is_global_zero:
            log.warning(problem)
        alert(trainer.loggers, "collapse", problem)

    def _generate(
        self,
        trainer: L.Trainer,
        module: DiffusionModule | GANModule,
        labels: Tensor,
        indices: Tensor,
    ) -> Tensor:
        """Generate the images of some rows of ``labels`` in this process."""
        net = averaged_net(trainer, module)
        was_training = net.training
        net.eval()
        pipeline = module.pipeline(
            net,
            self.sampler,  # type: ignore[arg-type]
            self.guidance,  # type: ignore[arg-type]
            self.layout,
        )
        with autocast(trainer):
            images = pipeline(
                labels[indices.to(labels.device)],
                image_generators(self.seed, indices.tolist(), "scoring"),
                on_step=lambda step: stop_if_signalled(trainer),
            )
        net.train(was_training)
        return images

    def _show(
        self,
        trainer: L.Trainer,
        name: str,
        label_sets: Sequence[LabelSet],
        images: Tensor,
        scores: Tensor,
        accuracy: float,
    ) -> None:
        shown = shown_names(scores, self.evaluator.vocabulary)
        image = grid(
            images,
            captions=[caption(*pair) for pair in zip(label_sets, shown, strict=True)],
            title=[
                f"{name}, epoch {trainer.current_epoch}: accuracy {accuracy:.3f},"
                f" classified by {self.evaluator.name}",
                LEGEND,
            ],
            framed=[not is_exact(*pair) for pair in zip(label_sets, shown, strict=True)],
        )
        save_image(image, self.folder / f"sample_{name}_{trainer.current_epoch:04d}.png")
        suffix = "" if name == "test" else f"_{name}"
        step = trainer.global_step - 1
        log_image(trainer.loggers, f"sample/grid{suffix}", image, step)
        scored = ScoredImages(images, label_sets, shown)
        log_scored_images(trainer.loggers, f"sample/table{suffix}", scored, step)


def _refuse_nan(trainer: L.Trainer, name: str, images: Tensor) -> None:
    """Raise a TrainingError in all processes if an image of one of them is not finite."""
    if trainer.strategy.reduce_boolean_decision(bool(images.isfinite().all())):
        return
    raise TrainingError(
        f"an image of the list {name} is NaN or infinite at step {trainer.global_step};"
        f" {last_good(newest_checkpoint(trainer))}"
    )
