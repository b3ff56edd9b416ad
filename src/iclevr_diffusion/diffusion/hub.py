"""Weights on the Hugging Face Hub: ``hf://user/name``, or ``hf://user/name@revision``.

Only the safetensors and JSON files of a weights folder (:mod:`.io`) are downloaded, by name. Code
and pickles in a repository are never requested.
"""

import logging
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from diffusers.utils import SAFETENSORS_WEIGHTS_NAME

from iclevr_diffusion.utils.errors import UserError
from iclevr_diffusion.utils.text import one_line

SCHEME = re.compile(r"hf:/{1,2}")  # a Path has one slash
REPO = re.compile(r"[\w.-]+/[\w.-]+")
WEB_PAGE = re.compile(rf"https?:/{{1,2}}(?:huggingface|hf)\.co/(?P<repo>{REPO.pattern})")
URI = re.compile(rf"hf://(?P<repo>{REPO.pattern})(@(?P<revision>[\w./-]+))?")
NETWORK_FOLDERS = ("unet", "generator")  # of a diffusion model, of a GAN
TENSORS = [f"{folder}/{SAFETENSORS_WEIGHTS_NAME}" for folder in NETWORK_FOLDERS]
SETTINGS = [
    "model_index.json",
    "sampling.json",
    "data.json",
    "labels.json",
    "holdout.json",
    "scheduler/scheduler_config.json",
    *(f"{folder}/config.json" for folder in NETWORK_FOLDERS),
]
PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl", ".pickle")
NO_REPO = "there is no such repository, or it is private and you are not logged in (hf auth login)"
OFFLINE = "it is not in the cache, and HF_HUB_OFFLINE forbids downloads"
NO_LOGIN = "you are not logged in: run hf auth login, or set HF_TOKEN"

log = logging.getLogger(__name__)


def is_on_hub(path: str | Path) -> bool:
    """Return whether a path names a repository on the Hub."""
    return SCHEME.match(Path(path).as_posix()) is not None


def name_of_page(path: str | Path) -> str | None:
    """Return ``hf://user/name`` for the address of a repository's page, else None."""
    match = WEB_PAGE.match(Path(path).as_posix())
    return None if match is None else f"hf://{match['repo']}"


def fetch_weights(path: str | Path) -> Path:
    """Return the local folder of weights on the Hub, after downloading them if needed.

    The path is ``hf://user/name`` or ``hf://user/name@revision``. With a revision, a cached copy is
    used without any request. Without one, the Hub is asked for the newest revision; if it cannot be
    reached, the cached copy is used.

    Raises:
        UserError: There is no such repository, it has no weights that can be loaded, or the
            download fails.
    """
    uri = SCHEME.sub("hf://", Path(path).as_posix(), count=1)
    match = URI.fullmatch(uri)
    if match is None:
        raise UserError(f"weights={uri}: write hf://user/name, or hf://user/name@revision")
    repo, revision = match["repo"], match["revision"]
    if revision is not None and {"", ".", ".."} & {*revision.split("/")}:
        raise UserError(f"weights={uri}: {revision} is not a revision: a branch, a tag or a commit")
    cached = _in_cache(repo, revision)
    if cached is not None and revision is not None:
        return cached
    try:
        return _download(repo, revision)
    except UserError as error:
        raise UserError(f"weights={uri}: {error}") from error
    except Exception as error:  # huggingface_hub and its HTTP library raise many types
        why = hub_error(error)
        if cached is None or why in (NO_REPO, NO_LOGIN):
            raise UserError(f"weights={uri}: {why}") from error
        if why == OFFLINE:  # the user chose this, so no warning
            return cached
        log.warning("%s: %s; using the cached revision, %s", uri, why, cached.name[:12])
        return cached


def hub_name(folder: Path) -> str | None:
    """Return ``hf://user/name@commit`` for a folder in the cache, else None."""
    match = re.search(r"models--([\w.-]+?)--([\w.-]+)/snapshots/(\w+)$", folder.as_posix())
    return None if match is None else f"hf://{match[1]}/{match[2]}@{match[3]}"


def push(
    folder: Path, files: Sequence[str], repo: str, private: bool, replaced: Sequence[str] = ()
) -> str:
    """Upload files of a folder to a repository, and create it if it does not exist.

    Args:
        folder: The folder.
        files: The files, as paths relative to it.
        repo: ``user/name``.
        private: Whether to make a new repository private.
        replaced: Files of earlier uploads to delete unless they are among ``files``.

    Returns:
        The URL of its page.

    Raises:
        UserError: The Hub refuses the upload or cannot be reached.
    """
    from huggingface_hub import HfApi

    try:
        with _quiet():
            url = HfApi().create_repo(repo, private=private, exist_ok=True)
            HfApi().upload_folder(
                repo_id=repo,
                folder_path=folder,
                allow_patterns=list(files),
                delete_patterns=list(replaced) or None,
                commit_message="Upload weights of iclevr-diffusion",
            )
    except Exception as error:
        raise UserError(
            f"repo={repo}: {hub_error(error, 'upload')}; the files are in {folder}"
        ) from error
    return str(url)


def check_login(repo: str) -> None:
    """Check the name of a repository to upload to, and that the user is logged in.

    Raises:
        UserError: The name is malformed, the user is not logged in, or the Hub cannot be reached.
    """
    from huggingface_hub import HfApi

    if not REPO.fullmatch(repo):
        raise UserError(f"repo={repo}: write user/name")
    try:
        with _quiet():
            HfApi().whoami()
    except Exception as error:
        raise UserError(f"repo={repo}: {hub_error(error, 'login')}") from error


def hub_error(error: Exception, attempt: str = "download") -> str:
    """Describe an exception of huggingface_hub, raised in an attempt, in a few words."""
    from huggingface_hub import errors

    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.LocalTokenNotFoundError):
        return NO_LOGIN
    if isinstance(error, errors.GatedRepoError):
        return "accept the terms on its page first, and log in (hf auth login)"
    if isinstance(error, errors.RepositoryNotFoundError):
        return NO_REPO
    if isinstance(error, errors.RevisionNotFoundError):
        return "the repository has no such revision"
    if isinstance(error, errors.OfflineModeIsEnabled):
        return OFFLINE
    if status in (401, 403):
        return f"the Hub rejected the login (status {status}); run hf auth login"
    if status is not None:
        return f"the Hub answered with status {status}"
    return f"the {attempt} failed: {one_line(error, 160) or type(error).__name__}"


def _in_cache(repo: str, revision: str | None) -> Path | None:
    """Return the folder of a complete download, or None."""
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(
            repo, revision=revision, allow_patterns=SETTINGS + TENSORS, local_files_only=True
        )
    except Exception:  # missing or incomplete
        return None
    # The tensors are downloaded last.
    return Path(folder) if any(Path(folder, name).is_file() for name in TENSORS) else None


def _download(repo: str, revision: str | None) -> Path:
    """Download a revision; the cache has its branch or tag name only once it is complete."""
    from huggingface_hub import HfApi, snapshot_download

    with _quiet():
        info = HfApi().model_info(repo, revision=revision)
        _check_files([file.rfilename for file in info.siblings or ()])
        for files in (SETTINGS, TENSORS):
            folder = snapshot_download(repo, revision=info.sha, allow_patterns=files)
        snapshot_download(repo, revision=revision, allow_patterns=SETTINGS + TENSORS)
        return Path(folder)


def _check_files(files: Sequence[str]) -> None:
    """Check that a repository has weights that can be loaded.

    Raises:
        UserError: It has no safetensors file or no config of a network.
    """
    for network, tensors in zip(NETWORK_FOLDERS, TENSORS, strict=True):
        if f"{network}/config.json" in files and tensors in files:
            return
    pickles = [name for name in files if name.endswith(PICKLES)]
    if pickles:
        raise UserError(
            f"its weights are pickles ({pickles[0]:.60}), which can run code; only safetensors are"
            " loaded"
        )
    raise UserError(f"it has no weights of this project ({TENSORS[0]} and its config.json)")


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide huggingface_hub's warnings and request logs; show progress bars in a terminal only.

    What the user has chosen for progress bars stays.
    """
    from huggingface_hub import constants
    from huggingface_hub.utils import logging as hub_logging
    from huggingface_hub.utils.tqdm import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    level = hub_logging.get_verbosity()
    hub_logging.set_verbosity_error()
    levels = {logger: logger.level for logger in map(logging.getLogger, ("httpx", "httpx2"))}
    for logger in levels:
        logger.setLevel(logging.WARNING)  # at INFO, they log each request
    chosen = constants.HF_HUB_DISABLE_PROGRESS_BARS is not None or are_progress_bars_disabled()
    hides_bars = not chosen and not sys.stderr.isatty()
    if hides_bars:
        disable_progress_bars()
    try:
        yield
    finally:
        hub_logging.set_verbosity(level)
        for logger, before in levels.items():
            logger.setLevel(before)
        if hides_bars:
            enable_progress_bars()
