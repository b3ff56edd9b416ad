"""Weights & Biases: one run per run folder, which survives the loss of the server."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from iclevr_diffusion.evaluation.classifier_output import is_exact
from iclevr_diffusion.training.loggers.logs_once import LogsOnce, name_of_run, survives
from iclevr_diffusion.training.loggers.scored_images import ScoredImages
from iclevr_diffusion.training.loggers.wandb_files import (
    KINDS,
    STEP,
    last_steps,
    run_id,
    upload_failed,
)
from iclevr_diffusion.training.loggers.wandb_settings import (
    NAME_LENGTH,
    files_kept_in,
    import_wandb,
    reason,
)
from iclevr_diffusion.training.loggers.wandb_start import best_of, start_run
from iclevr_diffusion.utils.lightning_internals import set_wandb_run, wandb_arguments
from iclevr_diffusion.utils.pixels import to_arrays
from iclevr_diffusion.utils.text import in_shell

TITLE_LENGTH = 63  # characters of an alert's title


def wandb_logger(
    folder: Path,
    project: str,
    entity: str | None = None,
    group: str | None = None,
    job_type: str | None = None,
    name: str | None = None,
    notes: str | None = None,
    tags: Sequence[str] = (),
    mode: str | None = None,
    log_model: bool | str = False,
    tables: bool = True,
    fallback: str = "offline",
    start_timeout: float = 20,
    finish_timeout: float = 60,
) -> "WandbRun":
    """Start or continue the W&B run of a run folder; offline if there is no login.

    Args:
        folder: Folder of the run; W&B's own files are in ``folder/wandb``.
        project: Name of the project.
        entity: User or team that the project belongs to; None for the user's default.
        group: Name of the group; None for the name of the sweep or experiment.
        job_type: Type of the job, such as ``train``.
        name: Name of the run; None for the last two parts of the path of its folder.
        notes: A description.
        tags: Tags of the run.
        mode: ``online``, ``offline`` or ``disabled``; None for what the user has set for wandb, but
            offline without a login.
        log_model: ``best`` uploads the weights when the training ends, ``all`` each checkpoint that
            is the best so far, too; False uploads neither.
        tables: Log a table of all images at each scoring, beside the grid.
        fallback: After a failed start, ``offline`` continues without the server, ``error`` raises.
        start_timeout, finish_timeout: Maximum number of seconds to wait for the server.

    Raises:
        UserError: wandb is not installed, one of its environment variables is wrong, or it cannot
            start.
    """
    import_wandb()
    run = WandbRun(
        folder,
        log_model=log_model,
        tables=tables,
        timeouts={"init_timeout": start_timeout, "finish_timeout": finish_timeout},
        name=name,
        project=project,
        entity=entity,
        group=group,
        job_type=job_type,
        notes=notes,
        tags=list(tags),
    )
    run.start(mode, fallback)
    return run


class WandbRun(LogsOnce, WandbLogger):
    """The W&B run of a run folder.

    Each process that continues a run writes its own file under ``folder/wandb``. What is in an
    earlier file, or on the server, is not logged again.
    """

    service = "W&B"
    reason = staticmethod(reason)

    def __init__(
        self,
        folder: Path,
        log_model: bool | str,
        tables: bool,
        timeouts: dict[str, float],
        **settings: Any,
    ) -> None:
        settings["group"] = settings["group"] or folder.parent.name[-NAME_LENGTH:] or None
        settings["name"] = settings["name"] or name_of_run(folder)[-NAME_LENGTH:]
        super().__init__(version=run_id(folder), save_dir=folder, resume="allow", **settings)
        self.folder = folder
        self.log_model = log_model
        self.tables = tables
        self._timeouts = timeouts
        self._sent = -1  # the last step of which the server has every metric
        self._next_row: int | None = None  # number of the next row of an offline run
        self._scores: set[str] = set()  # keys of which the run shows the best value

    @rank_zero_only
    def start(self, mode: str | None, fallback: str) -> None:
        """Start the run; see :func:`~.wandb_start.start_run`.

        Raises:
            UserError: It cannot start.
        """
        earlier = {kind: sorted(self.folder.glob(f"wandb/{kind}-*/*.wandb")) for kind in KINDS}
        run = start_run(wandb_arguments(self), self.folder, mode, fallback, self._timeouts)
        set_wandb_run(self, run)
        if not run.disabled:
            self._note_earlier(run, earlier)

    def _note_earlier(self, run: Any, earlier: dict[str, list[Path]]) -> None:
        """Record what earlier processes have logged: on the server, or in files not yet sent."""
        last, rows = last_steps(earlier["run"] + earlier["offline-run"])
        if run.offline:
            self.last, self._next_row = last, rows
            return
        sent = int(run.summary.get(STEP, -1)) if run.resumed else -1
        last, _ = last_steps(earlier["run"])
        if sent > max(last.values(), default=-1):
            self._sent = sent  # more was sent than these files hold
        unsent, _ = last_steps(earlier["offline-run"])
        self.last = {
            key: max(min(last.get(key, -1), sent), unsent.get(key, -1)) for key in last | unsent
        }

    def unlogged(self, metrics: Mapping[str, Any], step: int | None) -> dict[str, Any]:
        """Return the metrics that neither an earlier file nor the server has at this step."""
        return {} if step is not None and step <= self._sent else super().unlogged(metrics, step)

    @property
    def last_step(self) -> int:
        """The last step that was logged before, to which rows without a step belong."""
        return max(self._sent, *self.last.values(), 0)

    @survives()
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        self._log(metrics, step)

    def _log(self, metrics: Mapping[str, Any], step: int | None) -> None:
        row = self.unlogged(metrics, step)
        if not row:
            return
        row[STEP] = self.last_step if step is None else step
        number, self._next_row = self._next_row or None, None
        with files_kept_in(self.folder / "wandb"):
            for key in row.keys() - self._scores:
                # Not by a pattern: W&B takes any that matches, and "*" matches all.
                if best := best_of(key):
                    self.experiment.define_metric(key, step_metric=STEP, summary=best)
                    self._scores.add(key)
            self.experiment.log(row, step=number, commit=True)

    @survives()
    def log_image(self, *args: Any, **settings: Any) -> None:
        super().log_image(*args, **settings)

    @survives("tables")
    def log_rows(
        self, key: str, columns: list[str], rows: list[list[Any]], step: int | None = None
    ) -> None:
        """Log a table."""
        self._log({key: import_wandb().Table(columns=columns, data=rows)}, step)

    @survives("tables")
    def log_scored_images(self, key: str, scored: ScoredImages, step: int | None = None) -> None:
        """Log a table with a row per image, unless ``tables`` is false."""
        if not self.tables:
            return
        wandb = import_wandb()
        table = wandb.Table(columns=["requested", "image", "shown", "exact match"])
        rows = zip(to_arrays(scored.images), scored.requested, scored.shown, strict=True)
        for pixels, requested, shown in rows:
            image, exact = wandb.Image(pixels), is_exact(requested, shown)
            table.add_data(", ".join(requested), image, ", ".join(shown), exact)
        self._log({key: table}, step)

    @survives("pages")
    def log_html(self, key: str, html: str) -> None:
        """Log a page."""
        self._log({key: import_wandb().Html(html, inject=False)}, None)

    @survives()
    def log_summary(self, values: Mapping[str, Any]) -> None:
        """Set values of the run as a whole."""
        self.experiment.summary.update(dict(values))

    @survives("artifacts")
    def log_files(
        self,
        kind: str,
        paths: Sequence[Path],
        aliases: Sequence[str] = (),
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        """Log files and folders as one artifact, ``<kind>-<id of the run>``.

        Args:
            kind: The type of the artifact, such as ``model``.
            paths: What is in it, by the last part of each name.
            aliases: Aliases of this version, beside ``latest``.
            metadata: Plain values.
        """
        if self.experiment.disabled:
            return
        with files_kept_in(self.folder / "wandb"):
            run = self.experiment
            artifact = import_wandb().Artifact(f"{kind}-{run.id}", kind, metadata=metadata)
            for path in paths:
                if path.is_dir():
                    artifact.add_dir(str(path), name=path.name)
                else:
                    artifact.add_file(str(path), name=path.name)
            run.log_artifact(artifact, aliases=["latest", *aliases])

    @survives("alerts")
    def alert(self, title: str, text: str) -> None:
        """Send an alert by the channels that the user has chosen in W&B."""
        self.experiment.alert(title[:TITLE_LENGTH], text, level="ERROR")

    @rank_zero_only
    def finish(self, exit_code: int) -> None:
        """End the run with its exit code, so that the next job of a sweep starts another one."""
        run = self.experiment
        if run.disabled or run.offline:
            self._finish(run, exit_code)
            return
        files = Path(run.dir).parent
        self._finish(run, exit_code)
        if upload_failed(files):
            self.lose("the upload failed")

    def _finish(self, run: Any, exit_code: int) -> None:
        try:
            run.finish(exit_code=exit_code)
        except Exception as error:
            self.lose(self.reason(error))
            with suppress(Exception):  # if wandb's process has died, the next run needs another one
                import_wandb().teardown()

    def upload_command(self) -> str:
        """Return the command that uploads the files of this process."""
        return f"wandb sync {in_shell(Path(self.experiment.dir).parent)}"
