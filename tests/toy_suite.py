"""A data-bin of small learnable datasets, one or two a family, and real ``fairseq-train`` processes on it."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from muppet_fairseq.data.tokenizer import Tokenizer
from muppet_fairseq.tasks.muppet import MuppetTask, MuppetTaskConfig
from muppet_fairseq.trees import Tree
from preprocess.binarize import binarize, num_inputs
from preprocess.catalog import CATALOG
from preprocess.convert import Examples, Split
from preprocess.download import PackageFile
from preprocess.entry import Entry, HeldOut
from tests import traced_train
from tests.runs import Run
from tests.toy_data import write_bert_tokenizer

ROOT = Path(__file__).parents[1]
#: what torchrun starts for each worker on CPUs; exec: so that its signals reach Python
LAUNCH = (
    'exec "$@" --distributed-backend gloo --distributed-init-method env:// '
    '--distributed-world-size "$WORLD_SIZE" --distributed-rank "$RANK" --distributed-no-spawn'
)
WORDS = ("dog", "cat", "cow", "fox", "hen", "owl", "pig", "rat")
#: the suite of most tests, and all that a model with a decoder can pre-finetune on
NAMES = ("animals", "pairs", "choices", "spans")
BART_NAMES = (*NAMES, "summaries")


def write_data_bin(folder: Path) -> Path:
    """Binarise the toy datasets: ``animals`` and ``pairs`` (classification), ``choices``, ``spans``, ``summaries``,
    ``counts`` (regression), ``tags`` and ``trees`` (tagging: of chunks, and of what trees are made of)."""
    out, tokenizer = _new_data_bin(folder)
    for name, (family, labels, metric, make) in _DATASETS.items():
        entry = toy_entry(name, family, labels, metric)
        _binarize(entry, make, {"train": _TRAIN[name], "valid": 24}, tokenizer, out)
    return out


def write_catalog_data_bin(folder: Path, names: Iterable[str]) -> Path:
    """Binarise a few toy examples as each of these datasets of the catalog, in all splits that it has there."""
    out, tokenizer = _new_data_bin(folder)
    for number, entry in enumerate(map(CATALOG.__getitem__, names)):
        # of unequal sizes, so that how datasets are drawn matters
        counts = {split: 16 + 8 * (number % 4) if split == "train" else 6 for split in entry.split_names}
        _binarize(entry, partial(_catalog_example, entry), counts, tokenizer, out)
    return out


def _new_data_bin(folder: Path) -> tuple[Path, Tokenizer]:
    tokenizer = Tokenizer.load(write_bert_tokenizer(folder / "tokenizer", words=(*WORDS, "the", "is", "who")))
    out = folder / "data-bin"
    out.mkdir()
    tokenizer.save(out / "tokenizer")
    (out / "dict.txt").write_bytes((folder / "tokenizer" / "dict.txt").read_bytes())
    return out, tokenizer


def _binarize(
    entry: Entry,
    make: Callable[[random.Random], dict[str, Any]],
    counts: Mapping[str, int],
    tokenizer: Tokenizer,
    out: Path,
) -> None:
    rng = random.Random(entry.name)
    splits = {
        split: Split([Examples([{"id": f"{split}-{i}", **make(rng)} for i in range(count)])])
        for split, count in counts.items()
    }
    binarize(entry, splits, tokenizer, out)


def _catalog_example(entry: Entry, rng: random.Random) -> dict[str, Any]:
    """With the fields that the entry's examples have."""
    if entry.family == "tagging":
        return _parsed(rng) if "tree" in entry.fields else _tagged(rng)
    example = {"commonsense": _choice, "mrc": _span, "summarization": _summary}.get(entry.family, _count)(rng)
    if entry.family == "classification":
        example["label"] = entry.label_names[WORDS.index(example["inputs"][0].split()[0]) % len(entry.labels)]
    if "inputs" in example:
        example["inputs"] *= num_inputs(entry)
    more = {
        "question": lambda: str(rng.randint(0, 3)),  # MultiRC's, which its metric groups answers by
        "golds": lambda: [answer["text"] for answer in example["answers"]],
        "entities": lambda: [*example["answers"], {"text": "who", "start": example["passage"].index("who")}],
    }
    return {key: make() for key, make in more.items() if key in entry.fields} | example


def _animal(rng: random.Random) -> dict[str, Any]:
    words = rng.choices(WORDS, k=rng.randint(2, 9))
    return {"inputs": [" ".join(words)], "label": str(int(words[0] in WORDS[:4]))}


def _pair(rng: random.Random) -> dict[str, Any]:
    first, second = rng.choice(WORDS), rng.choice(WORDS)
    label = "same" if first == second else "other" if rng.random() < 0.5 else "none"
    return {"inputs": [f"the {first} is {label}", f"a {second}"], "label": label}


def _choice(rng: random.Random) -> dict[str, Any]:
    right = rng.choice(WORDS)
    choices = rng.sample([word for word in WORDS if word != right], rng.randint(1, 4))
    answer = rng.randint(0, len(choices))
    choices.insert(answer, right)
    return {"context": f"who is the {right}", "choices": choices, "answer": answer}


def _span(rng: random.Random) -> dict[str, Any]:
    words = rng.choices(WORDS, k=rng.randint(4, 40))
    place = rng.randrange(len(words))
    words[place : place + 1] = ["who", "is", words[place]]
    passage = " ".join(words)
    start = len(" ".join(words[: place + 2])) + 1
    answer = {"text": words[place + 2], "start": start}
    return {"question": "who is", "passage": passage, "answers": [answer]}


def _summary(rng: random.Random) -> dict[str, Any]:
    words = rng.choices(WORDS, k=rng.randint(3, 20))
    return {"source": " ".join(words), "target": " ".join(["the", words[0], "is", words[-1]][: rng.randint(2, 4)])}


def _count(rng: random.Random) -> dict[str, Any]:
    words = rng.choices(WORDS, k=rng.randint(2, 9))
    return {"inputs": [" ".join(words)], "label": words.count("dog") + 0.25 * words.count("cat")}


def _tagged(rng: random.Random) -> dict[str, Any]:
    """Animals are chunks, with ``the`` before them if it is there; some words have several tokens."""
    words, tags = [], []
    for _ in range(rng.randint(1, 6)):
        words.append(rng.choice((*WORDS, "the", "is", "who", "bee", "moth")))
        tag = "I-NP" if words[-2:-1] == ["the"] else "B-NP"
        tags.append({"is": "B-VP", "who": "O", "the": "B-NP"}.get(words[-1], tag))
    return {"words": words, "tags": tags}


def _parsed(rng: random.Random) -> dict[str, Any]:
    def noun() -> tuple:
        animal = ("NN", rng.choice(WORDS))
        return ("NP", animal) if rng.random() < 0.5 else ("NP", ("DT", "the"), animal)

    verb = ("VP", ("VB", "is"), noun()) if rng.random() < 0.7 else ("VP", ("VB", "is"))
    subject = ("NP-SBJ", noun(), ("SBAR", ("WP", "who"), ("VP", ("VB", "is")))) if rng.random() < 0.3 else noun()
    tree = Tree.from_nested(("S", subject, verb, (".", ".")))
    return {"words": list(tree.words), "tags": tree.labels(), "tree": tree.text()}


_DATASETS = {
    "animals": ("classification", ("0", "1"), "f1", _animal),
    "pairs": ("classification", ("same", "other", "none"), "accuracy", _pair),
    "choices": ("commonsense", (), "accuracy", _choice),
    "spans": ("mrc", (), "squad", _span),
    "summaries": ("summarization", (), "rouge1", _summary),
    "counts": ("regression", (), "pearson", _count),
    "tags": ("tagging", (), "chunk_f1", _tagged),
    "trees": ("tagging", (), "bracket_f1", _parsed),
}
_TRAIN = {"animals": 150, "pairs": 61, "choices": 90, "spans": 45, "summaries": 60, "counts": 70}
_TRAIN |= {"tags": 120, "trees": 120}


def toy_entry(name: str, family: str, labels: tuple[str, ...], metric: str) -> Entry:
    return Entry(
        name=name,
        family=family,
        source=PackageFile("toy==1.0", "0" * 64, ("toy.jsonl",)),
        fields={"inputs": ["text"] if name in ("animals", "counts") else ["premise", "hypothesis"]},
        splits=HeldOut(0.25),
        labels=labels,
        metric=metric,
        licence="none",
        citation="none",
    )


def options(data: Path, save_dir: Path, *more: str, suite: str = ",".join(NAMES)) -> list[str]:
    """Arguments of a short run on a CPU; later ones win over these."""
    return [
        *(str(data), "--user-dir", str(ROOT / "muppet_fairseq"), "--task", "muppet", "--suite", suite),
        *("--criterion", "muppet", "--arch", "muppet_roberta_tiny", "--max-positions", "32", "--window-overlap", "8"),
        *("--optimizer", "adam", "--lr", "0.001", "--clip-norm", "1", "--max-tokens", "256", "--update-freq", "4"),
        *("--cpu", "--num-workers", "0", "--no-epoch-checkpoints", "--save-dir", str(save_dir), "--log-format", "json"),
        *("--log-interval", "1", *more),
    ]


def open_task(data: Path, suite: str | Path, **changes: Any) -> MuppetTask:
    """The task over this suite, in this process; a new run, unless ``changes`` to the configuration say otherwise."""
    values = {"save_dir": str(data / "no_run"), "restore_file": "checkpoint_last.pt", "reset_optimizer": False}
    values |= {"finetune_from_model": None, "train_subset": "train", "update_freq": [1], "seed": 1}
    values |= {"max_positions": 32, "window_overlap": 8}
    return MuppetTask.setup_task(MuppetTaskConfig(data=str(data), suite=str(suite), **(values | changes)))


def train(
    arguments: Sequence[str],
    *,
    workers: int = 1,
    trace: Path | None = None,
    timeout: int = 300,
    command: bool = False,
) -> subprocess.CompletedProcess[str]:
    """Run ``fairseq-train`` with these arguments, on ``workers`` processes; see ``traced_train.py`` for ``trace``.

    ``arguments`` give the run's total of sub-batches an update as ``--update-freq``: it is divided among workers. The
    processes are forks of this one, or with ``command`` the command's own, several started by torchrun.
    """
    save_dir = Path(arguments[arguments.index("--save-dir") + 1])
    save_dir.mkdir(parents=True, exist_ok=True)
    if command:
        words, environment = launch(arguments, workers)
        environment["TRACE"] = str(trace or "")
        done = subprocess.run(words, capture_output=True, text=True, env=environment, timeout=timeout, check=False)
    else:
        done = _forked(_shared(arguments, workers), workers, trace, timeout)
    with (save_dir / "train.log").open("a") as log:
        log.write(done.stdout)
    return done


def _forked(arguments: list[str], workers: int, trace: Path | None, timeout: int) -> subprocess.CompletedProcess[str]:
    with tempfile.TemporaryDirectory() as folder:
        inject = None if trace is None else lambda rank: traced_train.trace(trace)
        run = Run(arguments, Path(folder), workers=workers, inject=inject)
        statuses = run.wait(timeout)
        outputs = [(run.folder / f"worker-{rank}.out").read_text() for rank in range(workers)]
        errors = [run.errors(rank) for rank in range(workers)]
    status = next(filter(None, statuses), 0)
    return subprocess.CompletedProcess(arguments, status, "".join(outputs), "".join(errors))


def _shared(arguments: Sequence[str], workers: int) -> list[str]:
    arguments = list(arguments)
    place = arguments.index("--update-freq") + 1
    arguments[place] = str(int(arguments[place]) // workers)
    return arguments


def launch(arguments: Sequence[str], workers: int, *torchrun: str) -> tuple[list[str], dict[str, str]]:
    """The words and the environment of the command that :func:`train` runs; ``torchrun`` are more words for that."""
    program = [sys.executable, str(ROOT / "tests" / "traced_train.py"), *_shared(arguments, workers)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "TRACE": ""}
    environment["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"  # else workers cannot be started again
    if workers == 1:
        return program, environment
    if "--ddp-backend" not in arguments:
        program += ["--ddp-backend", "legacy_ddp"]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(workers)]
    launcher += ["--standalone", *torchrun, "--no-python", "sh", "-c", LAUNCH, "sh"]
    return [*launcher, *program], environment


def trained(*arguments: Any, **keywords: Any) -> None:
    """:func:`train`, which must succeed."""
    done = train(*arguments, **keywords)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


def logged(save_dir: Path, tag: str) -> list[dict[str, Any]]:
    """The JSON lines that bear ``tag`` in what :func:`train` has printed."""
    text = (save_dir / "train.log").read_text()
    return [json.loads(line) for line in re.findall(rf"\| {tag} \| (\{{.*\}})$", text, flags=re.MULTILINE)]
