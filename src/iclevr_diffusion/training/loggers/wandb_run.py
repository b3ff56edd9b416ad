"""Weights & Biases: one run per run folder, which survives the loss of the server."""

import os
import shlex
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from iclevr_diffusion.data.conditions import CHOOSE_BY, TEST_LISTS
from iclevr_diffusion.training.loggers.wandb_files import (
    KINDS,
    STEP,
    last_steps,
    run_id,
    upload_failed,
)
from iclevr_diffusion.training.loggers.wandb_settings import (
    NAME_LENGTH,
    flush_often,
    has_login,
    import_wandb,
    is_set,
    is_true,
    quiet,
    reason,
    users_settings,
)
from iclevr_diffusion.utils.errors import UserError
from iclevr_diffusion.utils.lightning_internals import set_wandb_run, wandb_arguments


def wandb_logger(
    folder: Path,
    project: str,
    group: str | None = None,
    tags: Sequence[str] = (),
    fallback: str = "offline",
    start_timeout: float = 20,
    finish_timeout: float = 60,
) -> "WandbRun":
    """Start or continue the W&B run of a run folder; offline if there is no login.

    Args:
        folder: folder of the run; W&B's own files are in ``folder/wandb``.
        project: name of the project.
        group: name of the group; None for the name of the sweep or experiment.
        tags: tags of the run.
        fallback: after a failed start, ``offline`` continues without the server, ``error`` raises.
        start_timeout, finish_timeout: maximum number of seconds to wait for the server.

    Raises:
        UserError: wandb is not installed, one of its environment variables is wrong, or it cannot
            start.
    """
    import_wandb()
    run = WandbRun(
        folder, start_timeout, finish_timeout, project=project, group=group, tags=list(tags)
    )
    run.start(fallback)
    return run


class WandbRun(WandbLogger):
    """The W&B run of a run folder.

    Each process that continues a run writes its own file under ``folder/wandb``. Steps that are in
    an earlier file, or on the server, are not logged again, and steps that were lost when a process
    was killed are taken from ``metrics.csv``, so each step occurs once. Errors of wandb are printed
    once, and the training continues.
    """

    def __init__(
        self, folder: Path, start_timeout: float, finish_timeout: float, **settings: Any
    ) -> None:
        parent, name = folder.parent.name, folder.name
        settings["group"] = settings["group"] or parent[-NAME_LENGTH:] or None
        super().__init__(
            name=f"{parent}/{name}"[-NAME_LENGTH:],
            version=run_id(folder),
            save_dir=folder,
            resume="allow",
            log_model=False,  # checkpoints would fill the disk and the account
            **settings,
        )
        self.folder = folder
        self._timeouts = {"init_timeout": start_timeout, "finish_timeout": finish_timeout}
        self._last: dict[str, int] = {}  # the last step of each metric that was logged before
        self._sent = -1  # the last step of which the server has every metric
        self._next_row: int | None = None  # number of the next row of an offline run
        self._lost = False

    @rank_zero_only
    def start(self, fallback: str) -> None:
        """Start the run, or by ``fallback`` an offline one if that fails.

        Raises:
            UserError: it cannot start.
        """
        wandb = import_wandb()
        try:
            str(self.folder).encode()
        except UnicodeEncodeError:
            raise UserError(
                f"logger=wandb needs a run folder whose name is UTF-8, got {str(self.folder)!r}"
            ) from None
        users = users_settings()
        mode = users.mode
        if mode == "online" and not ("WANDB_MODE" in os.environ or has_login(users)):
            mode = "offline"
        if is_true(os.environ.get("WANDB_DISABLED", "")):
            mode = "disabled"
        quiet(wandb)
        timeouts = {key: value for key, value in self._timeouts.items() if not is_set(users, key)}
        wandb_arguments(self).update(
            mode=mode,
            settings=wandb.Settings(
                **timeouts, **flush_often(wandb), finish_timeout_raises=True, silent=True
            ),
        )
        earlier = {kind: sorted(self.folder.glob(f"wandb/{kind}-*/*.wandb")) for kind in KINDS}
        try:
            run = wandb.init(**wandb_arguments(self))
        except Exception as error:
            if mode in ("offline", "dryrun") or fallback == "error":
                advice = "; logger=csv trains without it"
                if fallback == "error":
                    advice = "; logger.wandb.fallback=offline continues without the server"
                raise UserError(f"W&B: {reason(error)}{advice}") from error
            print(f"W&B: {reason(error)}; the training continues offline. {self._advice()}")
            run = self._start_offline(wandb)
        else:
            if mode in ("offline", "dryrun"):
                print(f"W&B is offline. {self._advice()}")
            elif run.url and not users.silent:
                print(f"W&B: {run.url}")
        set_wandb_run(self, run)
        if not run.disabled:
            self._note_earlier(run, earlier)
            _define_metrics(run)

    def _advice(self) -> str:
        return f"To upload it later: wandb sync {shlex.quote(str(self.folder))}/wandb/offline-run-*"

    def _start_offline(self, wandb: Any) -> Any:
        """Start the run without the server, and without reports of errors to it."""
        os.environ["WANDB_ERROR_REPORTING"] = "false"
        wandb.teardown()  # its process still has the run that did not start
        users_settings()
        quiet(wandb)
        wandb_arguments(self)["mode"] = "offline"
        try:
            return wandb.init(**wandb_arguments(self))
        except Exception as error:
            raise UserError(f"W&B: {reason(error)}; logger=csv trains without it") from error

    def _note_earlier(self, run: Any, earlier: dict[str, list[Path]]) -> None:
        """Record what earlier processes have logged: on the server, or in files not yet sent."""
        last, rows = last_steps(earlier["run"] + earlier["offline-run"])
        if run.offline:
            self._last, self._next_row = last, rows
            return
        sent = int(run.summary.get(STEP, -1)) if run.resumed else -1
        last, _ = last_steps(earlier["run"])
        if sent > max(last.values(), default=-1):
            self._sent = sent  # more was sent than these files hold
        unsent, _ = last_steps(earlier["offline-run"])
        self._last = {
            key: max(min(last.get(key, -1), sent), unsent.get(key, -1)) for key in last | unsent
        }

    def fill(self, rows: Sequence[dict[str, float]]) -> None:
        """Log what an earlier process had logged, but not written when it was killed.

        Args:
            rows: rows of ``metrics.csv``, up to the checkpoint to resume from.
        """
        for row in rows:
            metrics = {key: value for key, value in row.items() if key != "step"}
            self.log_metrics(metrics, int(row["step"]))

    @rank_zero_only
    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        if self._lost:
            return
        row = {
            key: value
            for key, value in metrics.items()
            if step is None or step > max(self._last.get(key, -1), self._sent)
        }
        if not row.keys() - {"epoch"}:
            return
        if step is not None:
            row[STEP] = step
        try:
            if self._next_row:
                self.experiment.log(row, step=self._next_row, commit=True)
                self._next_row = None
            else:
                self.experiment.log(row)
        except Exception as error:
            self._lose(error)

    @rank_zero_only
    def log_hyperparams(self, params: Any) -> None:
        try:
            super().log_hyperparams(params)
        except Exception as error:
            self._lose(error)

    @rank_zero_only
    def log_image(self, *args: Any, **settings: Any) -> None:
        try:
            super().log_image(*args, **settings)
        except Exception as error:
            self._lose(error)

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
            self._lose("the upload failed")

    def _finish(self, run: Any, exit_code: int) -> None:
        try:
            run.finish(exit_code=exit_code)
        except Exception as error:
            self._lose(error)
            with suppress(Exception):  # if wandb's process has died, the next run needs another one
                import_wandb().teardown()

    def _lose(self, problem: Exception | str) -> None:
        """Print once that wandb failed, and how to upload what it had written."""
        if self._lost:
            return
        self._lost = True
        text = problem if isinstance(problem, str) else reason(problem)
        folder = Path(self.experiment.dir).parent
        print(
            f"W&B: {text}; metrics.csv has every step. To upload the rest later:"
            f" wandb sync {shlex.quote(str(folder))}"
        )


def _define_metrics(run: Any) -> None:
    run.define_metric(STEP)
    run.define_metric("*", step_metric=STEP)
    for name, best in (("train/loss", "min"), ("val/loss", "min"), ("val/x0_error", "min")):
        run.define_metric(name, step_metric=STEP, summary=best)
    run.define_metric("score/*", step_metric=STEP, summary="max")
    for condition_list in (*TEST_LISTS, CHOOSE_BY):
        for worse in ("missing", "extra"):
            name = f"score/{condition_list}/{worse}"
            run.define_metric(name, step_metric=STEP, summary="min")
