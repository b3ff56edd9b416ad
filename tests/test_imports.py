"""Which modules of a library run when it is imported."""

import importlib
import sys

import pytest

from iclevr_diffusion import imports


@pytest.fixture
def package(tmp_path, monkeypatch):
    """The name of an importable package; its submodule ``part`` counts how often it is run."""
    name = "a_package_of_this_test"
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").write_text("runs = 0\n")
    part = f"import {name}\n{name}.runs += 1\nvalue = 3\n"
    (tmp_path / name / "part.py").write_text(part)
    monkeypatch.syspath_prepend(tmp_path)
    yield name
    for module in [module for module in sys.modules if module.partition(".")[0] == name]:
        del sys.modules[module]


def test_a_deferred_module_runs_at_its_first_use(package):
    finders = list(sys.meta_path)
    with imports.deferred(f"{package}.part"):
        root = __import__(f"{package}.part")  # as the statement ``import a.b`` does
    assert sys.meta_path == finders
    assert root.runs == 0
    assert root.part.value == 3
    assert root.runs == 1
    assert importlib.import_module(f"{package}.part").value == 3
    assert root.runs == 1


def test_other_modules_are_not_deferred(package):
    with imports.deferred(f"{package}.another"):
        root = __import__(f"{package}.part")
    assert root.runs == 1


def test_deferring_what_is_not_installed_changes_nothing(package):
    with imports.deferred(f"{package}.missing"), pytest.raises(ModuleNotFoundError):
        __import__(f"{package}.missing")
    with imports.deferred("no_such_package.part"), pytest.raises(ModuleNotFoundError):
        __import__("no_such_package.part")


def test_a_hidden_module_can_be_imported_afterwards(package):
    name = f"{package}.part"
    with imports._hidden(name), pytest.raises(ModuleNotFoundError):
        importlib.import_module(name)
    assert importlib.import_module(name).value == 3


def test_a_module_in_use_is_not_hidden(package):
    part = importlib.import_module(f"{package}.part")
    with imports._hidden(f"{package}.part"):
        assert importlib.import_module(f"{package}.part") is part
    assert sys.modules[f"{package}.part"] is part
