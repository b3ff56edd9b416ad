"""Weights & Biases: one run for each run folder, which goes on when the server does not."""

import json
import logging
import os
import re
import shlex
import struct
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from iclevr_diffusion.data.conditions import CHOOSE_BY, TEST_LISTS
from iclevr_diffusion.utils.errors import UserError

STEP = "trainer/global_step"
FALLBACKS = ("offline", "error")
NAME_LENGTH = 128  # characters of a project, group or display name
ID_LENGTH = 64
RANDOM_LENGTH = 8  # characters at the end of a run id


def check_wandb_settings(
    project: str, group: str | None, tags: Sequence[str], fallback: str, **seconds: float
) -> None:
    """Check the settings in ``conf/logger/wandb.yaml``, before anything is sent.

    Raises:
        UserError: wandb is not installed, or does not take one of them.
    """
    for key, value in {"project": project, "group": group}.items():
        if value is not None and not (value.strip() and len(value) <= NAME_LENGTH):
            raise UserError(
                f"logger.wandb.{key} must have 1 to {NAME_LENGTH} characters, got {value[:40]!r}"
            )
    if fallback not in FALLBACKS:
        raise UserError(
            f"logger.wandb.fallback must be one of {', '.join(FALLBACKS)}; got {fallback!r}"
        )
    for key, limit in seconds.items():
        if not limit > 0:
            raise UserError(f"logger.wandb.{key} must be above 0 seconds, got {limit}")
    wandb = _import_wandb()
    try:
        wandb.Settings(project=project, run_tags=tuple(tags))
    except (wandb.errors.UsageError, ValueError) as error:
        raise UserError(f"logger.wandb: {_reason(error)}") from error


def wandb_logger(
    folder: Path,
    project: str,
    group: str | None = None,
    tags: Sequence[str] = (),
    fallback: str = "offline",
    start_timeout: float = 20,
    finish_timeout: float = 60,
) -> "WandbRun":
    """Start the W&B run of a run folder, or go on with it; offline where there is no login.

    Args:
        folder: of the run; W&B's own files go into ``folder/wandb``.
        group: where None, the name of the folder around it: the sweep's, or the experiment's.
        fallback: after a failed start, ``offline`` goes on without the server, ``error`` raises.
        start_timeout, finish_timeout: the most seconds to wait for the server.

    Raises:
        UserError: wandb is not installed, an environment variable of its own is wrong, or it cannot
            start.
    """
    _import_wandb()
    run = WandbRun(
        folder, start_timeout, finish_timeout, project=project, group=group, tags=list(tags)
    )
    run.start(fallback)
    return run


class WandbRun(WandbLogger):
    """The W&B run of a run folder.

    Each process that goes on with a run writes a file of its own under ``folder/wandb``. What is in
    an earlier one, or on the server, is not logged again, and what a kill lost is taken from
    ``metrics.csv``, so each step is there once. An error of wandb's is said once, and the training
    goes on.
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
        self._last: dict[str, int] = {}  # the last step of each metric that is logged already
        self._sent = -1  # the last step that the server has of every metric
        self._next_row: int | None = None  # where the rows of an offline run go on
        self._lost = False

    @rank_zero_only
    def start(self, fallback: str) -> None:
        """Start the run, by ``fallback`` offline where that fails.

        Raises:
            UserError: it cannot start.
        """
        wandb = _import_wandb()
        try:
            str(self.folder).encode()
        except UnicodeEncodeError:
            raise UserError(
                f"logger=wandb needs a run folder whose name is UTF-8, got {str(self.folder)!r}"
            ) from None
        users = _users_settings()
        mode = users.mode
        if mode == "online" and not ("WANDB_MODE" in os.environ or _has_login(users)):
            mode = "offline"
        if _is_true(os.environ.get("WANDB_DISABLED", "")):
            mode = "disabled"
        _quiet(wandb)
        timeouts = {key: value for key, value in self._timeouts.items() if not _is_set(users, key)}
        self._wandb_init |= {
            "mode": mode,
            "settings": wandb.Settings(
                **timeouts, **_flush_often(wandb), finish_timeout_raises=True, silent=True
            ),
        }
        earlier = {kind: sorted(self.folder.glob(f"wandb/{kind}-*/*.wandb")) for kind in KINDS}
        try:
            run = self._experiment = wandb.init(**self._wandb_init)
        except Exception as error:
            if mode in ("offline", "dryrun") or fallback == "error":
                advice = "; logger=csv goes without it"
                if fallback == "error":
                    advice = "; logger.wandb.fallback=offline goes on without the server"
                raise UserError(f"W&B: {_reason(error)}{advice}") from error
            print(f"W&B: {_reason(error)}; the training goes on offline. {self._advice()}")
            run = self._start_offline(wandb)
        else:
            if mode in ("offline", "dryrun"):
                print(f"W&B is offline. {self._advice()}")
            elif run.url and not users.silent:
                print(f"W&B: {run.url}")
        if not run.disabled:
            self._go_on(run, earlier)
            _define_metrics(run)

    def _advice(self) -> str:
        return f"To upload it later: wandb sync {shlex.quote(str(self.folder))}/wandb/offline-run-*"

    def _start_offline(self, wandb: Any) -> Any:
        """The run without a server, and without wandb's reports to it of its own failures."""
        os.environ["WANDB_ERROR_REPORTING"] = "false"
        wandb.teardown()  # its process still holds the run that did not start
        _users_settings()
        _quiet(wandb)
        self._wandb_init["mode"] = "offline"
        try:
            self._experiment = wandb.init(**self._wandb_init)
        except Exception as error:
            raise UserError(f"W&B: {_reason(error)}; logger=csv goes without it") from error
        return self._experiment

    def _go_on(self, run: Any, earlier: dict[str, list[Path]]) -> None:
        """Note what earlier processes have logged: on the server, or in files that can be sent."""
        last, rows = _read_earlier(earlier["run"] + earlier["offline-run"])
        if run.offline:
            self._last, self._next_row = last, rows
            return
        sent = int(run.summary.get(STEP, -1)) if run.resumed else -1
        last, _ = _read_earlier(earlier["run"])
        if sent > max(last.values(), default=-1):
            self._sent = sent  # these files are not all that was sent
        unsent, _ = _read_earlier(earlier["offline-run"])
        self._last = {
            key: max(min(last.get(key, -1), sent), unsent.get(key, -1)) for key in last | unsent
        }

    def fill(self, rows: Sequence[dict[str, float]]) -> None:
        """Log what an earlier process had logged, but not yet sent or written when it was killed.

        Args:
            rows: of ``metrics.csv``, up to the checkpoint that the run goes on from.
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
        """End the run with its exit code, so that the next job of a sweep begins its own."""
        run = self.experiment
        if run.disabled or run.offline:
            self._finish(run, exit_code)
            return
        files = Path(run.dir).parent
        self._finish(run, exit_code)
        if _upload_failed(files):
            self._lose("the upload failed")

    def _finish(self, run: Any, exit_code: int) -> None:
        try:
            run.finish(exit_code=exit_code)
        except Exception as error:
            self._lose(error)
            with suppress(Exception):  # where wandb's process has died, the next run needs another
                _import_wandb().teardown()

    def _lose(self, problem: Exception | str) -> None:
        """Say once that wandb failed, and where to find what it had written."""
        if self._lost:
            return
        self._lost = True
        text = problem if isinstance(problem, str) else _reason(problem)
        folder = Path(self.experiment.dir).parent
        print(
            f"W&B: {text}; metrics.csv has every step. To upload the rest later:"
            f" wandb sync {shlex.quote(str(folder))}"
        )


KINDS = ("run", "offline-run")  # W&B's folders


def run_id(folder: Path) -> str:
    """The id of a run folder's W&B run: that of its files, or a new one from the folder's name.

    It ends at random: the same name may be in use on another machine.
    """
    for file in folder.glob("wandb/*run-*/run-*.wandb"):
        return file.stem.removeprefix("run-")
    slug = re.sub(r"[^A-Za-z0-9_.-]+", "_", f"{folder.parent.name}-{folder.name}")
    return f"{slug[-(ID_LENGTH - RANDOM_LENGTH - 1) :]}-{os.urandom(RANDOM_LENGTH // 2).hex()}"


def _import_wandb() -> Any:
    try:
        import wandb
    except ModuleNotFoundError:
        raise UserError("logger=wandb needs wandb: pip install wandb") from None
    return wandb


def _users_settings() -> Any:
    """wandb's settings from its files and its environment variables.

    Raises:
        UserError: one of them is wrong.
    """
    wandb = _import_wandb()
    key = os.environ.get("WANDB_API_KEY")
    if key is not None:
        os.environ["WANDB_API_KEY"] = key.strip()  # wandb would refuse a line break at its end
    try:
        return wandb.setup().settings
    except (wandb.errors.UsageError, ValueError) as error:
        raise UserError(f"W&B: {_reason(error)}") from error


def _has_login(settings: Any) -> bool:
    """Whether wandb finds credentials for its server; it is not asked."""
    from wandb.errors import AuthenticationError
    from wandb.sdk.lib import wbauth

    if settings.api_key or settings.identity_token_file:
        return True
    host = settings.base_url
    try:
        return bool(wbauth.session_credentials(host=host) or wbauth.read_netrc_auth(host=host))
    except AuthenticationError:
        return True  # there is one that cannot be right: the start says why


def _is_set(settings: Any, name: str) -> bool:
    return name in settings.model_fields_set


def _is_true(value: str) -> bool:
    return value.strip().lower() in ("1", "true", "yes", "on", "y", "t")


def _flush_often(wandb: Any) -> dict[str, float]:
    """The setting for writing a run's file out every second, where wandb has it."""
    name = "x_transaction_log_flush_interval"
    return {name: 1.0} if name in wandb.Settings.model_fields else {}


def _quiet(wandb: Any) -> None:
    """Leave out what wandb says beside its errors: each retry has a line of its own."""
    wandb.termsetup(wandb.Settings(show_info=False, show_warnings=False), None)
    logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)


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


def _read_earlier(files: Sequence[Path]) -> tuple[dict[str, int], int]:
    """The last step of each metric in W&B's files, and the number of the row that comes next."""
    last: dict[str, int] = {}
    next_row = 0
    for file in files:
        for number, row in history(file):
            next_row = max(next_row, number + 1)
            step = row.pop(STEP, None)
            if isinstance(step, int):
                last |= {key: max(step, last.get(key, -1)) for key in row}
    return last, next_row


def history(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows in a ``.wandb`` file: the number of each, and its values by name.

    A value of several parts, such as an image, has one of them. The file may end anywhere.
    """
    from google.protobuf.message import DecodeError
    from wandb.proto.wandb_internal_pb2 import Record

    try:
        for data in _records(file.read_bytes()):
            record = Record.FromString(data)
            if record.HasField("history"):
                items = record.history.item
                row = {
                    item.nested_key[0] if item.nested_key else item.key: json.loads(item.value_json)
                    for item in items
                }
                yield record.history.step.num, row
    except (OSError, DecodeError, ValueError):
        return


def _records(data: bytes) -> Iterator[bytes]:
    """The records of a file in LevelDB's log format, behind W&B's header of seven bytes.

    A record is cut into parts where a block of 32 KiB ends; each part has a header of seven bytes:
    a checksum, its length, and its kind: 1 whole, 2 the first, 3 a middle, 4 the last part.
    """
    place, record = 7, b""
    while place + 7 <= len(data):
        left_in_block = 32768 - place % 32768
        if left_in_block < 7:
            place += left_in_block
            continue
        _, length, kind = struct.unpack_from("<IHB", data, place)
        part = data[place + 7 : place + 7 + length]
        if len(part) < length or kind not in (1, 2, 3, 4):
            return
        record = part if kind in (1, 2) else record + part
        place += 7 + length
        if kind in (1, 4):
            yield record


def _upload_failed(files: Path) -> bool:
    """Whether wandb gave up sending a run; its own log is the only place that says so."""
    log = files / "logs" / "debug-internal.log"
    try:
        return "fatal error" in log.read_text("utf-8", "replace")
    except OSError:
        return False


def _reason(error: Exception) -> str:
    """An error of wandb's in one line."""
    listed = getattr(error, "errors", None)
    if callable(listed):  # pydantic's: the setting, and what is wrong with it
        first = listed()[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg'].removeprefix('Value error, ')}"
    return " ".join(str(error).split())[:300].rstrip(".") or type(error).__name__
