"""Preparing a dataset beside fairseq's two steps, BPE and binarising: the same text, the same number of workers."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from fairseq.data.indexed_dataset import MMapIndexedDataset

from muppet_fairseq.data.tokenizer import Tokenizer
from muppet_fairseq.errors import MuppetError

#: every so many lines one goes into the smaller text, on which the memory is measured again
SMALLER = 10
#: seconds between two looks at the memory
INTERVAL = 1.0
#: numbers that are compared at a time
COMPARED = 2**22

OWN = """
{name}:
  family: classification
  folder: {name}
  fields: {{inputs: [text], label: label}}
  labels: ["0", "1"]
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("texts", type=Path, nargs="+", help="files in UTF-8; each line is an example")
    parser.add_argument("--tokenizer", type=Path, required=True, metavar="DIR", help="a gpt2 tokenizer folder")
    parser.add_argument("--workers", type=int, default=2, help="worker processes of each (default: %(default)s)")
    parser.add_argument("--folder", type=Path, metavar="DIR", help="for temporary files; default: the system's")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Return the seconds and the peak memory of both ways and the ratio of the seconds.

    Memory is the proportional set size of all processes together, in MB (Linux only).

    Raises:
        MuppetError: a text cannot be read, a step fails, or the two ways give different tokens.
    """
    tokenizer = Tokenizer.load(args.tokenizer)
    if tokenizer.type != "gpt2":
        raise MuppetError(f"{args.tokenizer} is of type {tokenizer.type!r}; fairseq's script needs one of type gpt2")
    if args.folder is not None:
        args.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        lines = _write_texts(args.texts, folder)
        ours = {which: _ours(folder, which, args) for which in ("smaller", "text")}
        theirs = _theirs(folder, args)
        tokens = _same_tokens(folder / "text-bin/text/input0/train", folder / "fairseq-bin/train")
        megabytes = (folder / "text.txt").stat().st_size / 1e6
    seconds = sum(step["seconds"] for step in theirs.values())
    return {
        "megabytes": round(megabytes, 1),
        "lines": lines,
        "tokens": tokens,
        "workers": args.workers,
        "cpus": len(os.sched_getaffinity(0)),
        "ours": ours["text"],
        "ours on every tenth line": ours["smaller"],
        "fairseq": theirs,
        "ratio": round(seconds / ours["text"]["seconds"], 2),
    }


def _write_texts(texts: Sequence[Path], folder: Path) -> int:
    """Write the text as fairseq's script reads it, and the same as two datasets of JSON lines; return its lines."""
    number = -1
    for name in ("text", "smaller"):
        (folder / name).mkdir()
        (folder / name / "valid.jsonl").write_text('{"text": "one example", "label": 0}\n')
        (folder / f"{name}.yaml").write_text(OWN.format(name=name))
    with (
        (folder / "text.txt").open("w", encoding="utf-8") as plain,
        (folder / "text/train.jsonl").open("w", encoding="utf-8") as rows,
        (folder / "smaller/train.jsonl").open("w", encoding="utf-8") as some_rows,
    ):
        for number, line in enumerate(_lines(texts)):
            row = json.dumps({"text": line, "label": number % 2}, ensure_ascii=False)
            plain.write(f"{line}\n")
            rows.write(f"{row}\n")
            if number % SMALLER == 0:
                some_rows.write(f"{row}\n")
    if number < 0:
        raise MuppetError("the texts have no lines; name files with some")
    return number + 1


def _lines(texts: Sequence[Path]) -> Iterator[str]:
    """The lines as fairseq's script reads them: at any kind of line end, stripped, none empty."""
    for path in texts:
        try:
            with path.open(encoding="utf-8") as text:
                for line in text:
                    if line.strip():
                        yield line.strip()
        except (OSError, UnicodeDecodeError) as error:
            raise MuppetError(f"{path} cannot be read as text ({error}); name files in UTF-8") from None


def _ours(folder: Path, name: str, args: argparse.Namespace) -> dict[str, float]:
    command = [sys.executable, "-m", "preprocess", "prepare", "--own", str(folder / f"{name}.yaml")]
    command += ["--tokenizer", str(args.tokenizer), "--out", str(folder / f"{name}-bin"), "--jobs", str(args.workers)]
    return _measured(f"ours on {name}", command)


def _theirs(folder: Path, args: argparse.Namespace) -> dict[str, dict[str, float]]:
    workers = ["--workers", str(args.workers)]
    encode = [sys.executable, "-m", "fairseq.examples.roberta.multiprocessing_bpe_encoder", *workers]
    encode += ["--encoder-json", str(args.tokenizer / "encoder.json"), "--vocab-bpe", str(args.tokenizer / "vocab.bpe")]
    encode += ["--inputs", str(folder / "text.txt"), "--outputs", str(folder / "text.bpe")]
    binarise = [sys.executable, "-m", "fairseq_cli.preprocess", "--only-source", *workers]
    binarise += ["--srcdict", str(args.tokenizer / "dict.txt"), "--trainpref", str(folder / "text.bpe")]
    binarise += ["--destdir", str(folder / "fairseq-bin")]
    return {"BPE": _measured("fairseq's BPE", encode), "binarise": _measured("fairseq's binariser", binarise)}


def _measured(what: str, command: Sequence[str]) -> dict[str, float]:
    """Run a command; return how many seconds it took and the most memory that it and its children had, in MB."""
    print(f"benchmarks: {what}", file=sys.stderr)
    with tempfile.TemporaryFile() as log:
        begin = time.perf_counter()
        process = subprocess.Popen(command, stdout=log, stderr=log)
        peak = _Peak(process.pid)
        peak.start()
        code = process.wait()
        seconds = time.perf_counter() - begin
        peak.join()
        if code:
            log.seek(0)
            end = log.read().decode(errors="replace").strip().rpartition("\n")[2]
            raise MuppetError(f"{' '.join(command)} ended with status {code}: {end}")
    return {"seconds": round(seconds, 1), "peak_mb": round(peak.bytes / 1e6)}


class _Peak(threading.Thread):
    """Watches the memory of a process and all that it started, until it ends."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.bytes = 0
        self._pid = pid

    def run(self) -> None:
        while now := sum(map(_memory, _with_children(self._pid))):
            self.bytes = max(self.bytes, now)
            time.sleep(INTERVAL)


def _with_children(pid: int) -> list[int]:
    """A process and all that it and they have started."""
    children = defaultdict(list)
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has just ended
            # the parent is the second field behind the name, which may hold anything but a last bracket
            children[int(stat.read_text().rpartition(")")[2].split()[1])].append(int(stat.parent.name))
    family = [pid]
    for member in family:
        family += children[member]
    return family


def _memory(pid: int) -> int:
    """The proportional set size of a process in bytes: memory that several share counts once; 0 if it has ended."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:"))


def _same_tokens(ours: Path, theirs: Path) -> int:
    """Return the number of tokens. Raises MuppetError if the two files do not hold the same sequences."""
    sequences = [MMapIndexedDataset(str(path)) for path in (ours, theirs)]
    sizes = [np.asarray(each.sizes) for each in sequences]
    tokens = [
        np.memmap(f"{path}.bin", dtype=each._index.dtype) for path, each in zip((ours, theirs), sequences, strict=True)
    ]
    same = np.array_equal(*sizes) and len(tokens[0]) == len(tokens[1])
    blocks = range(0, len(tokens[0]), COMPARED)
    if not same or not all(np.array_equal(*(ids[i : i + COMPARED] for ids in tokens)) for i in blocks):
        raise MuppetError("the two ways give different tokens; one of them has a fault")
    return len(tokens[0])
