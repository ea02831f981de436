"""The suites in ``examples/suites``: MUPPET's own, and those of its studies of scale and of batching, at two scales.

What the paper leaves to chance is drawn by hashes of a seed and the datasets' names: the same for everyone.
"""

from __future__ import annotations

import hashlib
import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from muppet_fairseq.families import FAMILIES
from preprocess.catalog import CATALOG, mini

#: §A.1's list, in its order: a dataset's line is its place, from 1; None is SuperGLUE, whose datasets have lines too
_LISTED = (
    *("cola", "sst2", "mrpc", "qqp", "mnli", "qnli", "rte", "wnli", None, "boolq", "multirc", "wic", "wsc", "cb"),
    *("copa", "ag_news", "imdb", "multinli", "snli", "hans", "rotten_tomatoes", "yelp_polarity", "eraser_multi_rc"),
    *("wiki_qa", "trec", "scitail", "cnn_dailymail", "billsum", "xsum", "aeslc", "multi_news", "math_qa"),
    *("openbookqa", "swag", "hellaswag", "race", "commonsense_qa", "cosmos_qa", "arc_easy", "arc_challenge", "sciq"),
    *("squad", "nq", "drop", "record", "hotpot_qa", "trivia_qa"),
)
_LINES = {name: line for line, name in enumerate(_LISTED, 1) if name is not None}

#: §5.1 fine-tunes the first five from every size, Figure 1 shows the last instead of the first
_TUNED = ("stsb", "boolq", "race", "squad", "mnli", "rte")
#: §5.3 fine-tunes these as datasets that no size has seen
_UNSEEN = ("cola", "qnli")
_SIZES = (10, 15, 20, 25, 30, 35, 40)
_BATCHING_SIZE = 35

#: what the mini studies fine-tune on: two that all suites have, three that none has; the last has many test rows
_MINI_SEEN = ("mini_commonsense_qa", "mini_siqa")
_MINI_UNSEEN = ("mini_openbookqa", "mini_disambiguation_qa", "mini_privacy_policy")
#: with the two seen ones, a dataset of each family in the smallest suite
_MINI_FIRST = (*_MINI_SEEN, "mini_boolq", "mini_disflqa")
_MINI_STEP = 4
#: on how many examples the mini suites train: on all, an epoch would take hours. What has long rows, or several windows
#: for an example, has the fewest; datasets that are not here are small and give all they have
_MINI_EXAMPLES = {
    **{"mini_piqa": 600, "mini_boolq": 300, "mini_disflqa": 150, "mini_medqa_drugs": 30, "mini_mmlu_clinical": 60},
    **{"mini_medmcqa_dental": 300, "mini_abstract_narrative": 30, "mini_efficientqa": 1500, "mini_logiqa": 30},
    **{"mini_medqa": 30, "mini_siqa": 700, "mini_quac": 20, "mini_mmlu": 75, "mini_narrativeqa": 16},
    **{"mini_medmcqa": 200, "mini_bbq": 200},
}


def suites(seed: int = 1) -> dict[str, str]:
    """Return the suites: file names to contents. Another ``seed`` draws other datasets where chance decides."""
    paper = list(_LINES)
    return (
        {"paper.yaml": _suite(_about_paper(paper), paper, seed)}
        | {"paper_roberta.yaml": _suite(_about_roberta(_encoded(paper)), _encoded(paper), seed)}
        | _scale(seed)
        | {"batching_35.yaml": _suite(_ABOUT_BATCHING, sorted(_batching(seed), key=_LINES.__getitem__), seed)}
        | _mini_scale(seed)
    )


def write_suites(out: Path, seed: int = 1) -> list[Path]:
    """Write the :func:`suites` into the folder ``out`` and return the files. Raises OSError."""
    out.mkdir(parents=True, exist_ok=True)
    files = []
    for name, content in suites(seed).items():
        files.append(out / name)
        files[-1].write_text(content, encoding="utf-8", newline="\n")
    return files


def _drawn(names: Iterable[str], seed: int, purpose: str) -> list[str]:
    """The names in random order, the same on every machine and in every version of Python."""
    return sorted(names, key=lambda name: hashlib.sha256(f"{seed} {purpose} {name}".encode()).hexdigest())


def _encoded(names: Iterable[str]) -> list[str]:
    """Those that need no decoder."""
    return [name for name in names if not FAMILIES[CATALOG[name].family].generates]


def _scale(seed: int) -> dict[str, str]:
    rest = [name for name in _encoded(_LINES) if name not in (*_TUNED, *_UNSEEN)]
    order = [*_TUNED, *_drawn(rest, seed, "scale"), *_UNSEEN]
    sizes = {f"scale_{size}.yaml": size for size in _SIZES} | {"scale_all.yaml": len(order)}
    return {name: _suite(_about_scale(size, len(order)), order[:size], seed) for name, size in sizes.items()}


def _batching(seed: int) -> list[str]:
    return _drawn(_encoded(_LINES), seed, "batching")[:_BATCHING_SIZE]


def _mini_scale(seed: int) -> dict[str, str]:
    chosen = (*_MINI_FIRST, *_MINI_UNSEEN)
    rest = [name for name in _encoded(entry.name for entry in mini.ENTRIES) if name not in chosen]
    order = [*_MINI_FIRST, *_drawn(rest, seed, "mini")]
    sizes = {f"mini_scale_{size}.yaml": size for size in range(_MINI_STEP, len(order), _MINI_STEP)}
    sizes["mini_scale_all.yaml"] = len(order)
    return {
        name: _suite(_about_mini(size, len(order)), order[:size], seed, _MINI_EXAMPLES) for name, size in sizes.items()
    }


def _suite(
    about: Sequence[str], names: Sequence[str], seed: int, examples: Mapping[str, int] = MappingProxyType({})
) -> str:
    """A suite file: the paragraphs ``about`` it as comments, then a line for each dataset.

    ``examples``: on how many to train, of those datasets that do not give all.
    """
    made = f"Made by 'python -m preprocess suites --out examples/suites --seed {seed}'; edit a copy, not this file."
    header = [line for paragraph in (*about, made) for line in textwrap.wrap(paragraph, 108, break_on_hyphens=False)]
    entries = [f"{{name: {name}, examples: {examples[name]}}}" if name in examples else name for name in names]
    width = max(map(len, entries))
    total = _examples(names)
    lines = [f"- {entry:{width}}  # {_remark(name, total)}" for entry, name in zip(entries, names, strict=True)]
    return "".join(f"{line}\n" for line in [*(f"# {line}" for line in header), *lines])


def _remark(name: str, total: int) -> str:
    entry = CATALOG[name]
    facts = [f"line {_LINES[name]}"] if name in _LINES else []
    facts.append(entry.family)
    if entry.published:
        facts.append(f"{entry.published['train']:,} train examples, {entry.published['train'] / total:.2%}")
    if entry.alias:
        facts.append(f"the same as {entry.alias}")
    return ", ".join(facts)


def _examples(names: Iterable[str]) -> int:
    """The published number of training examples of several datasets."""
    return sum(CATALOG[name].published.get("train", 0) for name in names)


def _families(names: Iterable[str]) -> str:
    counts = Counter(CATALOG[name].family for name in names)
    return ", ".join(f"{count} {family}" for family, count in counts.items())


def _numbers(names: Sequence[str]) -> str:
    """How many examples a suite has, and what it does to the weight of one dataset that it has twice."""
    total, once = _examples(names), _examples(["mnli"])
    return (
        f"{total:,} train examples as published, before any are left out or held out. mnli (line 5) and multinli "
        f"(line 18) are the same training set, so that these {once:,} examples count twice: {2 * once / total:.1%} of "
        f"the suite; without the line '- multinli' they are {once / (total - once):.1%} of {total - once:,}. Delete "
        f"that line to train on them once."
    )


def _about_paper(names: Sequence[str]) -> list[str]:
    return [
        f"The {len(names)} datasets that MUPPET pre-finetunes on, in the order of the paper's list (§A.1), whose line "
        f"stands behind each: {_families(names)}. For a model with a decoder (BART).",
        "Line 9 of the list, SuperGLUE, is no dataset but the name of several that the list has singly.",
        _numbers(names),
    ]


def _about_roberta(names: Sequence[str]) -> list[str]:
    return [
        f"paper.yaml without summarization, which needs a decoder, for RoBERTa: {len(names)} datasets, "
        f"{_families(names)}.",
        _numbers(names),
    ]


def _about_scale(size: int, count: int) -> list[str]:
    return [
        f"{size} of {count} datasets for the study of scale (§5.1, Figure 1), for RoBERTa-Base. Each scale_*.yaml has "
        f"the datasets of the smaller ones and more; the order is scale_all.yaml's, whose first n datasets are the "
        f"suite of any other size n. (The paper trains seven models: six sizes from 10 to 40, and all.)",
        "First come the datasets that the study fine-tunes, so that no size has an advantage: STS-B, BoolQ, RACE, "
        "SQuAD and MNLI by §5.1's text, which puts them into the first run, and RTE, which Figure 1 has in STS-B's "
        "place. STS-B is not on the list of §A.1, but §5.1 names it. The others follow in random order.",
        "CoLA and QNLI come last, in scale_all.yaml only: §5.3 fine-tunes them as datasets that no size has seen. "
        "RoBERTa has no decoder, hence no summarization. multinli is mnli once more.",
    ]


_ABOUT_BATCHING = (
    f"{_BATCHING_SIZE} datasets for the study of batching (§5.2, Figure 2), drawn at random, in the order of the list "
    "in §A.1, from those without summarization: RoBERTa-Base, which the study trains, has no decoder. The paper does "
    "not say that the datasets which it fine-tunes are among them, so chance decides on those, too.",
)


def _listed(names: Sequence[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} and {last}"


def _about_mini(size: int, count: int) -> list[str]:
    return [
        f"{size} of {count} small datasets for a study of scale on real data that packages ship. Each "
        f"mini_scale_*.yaml has the datasets of the smaller ones and more; the order is mini_scale_all.yaml's.",
        f"First come {_listed(_MINI_SEEN)}, which the studies fine-tune on as seen, and one dataset of each other "
        f"family; the others follow in random order.",
        f"{_listed(_MINI_UNSEEN)} are in none of them: they are what to fine-tune on as unseen. Summarization is left "
        f"out, as it needs a decoder.",
        "Large datasets give a part of their examples, so that an epoch takes ten minutes on a CPU core.",
    ]
