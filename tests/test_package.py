"""What a user installs: a wheel that holds all it needs, and a lock that names all around it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import iclevr_diffusion

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LOCK = (ROOT / "requirements.lock").read_text()

LOCKED_LINE = re.compile(
    r"[a-z0-9][a-z0-9.-]*==[0-9][0-9a-z.]*"  # name and version
    r"( ; [\w ().<>=!']+?)?"  # where it applies
    r"( --hash=sha256:[0-9a-f]{64})+"
)


def locked_lines() -> list[str]:
    """The lock's lines with continuations joined, without comments."""
    joined = re.sub(r" \\\n\s*", " ", LOCK)
    return [line for line in joined.splitlines() if line and not line.lstrip().startswith("#")]


def locked_versions() -> dict[str, str]:
    """Package name to pinned version."""
    return dict(line.split()[0].split("==") for line in locked_lines())


def declared_requirements() -> list[Requirement]:
    """What the lock is to meet: the package's dependencies, the developers', and its extras'.

    Not those of ``ray`` and ``app``: they are large, and hold others back.
    """
    project = PYPROJECT["project"]
    optional = project["optional-dependencies"]
    extras = [
        one for name, extra in optional.items() if name not in ("ray", "app") for one in extra
    ]
    return [
        Requirement(one)
        for one in project["dependencies"] + extras + PYPROJECT["dependency-groups"]["dev"]
    ]


def run(*arguments: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run this Python with `arguments` and return what it said, standard error included."""
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=cwd,
        env=os.environ | environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from this tree without the network."""
    folder = tmp_path_factory.mktemp("wheel")
    built = run("-m", "hatchling", "build", "-t", "wheel", "-d", folder, cwd=ROOT)
    assert built.returncode == 0, built.stdout
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds the installed wheel and nothing else."""
    folder = tmp_path_factory.mktemp("installed") / "site"
    command = ["-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--target", folder]
    installed = run(*command, wheel, cwd=folder.parent)
    assert installed.returncode == 0, installed.stdout
    return folder


def test_version_is_the_same_in_pyproject_and_package() -> None:
    assert PYPROJECT["project"]["version"] == iclevr_diffusion.__version__


@pytest.mark.parametrize(
    "path",
    [
        "conf/train.yaml",
        "py.typed",
        "data/condition_lists/test.json",
        "reporting/page.html",
        "reporting/page.css",
        "reporting/style.css",
        "demo/floor.js",
        "demo/parts.html",
        "reporting/page.js",
    ],
)
def test_wheel_holds_the_file(wheel: Path, path: str) -> None:
    assert f"iclevr_diffusion/{path}" in zipfile.ZipFile(wheel).namelist()


def test_wheel_holds_every_config_and_module_of_the_tree(wheel: Path) -> None:
    modules = (ROOT / "src").rglob("*.py")
    configs = (ROOT / "conf").rglob("*.yaml")
    expected = {path.relative_to(ROOT / "src").as_posix() for path in modules}
    expected |= {f"iclevr_diffusion/{path.relative_to(ROOT).as_posix()}" for path in configs}
    assert expected <= set(zipfile.ZipFile(wheel).namelist())


def test_wheel_holds_the_licence_and_nothing_outside_the_package(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert {name.split("/")[0].split("-")[0] for name in names} == {"iclevr_diffusion"}


def test_installed_package_is_the_one_that_runs(site: Path, tmp_path: Path) -> None:
    code = "import iclevr_diffusion; print(iclevr_diffusion.__file__)"
    shown = run("-c", code, cwd=tmp_path, PYTHONPATH=str(site))
    assert Path(shown.stdout.strip()) == site / "iclevr_diffusion" / "__init__.py"


@pytest.mark.slow
def test_installed_command_shows_its_help_from_an_empty_folder(site: Path, tmp_path: Path) -> None:
    shown = run("-m", "iclevr_diffusion.train", "--help", cwd=tmp_path, PYTHONPATH=str(site))
    assert shown.returncode == 0, shown.stdout
    assert "experiment" in shown.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_installed_command_trains_two_steps_from_an_empty_folder(
    site: Path, tmp_path: Path
) -> None:
    overrides = ["experiment=quickstart", "trainer.max_steps=2"]
    overrides += ["data.sequences=8", "data.batch_size=4", "sampler.steps=2"]
    environment = {"PYTHONPATH": str(site), "CUDA_VISIBLE_DEVICES": "", "WANDB_MODE": "disabled"}
    trained = run("-m", "iclevr_diffusion.train", *overrides, cwd=tmp_path, **environment)
    assert trained.returncode == 0, trained.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["outputs"]
    assert list(tmp_path.rglob("*.ckpt")), trained.stdout


def test_lock_pins_one_version_of_each_package() -> None:
    names = [line.split("==")[0] for line in locked_lines()]
    assert len(names) == len(set(names))


def test_lock_has_only_pinned_and_hashed_packages() -> None:
    assert [line for line in locked_lines() if not LOCKED_LINE.fullmatch(line)] == []


def test_lock_names_no_host_and_no_local_build() -> None:
    assert "://" not in LOCK
    assert re.search(r"^ *(-[if]\b|--(?!hash=))", LOCK, flags=re.MULTILINE) is None
    assert [name for name, version in locked_versions().items() if "+" in version] == []


@pytest.mark.parametrize("version", ["2.6.2", "2.6.3"])
def test_malware_releases_of_lightning_are_neither_admitted_nor_locked(version: str) -> None:
    (lightning,) = (one for one in declared_requirements() if one.name == "lightning")
    assert version not in lightning.specifier
    assert locked_versions()["lightning"] != version


@pytest.mark.parametrize("requirement", declared_requirements(), ids=str)
def test_lock_meets_the_requirement(requirement: Requirement) -> None:
    assert locked_versions()[canonicalize_name(requirement.name)] in requirement.specifier


def test_wheel_and_lock_agree_on_the_oldest_python() -> None:
    oldest = PYPROJECT["project"]["requires-python"].removeprefix(">=")
    assert f"--python-version {oldest} " in LOCK.splitlines()[1]
