"""Wheels are fetched by name once, whole or not at all."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from muppet_fairseq.errors import MuppetError
from muppet_fairseq.packages import default_cache, fetch_package

WHEEL = "some_data-1.0-py3-none-any.whl"


def write_wheel(folder: Path, content: str = "rows", name: str = WHEEL) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(folder / name, "w") as archive:
        archive.writestr("some_data/data.txt", content)
        archive.writestr("some_data-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: some-data\nVersion: 1.0\n")
        archive.writestr("some_data-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\n")
        archive.writestr("some_data-1.0.dist-info/RECORD", "")
    return folder / name


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip takes for the only registry."""
    folder = tmp_path / "registry"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("pip was started")

    monkeypatch.setattr(subprocess, "run", refuse)


def test_fetches_and_keeps(registry: Path, tmp_path: Path) -> None:
    origin = write_wheel(registry)
    cache = tmp_path / "cache"
    wheel = fetch_package("Some.Data==1.0", cache, sha256(origin))
    assert wheel == cache / WHEEL
    assert sha256(wheel) == sha256(origin)
    assert [path.name for path in cache.iterdir()] == [WHEEL]


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("requirement", ["some-data==1.0", "Some_Data == 1.0.0"])
def test_a_kept_wheel_needs_no_pip(tmp_path: Path, requirement: str) -> None:
    wheel = write_wheel(tmp_path)
    assert fetch_package(requirement, tmp_path) == wheel
    assert fetch_package(requirement, tmp_path, sha256(wheel).upper()) == wheel


def test_a_damaged_wheel_is_fetched_again(registry: Path, tmp_path: Path) -> None:
    origin = write_wheel(registry)
    for content in (b"cut off", write_wheel(tmp_path / "other", "other rows").read_bytes()):
        cache = tmp_path / "cache"
        cache.mkdir(exist_ok=True)
        (cache / WHEEL).write_bytes(content)
        assert sha256(fetch_package("some-data==1.0", cache, sha256(origin))) == sha256(origin)


def test_another_file_than_expected_is_not_kept(registry: Path, tmp_path: Path) -> None:
    write_wheel(registry)
    with pytest.raises(MuppetError, match=r"has SHA-256 .*, expected 00"):
        fetch_package("some-data==1.0", tmp_path / "cache", "00")
    assert list((tmp_path / "cache").iterdir()) == []


def test_what_pip_cannot_find(registry: Path, tmp_path: Path) -> None:
    with pytest.raises(MuppetError, match=r"No matching distribution .* by hand") as caught:
        fetch_package("some-data==2.0", tmp_path / "cache")
    assert "\n" not in str(caught.value)
    assert list((tmp_path / "cache").iterdir()) == []


def test_without_pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho 'No module named pip' >&2\nexit 1\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(MuppetError, match=r"\(No module named pip\)"):
        fetch_package("some-data==1.0", tmp_path / "cache")


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize(
    "requirement",
    ["some-data", "some-data>=1.0", "some-data==1.*", "some-data==1.0,<2", "some-data[x]==1.0", "a b", "", "--help"],
)
def test_the_version_must_be_exact(tmp_path: Path, requirement: str) -> None:
    with pytest.raises(MuppetError, match="must be NAME==VERSION"):
        fetch_package(requirement, tmp_path)


def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("")
    with pytest.raises(MuppetError, match="cannot write to the cache folder"):
        fetch_package("some-data==1.0", tmp_path / "cache")


def test_default_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MUPPET_CACHE", raising=False)
    assert default_cache() == Path("raw")
    monkeypatch.setenv("MUPPET_CACHE", "/elsewhere")
    assert default_cache() == Path("/elsewhere")
