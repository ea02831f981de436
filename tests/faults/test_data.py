"""A data-bin that rots, or that somebody has made with intent: training is the same as ever, or one clear sentence.

``FUZZ=17 pytest tests/faults/test_data.py -k rot`` repeats one try, the one of seed 17.
"""

from __future__ import annotations

import ast
import json
import os
import random
import re
import shutil
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fairseq.data.indexed_dataset import _code_to_dtype

from muppet_fairseq.data.tokenizer import Tokenizer, dictionary_sha256
from muppet_fairseq.errors import MuppetError
from muppet_fairseq.spec import read_dataset_json, write_dataset_json
from muppet_fairseq.study.settings import read_study
from muppet_fairseq.suite import Suite
from preprocess.binarize import files_in, fingerprint
from preprocess.own import read_own
from preprocess.revisions import read_revisions
from tests.faults.ledger import Ledger
from tests.runs import Run, equal, finished, parameters
from tests.toy_suite import ROOT, options, train

#: all that an encoder trains on
DATASETS = ("animals", "pairs", "choices", "spans", "counts", "tags", "trees")
#: bytes of memory that a try may take more than this process has
MEMORY = 2 << 30
#: seconds; a toy run takes less than one
TIMEOUT = 90
#: a file of this length is a hole; nobody may read it through
SPARSE = 1 << 40
#: bytes of an .idx before the sizes: magic, version, type of the items, their number
HEADER = 26
#: what may stand where a number stood
NUMBERS = (0, 1, -1, 2, 3, 127, 255, 256, 65535, 2**31 - 1, -(2**31), 2**32, 2**62, 2**63 - 1, -(2**63))
#: what may stand where JSON's values stood
VALUES: tuple[Any, ...] = (None, True, False, 0, -1, 1, 2, 3, 2**31, 2**63, 10**40, 1.5, 1e300, float("nan"), "", "x")
VALUES += ("../../x", "/etc/passwd", "a\0b", "x" * 100_000, "\ud800", [], {}, [[]], {"": {}}, ["a"] * 5000, [1, 2])

Mutation = str


# -- what is done ---------------------------------------------------------------------------------------------


def _flip(path: Path, rng: random.Random, flips: int) -> Mutation:
    content = bytearray(path.read_bytes())
    places = [rng.randrange(8 * len(content)) for _ in range(flips)] if content else []
    for place in places:
        content[place // 8] ^= 1 << place % 8
    path.write_bytes(content)
    return f"bits {places} flipped"


def _splice(path: Path, rng: random.Random) -> Mutation:
    content = path.read_bytes()
    begin, size = rng.randrange(len(content) + 1), rng.choice((0, 1, 4, 8, 100))
    new = rng.choice((b"", bytes(size), rng.randbytes(size), content[:size]))
    path.write_bytes(content[:begin] + new + content[begin + size :])
    return f"{size} bytes at {begin} replaced by {new[:8]!r}"


def _truncate(path: Path, rng: random.Random) -> Mutation:
    size = path.stat().st_size
    size = rng.choice((0, size - 1, rng.randrange(size + 1), size + 1, 2 * size, SPARSE))
    os.truncate(path, size)
    return f"{size} bytes long"


def _replace_kind(path: Path, rng: random.Random) -> Mutation:
    kind = rng.choice(("missing", "folder", "pipe", "device", "dangling link", "loop", "link to a copy"))
    content = path.read_bytes()
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "link to a copy":
        copy = path.with_name("copy")
        copy.write_bytes(content)
        path.symlink_to(copy)
    elif kind != "missing":
        path.symlink_to({"device": "/dev/zero", "dangling link": "nowhere", "loop": path.name}[kind])
    return kind


def _swap(path: Path, rng: random.Random, data: Path) -> Mutation:
    """Another split's, stream's or dataset's file of the same kind."""
    others = [other for other in sorted(data.rglob(f"*{path.suffix}")) if other.is_file()]
    other = rng.choice(others)
    path.write_bytes(other.read_bytes())
    return f"in its place {other.relative_to(data)}"


def _mutate(path: Path, rng: random.Random, data: Path) -> Mutation:
    """Any damage to any file."""
    way = rng.randrange(8)
    if way < 3:
        return _flip(path, rng, 1)
    if way == 3:
        return _flip(path, rng, rng.randint(2, 50))
    return (_splice, _truncate, _replace_kind, lambda path, rng: _swap(path, rng, data))[way - 4](path, rng)


def _index(path: Path, rng: random.Random) -> Mutation:
    """A field of an .idx, its length being right again."""
    content = bytearray(path.read_bytes())
    count = struct.unpack_from("<Q", content, HEADER - 8)[0]
    field = rng.choice(("magic", "version", "type", "count", "sizes", "pointers", "both"))
    value = rng.choice(NUMBERS)
    if field == "magic":
        content[rng.randrange(9)] ^= 1 + rng.randrange(255)
    elif field == "version":
        struct.pack_into("<q", content, 9, value)
    elif field == "type":
        value = rng.choice((*_code_to_dtype, 0, 99, 255))
        content[17] = value
    elif field == "count":
        struct.pack_into("<Q", content, 18, value & 2**64 - 1)
        if rng.random() < 0.5:  # a file as long as that would be
            path.write_bytes(content)
            os.truncate(path, min(HEADER + 12 * abs(value), SPARSE))
            return f"count {value}, and that long"
    else:
        place = rng.randrange(count)
        sizes = np.frombuffer(content, np.int32, count, HEADER).copy()
        pointers = np.frombuffer(content, np.int64, count, HEADER + 4 * count).copy()
        if field != "pointers":
            sizes[place] = np.int64(value).astype(np.int32)
            if place and rng.random() < 0.5:  # the sum stays
                before = np.frombuffer(content, np.int32, count, HEADER)[place - 1 : place + 1].astype(np.int64)
                sizes[place - 1] = (before.sum() - int(sizes[place])).astype(np.int32)
        if field == "pointers":
            pointers[place] = value
        elif field == "both":
            width = np.dtype(_code_to_dtype[content[17]]).itemsize
            pointers[1:] = np.cumsum(sizes[:-1], dtype=np.int64) * width
        content[HEADER:] = sizes.tobytes() + pointers.tobytes()
    path.write_bytes(content)
    return f"{field} {value}"


def _integers(path: Path, rng: random.Random, offset: int, dtype: Any) -> Mutation:
    """A few of the numbers in a file."""
    content = bytearray(path.read_bytes())
    values = np.frombuffer(content[offset:], dtype).copy()
    done = {}
    for _ in range(rng.choice((1, 1, 3))):
        place, value = rng.randrange(len(values)), rng.choice((*NUMBERS, rng.randrange(-10, 100)))
        values[place] = np.array(value & 2**64 - 1, np.uint64).astype(dtype)
        done[place] = values[place].item()
    path.write_bytes(content[:offset] + values.tobytes())
    return f"values {done}"


def _content(path: Path, rng: random.Random) -> Mutation:
    kind = _code_to_dtype.get(path.with_suffix(".idx").read_bytes()[17], np.uint8)
    return _integers(path, rng, 0, kind)


def _npy(path: Path, rng: random.Random) -> Mutation:
    with path.open("rb") as file:
        np.lib.format.read_magic(file)
        np.lib.format.read_array_header_1_0(file)
        offset = file.tell()
    if rng.random() < 0.6:
        return _integers(path, rng, offset, np.int32)
    header, values = path.read_bytes()[:offset], path.read_bytes()[offset:]
    changes = [(rb"<i4", b"<i8"), (rb"<i4", b">i4"), (rb"<i4", b"|O"), (rb"<i4", b"<f4"), (rb"\(\d+,\)", b"(-1,)")]
    changes += [(rb"\(\d+,\)", b"(9999999999999999999999,)"), (rb"\(\d+,\)", b"(2**99,)"), (rb"\(\d+,\)", b"()")]
    changes += [(rb"\(\d+,\)", b"(3,)"), (rb"\{", b"{" * 40), (rb"NUMPY", b"NUMPX"), (rb"False", b"True")]
    changes += [(rb"^.*$", b"PK\x03\x04"), (rb"\(\d+,\)", b"(1,-1)"), (rb"\n", b"("), (rb"\x01\x00", b"\x09\x00")]
    old, new = rng.choice(changes)
    changed = re.sub(old, lambda _: new, header, count=1, flags=re.DOTALL)
    # the length that the header says of itself stays right
    path.write_bytes(changed[:offset].ljust(offset, b" ") + values)
    return f"header: {new[:20]!r} for {old!r}"


def _lines(path: Path, rng: random.Random) -> Mutation:
    lines = path.read_text().splitlines()
    place = rng.randrange(len(lines))
    lines[place] = rng.choice(
        ("nan", "inf", "1e39", "1e30", "1e9", "-0", "", "one", "1\0", "9" * 9999, "0x1", "1_0", "\u0661")
    )
    rng.choice((lambda: None, lambda: None, lines.pop, lines.clear, lambda: lines.extend(["1"] * 3)))()
    path.write_text("".join(f"{line}\n" for line in lines))
    return f"line {place + 1} is {lines[place][:20] if place < len(lines) else 'gone'!r}"


def _json_value(value: Any, rng: random.Random) -> tuple[Any, Mutation]:
    """The value with something in it, at any depth, that is another, of another type, missing, or one more."""
    inside = list(value) if isinstance(value, dict) else list(range(len(value))) if isinstance(value, list) else []
    if not inside or rng.random() < 0.1:
        new = rng.choice(VALUES)
        return new, f"= {str(new)[:30]!r}"
    key = rng.choice(inside)
    way = rng.random()
    if way < 0.15:
        del value[key]
        return value, f"{str(key)[:30]!r} gone"
    if way < 0.25 and isinstance(value, dict):
        new = rng.choice(("x", "", "../x", "/x", "a\0b", "x" * 5000, "train", "format", *inside))
        value[new] = value[key]
        return value, f"{new[:30]!r} as {key[:30]!r}"
    value[key], done = _json_value(value[key], rng)
    return value, f"{str(key)[:30]!r} {done}"


def _raw(path: Path, rng: random.Random) -> Mutation:
    """Examples as texts: one has another value, or is no JSON."""
    index = path.with_suffix(".idx")
    count = struct.unpack_from("<Q", index.read_bytes(), HEADER - 8)[0]
    sizes = np.frombuffer(index.read_bytes(), np.int32, count, HEADER)
    ends = np.cumsum(sizes)
    items = [path.read_bytes()[end - size : end] for size, end in zip(sizes, ends, strict=True)]
    place = rng.randrange(count)
    value, done = _json_value(json.loads(items[place]), rng)
    items[place] = rng.choice(
        (lambda: json.dumps(value).encode(), lambda: json.dumps(value).encode(), lambda: b"[" * 9999)
    )()
    path.write_bytes(b"".join(items))
    sizes = np.array(list(map(len, items)), np.int32)
    pointers = np.cumsum(sizes, dtype=np.int64) - sizes
    index.write_bytes(index.read_bytes()[:HEADER] + sizes.tobytes() + pointers.tobytes())
    return f"example {place}: {done}"


def _seal(folder: Path) -> dict[str, Any]:
    """What ``dataset.json`` says of the files as they are. (Of a hole nobody has waited for the digest.)"""
    meta = json.loads((folder / "dataset.json").read_text())
    for name in meta["files"]:
        path = folder / name
        if path.is_file() and path.stat().st_size < 1 << 24:
            meta["files"][name] = fingerprint(path)
        elif path.is_file():
            meta["files"][name] = {"bytes": path.stat().st_size, "sha256": "0" * 64}
    return meta


def rot(copy: Path, name: str, rng: random.Random, data: Path) -> Mutation:
    """Damage to one file that a dataset consists of; nothing that vouches for it is changed along."""
    folder = copy / name
    files = [*files_in(folder), *["dataset.json"] * 3, *["../dict.txt"] * 2]
    file = rng.choice(files)
    return f"{file.removeprefix('../')}: {_mutate(folder / file, rng, data)}"


def attack(copy: Path, name: str, rng: random.Random, data: Path) -> Mutation:
    """Damage that knows the formats, with all digests made anew."""
    folder = copy / name
    ways: dict[str, Callable[[Path], Mutation]] = {
        "*/*.idx": lambda path: _index(path, rng),
        "*/*.bin": lambda path: _content(path, rng),
        "*/*.npy": lambda path: _npy(path, rng),
        "*/*.label": lambda path: _lines(path, rng),
        "raw/*.bin": lambda path: _raw(path, rng),
        "*/*.*": lambda path: _mutate(path, rng, data),
    }
    ways = {pattern: way for pattern, way in ways.items() if any(folder.glob(pattern))}
    choice = rng.choice((*ways, "*/*.idx", "*/*.npy" if "*/*.npy" in ways else "*/*.bin", "json", "json", "dictionary"))
    if choice in ways:
        # where the training examples are, or what validation reads
        path = rng.choice([path for path in sorted(folder.glob(choice)) if path.name != "dict.txt"])
        done = f"{path.relative_to(folder)}: {ways[choice](path)}"
        write_dataset_json(folder, _seal(folder))
        return done
    if choice == "json":
        meta, done = _json_value(json.loads((folder / "dataset.json").read_text()), rng)
        if isinstance(meta, dict):
            write_dataset_json(folder, json.loads(json.dumps(meta).replace("\\ud800", "?")))
        else:
            (folder / "dataset.json").write_text(json.dumps(meta))
        return f"dataset.json: {done}"
    lines = (copy / "dict.txt").read_text().splitlines(keepends=True)
    kept = rng.randrange(len(lines))
    text = "".join(rng.choice((lines[:kept], lines[::-1], lines + lines[:1], [], [f"{i} 1\n" for i in range(50)])))
    (copy / "dict.txt").write_text(text)
    write_dataset_json(folder, _seal(folder) | {"dictionary": dictionary_sha256(copy / "dict.txt")})
    return f"dict.txt of {text.count(chr(10))} lines, and its digest"


# -- what comes of it -----------------------------------------------------------------------------------------


def _arguments(data: Path, name: str, save_dir: Path) -> list[str]:
    # fp32 on one thread: the same to the last bit
    return options(data, save_dir, "--max-update", "2", "--update-freq", "2", suite=name)


def _valid_lines(folder: Path) -> list[str]:
    """What validation has logged, without how long it took."""
    text = "".join((folder / f"worker-0.{end}").read_text(errors="replace") for end in ("out", "err"))
    lines = re.findall(r"\| valid \| (\{.*\})$", text, flags=re.MULTILINE)
    assert lines
    timeless = [json.loads(line) for line in lines]
    return [json.dumps({k: v for k, v in line.items() if "wps" not in k and "wall" not in k}) for line in timeless]


def _fault(run: Run, status: int) -> str | None:
    """What is wrong with how a run has ended, or None."""
    said = run.errors() + (run.folder / "worker-0.out").read_text(errors="replace")
    if "Traceback" in said or "Exception ignored" in said:
        return said[said.find("Traceback") :][-1500:]
    if status == 0 and not run.sentences():
        return None
    if status != 1 or len(run.sentences()) != 1:
        return f"status {status}, sentences {run.sentences()}, {said[-500:]}"
    return f"the sentence is long: {run.sentences()[0]}" if len(run.sentences()[0]) > 1000 else None


class Fuzz:
    """Tries, and what untouched data give."""

    def __init__(self, data: Path, folder: Path) -> None:
        self.data, self.folder = data, folder
        self._references: dict[str, tuple[dict, list[str]]] = {}
        self.trained = 0

    def reference(self, name: str) -> tuple[dict, list[str]]:
        if name not in self._references:
            save_dir = self.folder / f"reference-{name}"
            finished(_arguments(self.data, name, save_dir), save_dir)
            self._references[name] = parameters(save_dir), _valid_lines(save_dir)
        return self._references[name]

    def fault(self, seed: int, damage: Callable[..., Mutation], *, identical: bool) -> str | None:
        """What is wrong with one try, or None; ``identical``: a run that trains must do so as if nothing were."""
        rng = random.Random(f"{damage.__name__} {seed}")
        # all in turn: few tries have them all, too
        name = DATASETS[seed % len(DATASETS)]
        place = self.folder / f"{damage.__name__}-{seed}"
        copy = place / "data-bin"
        copy.mkdir(parents=True)
        shutil.copy(self.data / "dict.txt", copy)
        shutil.copytree(self.data / name, copy / name)
        done = f"seed {seed}, {name}: {damage(copy, name, rng, self.data)}"
        run = Run(_arguments(copy, name, place / "run"), place / "run", memory=MEMORY)
        try:
            (status,) = run.wait(TIMEOUT)
        except TimeoutError as error:
            return f"{done}: {error}"
        fault = _fault(run, status)
        if fault is None and status == 0:
            self.trained += 1
            if identical:
                expected, lines = self.reference(name)
                same = equal(parameters(place / "run"), expected) and _valid_lines(place / "run") == lines
                fault = None if same else "it has trained, but not as on the untouched data"
        if fault is None:
            shutil.rmtree(place)
        return None if fault is None else f"{done}: {fault}"


def _all(fuzz: Fuzz, ledger: Ledger, row: str, damage: Callable[..., Mutation], count: int, *, identical: bool) -> None:
    seeds = [int(os.environ["FUZZ"])] if "FUZZ" in os.environ else range(count)
    faults = []
    for seed in seeds:
        fault = fuzz.fault(seed, damage, identical=identical)
        ledger.note(row, survived=fault is None)
        faults += [] if fault is None else [fault]
    if faults:
        pytest.fail("\n".join(faults), pytrace=False)


@pytest.fixture(scope="module")
def fuzz(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Fuzz:
    return Fuzz(data, tmp_path_factory.mktemp("fuzz"))


def test_a_rotten_data_bin_trains_as_ever_or_is_one_sentence(fuzz, ledger, tries):
    _all(fuzz, ledger, "rotten data-bin", rot, tries(5, 180), identical=True)


def test_a_hostile_data_bin_trains_or_is_one_sentence(fuzz, ledger, tries):
    _all(fuzz, ledger, "hostile data-bin, its digests made anew", attack, tries(5, 180), identical=False)


# -- names that lead elsewhere --------------------------------------------------------------------------------

#: what must not become a path
NAMES = (
    "../pairs",
    "..",
    ".",
    "/etc",
    "/etc/passwd",
    "a/../../b",
    "~/x",
    "a\0b",
    "x" * 5000,
    "",
    ".hidden",
    "a\\b",
    "a/b",
)


def _said(call: Callable[[], Any]) -> str:
    with pytest.raises(MuppetError) as caught:
        call()
    said = str(caught.value)
    assert "\n" not in said
    assert len(said) < 1000
    return said


@pytest.mark.parametrize(
    "where", ["files", "splits", "suite", "head", "own name", "own folder", "revisions", "tokenizer"]
)
def test_a_name_in_a_file_leads_nowhere_else(data, tmp_path, ledger, where):
    copy = tmp_path / "data-bin"
    shutil.copytree(data / "animals", copy / "animals")
    meta = json.loads((copy / "animals" / "dataset.json").read_text())
    for name in NAMES:
        if where == "files" and name == "a/b":  # a file of a stream
            continue
        text, path = json.dumps(name), tmp_path / "file.yaml"

        def written(content: str, path: Path = path) -> Path:
            path.write_text(content)
            return path

        if where in ("files", "splits"):
            (value,) = {"files": [meta["files"]["label/train.bin"]], "splits": [meta["splits"]["train"]]}[where]
            write_dataset_json(copy / "animals", meta | {where: meta[where] | {name: value}})
            said = _said(lambda: read_dataset_json(copy / "animals"))
        elif where in ("suite", "head"):
            entry = f"name: {text}" if where == "suite" else f"name: animals\n  head: {text}"
            said = _said(lambda entry=entry: Suite.load(written(f"- {entry}\n")))
        elif where == "own name":
            said = _said(lambda text=text: read_own(written(f"{text}: {{family: summarization}}\n")))
        elif where == "own folder":
            if name in (".", ".hidden", "~/x", "a/b", "a\\b"):  # below the file's folder
                continue
            own = f"a: {{family: summarization, fields: {{source: a, target: b}}, folder: {text}}}\n"
            said = _said(lambda own=own: read_own(written(own)))
        elif where == "revisions":
            said = _said(lambda name=name: read_revisions(written(json.dumps({"a/b@main": name}))))
        else:
            (copy / "config.json").write_text(json.dumps({"type": name}))
            said = _said(lambda: Tokenizer.load(copy))
        ledger.note("name that leads out of its folder", survived=True)
        assert str(tmp_path) in said


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        "{a: " * 5000,
        "- " * 5000,
        "&a [*a]",
        "- &a [x, x]\n" + "".join(f"- &{chr(98 + i)} [{', '.join([f'*{chr(97 + i)}'] * 9)}]\n" for i in range(20)),
        "- !!python/object/apply:os.system [exit]",
        "- !!python/name:os.system",
        pytest.param("- animals\n" * (1 << 17), id="long"),
    ],
)
@pytest.mark.parametrize("read", [Suite.load, read_own, read_study])
def test_yaml_that_is_made_to_harm(tmp_path, ledger, read, text):
    path = tmp_path / "file.yaml"
    path.write_text(text)
    began = time.monotonic()
    said = _said(lambda: read(path))
    assert time.monotonic() - began < 5
    ledger.note("YAML that is made to harm", survived=True)
    assert str(path) in said


def test_nothing_here_loads_yaml_unsafely_or_unpacks_where_an_archive_says():
    sources = [
        path for folder in ("muppet_fairseq", "preprocess", "benchmarks") for path in (ROOT / folder).rglob("*.py")
    ]
    assert len(sources) > 50
    for path in [*sources, ROOT / "setup.py", ROOT / "hubconf.py"]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute):
                assert node.attr not in ("extract", "extractall", "unpack_archive", "unsafe_load", "full_load"), path
                of_yaml = isinstance(node.value, ast.Name) and node.value.id == "yaml"
                assert not of_yaml or node.attr == "compose" or not node.attr.islower(), path
                assert not of_yaml or not node.attr.endswith("Loader") or node.attr == "SafeLoader", path
                of_pickle = isinstance(node.value, ast.Name) and node.value.id == "pickle"
                assert not of_pickle or node.attr == "UnpicklingError", path
            if isinstance(node, ast.keyword) and node.arg in ("allow_pickle", "weights_only"):
                assert isinstance(node.value, ast.Constant), path
                assert node.value.value is (node.arg == "weights_only"), path


def test_a_process_of_its_own_ends_so_too(data, tmp_path, ledger, tries):
    """With all that a fork has done before: a sentence on standard error, and nothing of Python's."""
    tries(0, 1)
    copy = Path(shutil.copytree(data, tmp_path / "data-bin"))
    path = copy / "spans" / "answers" / "valid.bin"
    path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])
    done = train(_arguments(copy, "animals,spans", tmp_path / "run"))
    survived = done.returncode == 1 and done.stderr.count("muppet: ") == 1 and "Traceback" not in done.stderr
    ledger.note("rotten data-bin", survived=survived)
    assert survived, done.stderr[-2000:]
    assert f"muppet: {path} is not the file that was written, its SHA-256 differs: " in done.stderr
