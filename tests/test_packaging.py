"""What is declared is what the code uses, and the set-up behind ``make`` survives what users do to it."""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import importlib.util
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import setuptools
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from muppet_fairseq.hf.heads import MODELING_FILE

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = [ROOT / name for name in ("muppet_fairseq", "preprocess", "benchmarks") if (ROOT / name).is_dir()]


@pytest.fixture
def declared(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The arguments of ``setup()`` in setup.py."""
    arguments: dict[str, Any] = {}
    monkeypatch.setattr(setuptools, "setup", lambda **kwargs: arguments.update(kwargs))
    monkeypatch.chdir(ROOT)
    runpy.run_path("setup.py")
    return arguments


def imported_names(folder: Path) -> Iterator[tuple[str, str]]:
    """Yield (top-level name, place) of every absolute import below ``folder``, those in functions included."""
    for path in sorted(folder.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module or ""]
            for name in names:
                yield name.partition(".")[0], f"{path.relative_to(ROOT)}:{node.lineno}"


def undeclared(folder: Path, requirements: list[str]) -> list[str]:
    own = {"muppet_fairseq", "preprocess", "benchmarks", "results", "tests", "conftest"}
    own |= {path.stem for path in folder.glob("*.py")}
    known = {canonicalize_name(Requirement(line).name) for line in requirements}
    distributions = importlib.metadata.packages_distributions()
    return [
        f"{place} imports {name}"
        for name, place in imported_names(folder)
        if name not in sys.stdlib_module_names | own
        and not known & {canonicalize_name(owner) for owner in distributions.get(name, [])}
    ]


def test_every_import_is_declared(declared: dict[str, Any]) -> None:
    required = declared["install_requires"]
    for folder in (ROOT / "muppet_fairseq", ROOT / "preprocess"):
        faults = undeclared(folder, required)
        # it is never imported here: export-hf puts it beside a head, which transformers loads
        assert [fault for fault in faults if not re.match(rf".*{MODELING_FILE}\S* imports transformers$", fault)] == []
    # what benchmarks compare with is for developers, too
    for folder in (ROOT / "benchmarks", ROOT / "results", ROOT / "tests", ROOT / "examples"):
        assert undeclared(folder, [*required, *declared["extras_require"]["dev"]]) == []


def test_every_requirement_is_met_here(declared: dict[str, Any]) -> None:
    for line in [*declared["install_requires"], *declared["extras_require"]["dev"]]:
        requirement = Requirement(line)
        version = importlib.metadata.version(requirement.name)
        assert requirement.specifier.contains(version, prereleases=True), line


def test_dependencies_between_the_packages_go_one_way() -> None:
    allowed = {"muppet_fairseq": set(), "preprocess": {"muppet_fairseq"}}
    for folder in PACKAGES:
        others = {"muppet_fairseq", "preprocess", "benchmarks", "results", "examples", "tests"} - {folder.name}
        forbidden = others - allowed.get(folder.name, others)
        assert [place for name, place in imported_names(folder) if name in forbidden] == []


def test_an_installation_has_every_module(declared: dict[str, Any]) -> None:
    folders = {path.parent for folder in PACKAGES for path in folder.rglob("*.py")}
    modules = {".".join(folder.relative_to(ROOT).parts) for folder in folders}
    assert modules == set(declared["packages"])


def test_an_installation_needs_no_data_files() -> None:
    """Files that are no modules would have to be declared as package data."""
    files = [path for folder in PACKAGES for path in folder.rglob("*") if path.is_file()]
    assert [path for path in files if path.suffix not in (".py", ".pyc")] == []


def test_console_script(declared: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    (script,) = declared["entry_points"]["console_scripts"]
    name, _, target = script.partition(" = ")
    module, _, function = target.partition(":")
    assert name == "muppet"
    with pytest.raises(SystemExit) as stop:
        getattr(importlib.import_module(module), function)(["import-hf", "--help"])
    assert stop.value.code == 0
    assert "SOURCE OUT" in capsys.readouterr().out


def test_changelog_names_the_version(declared: dict[str, Any]) -> None:
    newest = re.search(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest is not None
    assert newest[1] == declared["version"]


def test_continuous_integration_is_executable() -> None:
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


# ---- the set-up of .venv


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """What the set-up needs of this project, in a folder with a blank in its name."""
    folder = tmp_path / "a project"
    folder.mkdir()
    for name in ("Makefile", "setup.py", "pyproject.toml"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(ROOT / ".ci", folder / ".ci")
    return folder


def make(tree: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    # a make that runs these tests hands its own variables down
    inherited = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MAKELEVEL", "TORCH", "PYTHON")}
    command = ["make", *arguments]
    return subprocess.run(command, cwd=tree, env=inherited | environment, capture_output=True, text=True, check=False)


needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


@needs_make
def test_without_a_fitting_python_make_says_which_it_tried(tree: Path) -> None:
    tools = tree.parent / "tools"
    tools.mkdir()
    for name in ("python3.11", "python3.12", "python3"):
        (tools / name).write_text("#!/bin/sh\nexit 1\n")
        (tools / name).chmod(0o755)
    result = make(tree, "setup", PATH=f"{tools}:{os.environ['PATH']}")
    assert result.returncode != 0
    sentence = result.stderr.splitlines()[0]
    assert "python3.11 python3.12 python3" in sentence
    assert "PYTHON=" in sentence
    result = make(tree, "setup", f"PYTHON={tools / 'no such python'}")
    assert "no such python" in result.stderr.splitlines()[0]
    assert not (tree / ".venv").exists()


@needs_make
def test_a_failed_installation_is_shown_and_done_again(tree: Path) -> None:
    result = make(tree, "setup", f"PYTHON={sys.executable}", "TORCH=torch==0.0.0", PIP_NO_INDEX="1")
    assert result.returncode != 0
    assert "No matching distribution found for torch==0.0.0" in result.stderr
    assert "muppet: pip could not install torch==0.0.0" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tree / ".venv" / ".ready").exists()
    assert make(tree, "--question", ".venv/.ready").returncode == 1


@needs_make
def test_a_finished_setup_is_left_alone(tree: Path) -> None:
    (tree / ".venv").mkdir()
    (tree / ".venv" / ".ready").touch()
    assert make(tree, "--question", ".venv/.ready").returncode == 0
    os.utime(tree / "setup.py", (2**32, 2**32))
    assert make(tree, "--question", ".venv/.ready").returncode == 1


@pytest.fixture
def make_venv(tree: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """``.ci/make_venv.py`` at work in ``tree``; ``.installed`` lists what it would have asked pip for."""
    spec = importlib.util.spec_from_file_location("make_venv", tree / ".ci" / "make_venv.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.installed = []

    def install(torch: str) -> None:
        module.VENV.mkdir(exist_ok=True)
        module.installed.append(torch)

    monkeypatch.setattr(module, "install", install)
    monkeypatch.chdir(tree)
    monkeypatch.delenv("TORCH", raising=False)
    return module


def test_setup_is_done_once(make_venv: ModuleType) -> None:
    assert [make_venv.main(), make_venv.main()] == [0, 0]
    assert make_venv.installed == [make_venv.TORCH]


def test_the_chosen_torch_is_remembered(make_venv: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    make_venv.main()
    monkeypatch.setenv("TORCH", "torch --index-url here")
    make_venv.main()
    monkeypatch.delenv("TORCH")
    make_venv.main()
    assert make_venv.installed == [make_venv.TORCH, "torch --index-url here"]
    (make_venv.ROOT / "setup.py").write_text("changed")
    make_venv.main()
    assert make_venv.installed[2:] == ["torch --index-url here"]


def test_a_damaged_stamp_counts_as_none(make_venv: ModuleType) -> None:
    make_venv.main()
    make_venv.STAMP.write_text("{")
    make_venv.main()
    assert len(make_venv.installed) == 2
    assert json.loads(make_venv.STAMP.read_text())["torch"] == make_venv.TORCH


def test_a_failed_step_leaves_no_stamp(
    make_venv: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(torch: str) -> None:
        raise make_venv.StepError("no room")

    monkeypatch.setattr(make_venv, "install", fail)
    assert make_venv.main() == 1
    assert "muppet: no room" in capsys.readouterr().err
    assert not make_venv.STAMP.exists()
