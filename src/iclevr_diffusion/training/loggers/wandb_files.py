"""The files that W&B writes for a run, and what can be read from them."""

import json
import os
import re
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

STEP = "trainer/global_step"
KINDS = ("run", "offline-run")  # prefixes of W&B's folders
ID_LENGTH = 64
RANDOM_LENGTH = 8  # random characters at the end of a run id


def run_id(folder: Path) -> str:
    """Return the id of a folder's W&B run: that of its files, that of a W&B sweep, or a new one.

    A new one is the name of the folder and random characters: the same name may be in use on
    another machine.
    """
    known = find_run_id(folder)
    if known is not None:
        return known
    if os.environ.get("WANDB_SWEEP_ID") and os.environ.get("WANDB_RUN_ID"):
        return os.environ["WANDB_RUN_ID"]  # the agent has given it to the run that it starts
    slug = re.sub(r"[^A-Za-z0-9_.-]+", "_", f"{folder.parent.name}-{folder.name}")
    return f"{slug[-(ID_LENGTH - RANDOM_LENGTH - 1) :]}-{os.urandom(RANDOM_LENGTH // 2).hex()}"


def find_run_id(folder: Path) -> str | None:
    """Return the id of the W&B run whose files are in a run folder; None if there is none."""
    for file in folder.glob("wandb/*run-*/run-*.wandb"):
        return file.stem.removeprefix("run-")
    return None


def last_steps(files: Sequence[Path]) -> tuple[dict[str, int], int]:
    """Return the last step of each metric in W&B's files, and the number of the next row."""
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
    """Read the rows of a ``.wandb`` file: the number of each, and its values by name.

    A value of several parts, such as an image, is one of them. The file may be truncated.
    """
    for record in records(file):
        if record.HasField("history"):
            items = record.history.item
            try:
                row = {
                    item.nested_key[0] if item.nested_key else item.key: json.loads(item.value_json)
                    for item in items
                }
            except ValueError:
                return
            yield record.history.step.num, row


def settings_of_run(folder: Path) -> dict[str, Any]:
    """Return the settings with which the W&B run of a run folder was started.

    They are arguments of :func:`~.wandb_run.wandb_logger`; empty if there is no W&B run. A run
    whose files are all of offline processes is offline, unless the environment says otherwise.
    """
    files = sorted(folder.glob("wandb/*run-*/run-*.wandb"))
    runs = (record.run for file in files for record in records(file) if record.HasField("run"))
    run = next(runs, None)
    if run is None:
        return {}
    offline = all(file.parent.name.startswith("offline-") for file in files)
    return {
        "project": run.project,
        "entity": run.entity or None,
        "group": run.run_group or None,
        "job_type": run.job_type or None,
        "name": run.display_name or None,
        "notes": run.notes or None,
        "tags": list(run.tags),
        "mode": "offline" if offline and "WANDB_MODE" not in os.environ else None,
    }


def records(file: Path) -> Iterator[Any]:
    """Read the records of a ``.wandb`` file, up to where it is truncated or damaged."""
    from google.protobuf.message import DecodeError
    from wandb.proto.wandb_internal_pb2 import Record

    try:
        for data in _records(file.read_bytes()):
            yield Record.FromString(data)
    except (OSError, DecodeError, ValueError):
        return


def _records(data: bytes) -> Iterator[bytes]:
    """Read the records of a file in LevelDB's log format, after W&B's header of seven bytes.

    A record is divided at the ends of blocks of 32 KiB. Each part has a header of seven bytes: a
    checksum, its length, and its kind: 1 whole, 2 first, 3 middle, 4 last part.
    """
    position, record = 7, b""
    while position + 7 <= len(data):
        left_in_block = 32768 - position % 32768
        if left_in_block < 7:
            position += left_in_block
            continue
        _, length, kind = struct.unpack_from("<IHB", data, position)
        part = data[position + 7 : position + 7 + length]
        if len(part) < length or kind not in (1, 2, 3, 4):
            return
        record = part if kind in (1, 2) else record + part
        position += 7 + length
        if kind in (1, 4):
            yield record


def upload_failed(files: Path) -> bool:
    """Return whether wandb gave up sending a run; only its own log tells."""
    log = files / "logs" / "debug-internal.log"
    try:
        return "fatal error" in log.read_text("utf-8", "replace")
    except OSError:
        return False
