"""Compare fine-tunings that started from the base encoder with those from the pre-finetuned one."""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from muppet_fairseq.errors import MuppetError
from muppet_fairseq.files import write_text
from muppet_fairseq.provenance import versions

STARTS = ("base", "pre_finetuned")


@dataclass
class Comparison:
    """One dataset: scores in percent of its main metric, by start, in the order of the seeds."""

    name: str
    seen: bool
    metric: str
    scores: dict[str, dict[int, float]] = field(default_factory=lambda: {start: {} for start in STARTS})
    test_examples: int = 0

    @property
    def seeds(self) -> list[int]:
        """Seeds that finished from both starts: only these are compared."""
        return sorted(set(self.scores["base"]) & set(self.scores["pre_finetuned"]))

    def values(self, start: str) -> np.ndarray:
        return np.array([self.scores[start][seed] for seed in self.seeds])

    @property
    def gain(self) -> float:
        return float((self.values("pre_finetuned") - self.values("base")).mean())


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", type=Path, help="folder with fine_tuning/DATASET/START/SEED/{run.json,train.log}")


def run(args: argparse.Namespace) -> None:
    """Write ``report.json``, ``report.md`` and ``gains.png`` into the runs' folder, and print the table."""
    comparisons = collect(args.runs)
    described = describe(args.runs, comparisons)
    draw(comparisons, args.runs / "gains.png")
    text = markdown(described, comparisons)
    write_text(args.runs / "report.json", json.dumps(described, indent=2) + "\n")
    write_text(args.runs / "report.md", text)
    print(text)
    print(f"written: {args.runs / 'report.md'}, {args.runs / 'report.json'}, {args.runs / 'gains.png'}")


def last_logged(log: Path, tag: str) -> dict[str, Any]:
    """The last JSON line with ``tag`` (``valid``, ``train_inner``, ...) that fairseq wrote to ``log``.

    Raises MuppetError when there is none.
    """
    text = log.read_text(encoding="utf-8") if log.exists() else ""
    found = re.findall(rf"\| {tag} \| (\{{.*\}})$", text, flags=re.MULTILINE)
    if not found:
        raise MuppetError(
            f"{log} has no line of {tag!r}: the run did not get there; delete its folder and run it again"
        )
    return json.loads(found[-1])


def collect(runs: Path) -> list[Comparison]:
    """Read all finished runs, kept-out datasets first. Raises MuppetError where there is nothing to compare."""
    by_name: dict[str, Comparison] = {}
    for name, start, seed in _started(runs):
        folder = _folder(runs, name, start, seed)
        if not (folder / "run.json").exists():
            continue
        valid = last_logged(folder / "train.log", "valid")
        metric = _main_metric(valid, name, folder / "train.log")
        comparison = by_name.setdefault(name, Comparison(name, _seen(folder / "run.json"), metric))
        comparison.scores[start][seed] = 100 * float(valid["valid_score"])
        comparison.test_examples = int(float(valid["valid_examples"]))
    compared = [comparison for comparison in by_name.values() if comparison.seeds]
    if not compared:
        raise MuppetError(f"{runs} has no dataset that was fine-tuned from both starts; run the fine-tunings first")
    return sorted(compared, key=lambda comparison: (comparison.seen, comparison.name))


def _started(runs: Path) -> list[tuple[str, str, int]]:
    """Dataset, start and seed of every run that has a folder."""
    parts = (path.parts[-3:] for path in runs.glob("fine_tuning/*/*/*"))
    return sorted((name, start, int(seed)) for name, start, seed in parts if start in STARTS and seed.isdigit())


def _folder(runs: Path, name: str, start: str, seed: int) -> Path:
    return runs / "fine_tuning" / name / start / str(seed)


def _seen(run: Path) -> bool:
    try:
        return bool(json.loads(run.read_text(encoding="utf-8"))["seen"])
    except (ValueError, KeyError, TypeError):
        raise MuppetError(f"{run} does not say what was run; delete its folder and run it again") from None


def _main_metric(valid: dict[str, Any], dataset: str, log: Path) -> str:
    """The first metric of the dataset that is the score."""
    prefix, score = f"valid_{dataset}_", valid.get("valid_score")
    for key, value in valid.items():
        if key.startswith(prefix) and not key.endswith("_loss") and value == score:
            return key.removeprefix(prefix)
    raise MuppetError(f"{log} has no score of {dataset}; delete its folder and run it again")


def missing_runs(runs: Path) -> list[str]:
    """``DATASET/START/SEED`` of what has not finished: every dataset is expected with every seed from both starts."""
    started = _started(runs)
    names, seeds = sorted({name for name, _, _ in started}), sorted({seed for _, _, seed in started})
    return [
        f"{name}/{start}/{seed}"
        for name, start, seed in itertools.product(names, STARTS, seeds)
        if not (_folder(runs, name, start, seed) / "run.json").exists()
    ]


def describe(runs: Path, comparisons: Sequence[Comparison]) -> dict[str, Any]:
    """Everything that the report says, as JSON values."""
    groups: dict[str, list[float]] = defaultdict(list)
    for comparison in comparisons:
        groups["mean_gain"].append(comparison.gain)
        groups["mean_gain_seen" if comparison.seen else "mean_gain_kept_out"].append(comparison.gain)
    pre = runs / "pre_finetuning" / "train.log"
    return {
        "datasets": {
            c.name: {
                **{start: c.values(start).round(3).tolist() for start in STARTS},
                "seen": c.seen,
                "metric": c.metric,
                "test_examples": c.test_examples,
                "seeds": c.seeds,
                "gain": round(c.gain, 3),
            }
            for c in comparisons
        },
        **{key: round(float(np.mean(gains)), 3) for key, gains in groups.items()},
        "missing": missing_runs(runs),
        "pre_finetuning": _pre_finetuning(pre) if pre.exists() else None,
        "versions": versions(),
        "hardware": f"{os.cpu_count()} CPU cores, {platform.machine()}",
    }


def _pre_finetuning(log: Path) -> dict[str, float]:
    text = log.read_text(encoding="utf-8")
    seconds = re.findall(r"done training in ([\d.]+) seconds", text)
    stats = last_logged(log, "train")
    return {
        "updates": int(stats["train_num_updates"]),
        "final_loss": float(stats["train_loss"]),
        "seconds": float(seconds[-1]) if seconds else float("nan"),
    }


def markdown(described: dict[str, Any], comparisons: Sequence[Comparison]) -> str:
    """The report as a page: the table, what it says in words, and how it was made."""
    lines = ["# Base encoder against pre-finetuned encoder", "", "![gains](gains.png)", ""]
    lines += ["| dataset | in pre-finetuning | metric | base | pre-finetuned | gain | test set allows |"]
    lines += ["| --- | --- | --- | ---: | ---: | ---: | ---: |"]
    for c in comparisons:
        base, tuned = (f"{c.values(s).mean():.1f} ± {_spread(c.values(s)):.1f}" for s in STARTS)
        seen = "seen" if c.seen else "kept out"
        lines.append(f"| {c.name} | {seen} | {c.metric} | {base} | {tuned} | {c.gain:+.1f} | ± {_test_error(c):.1f} |")
    seeds = sorted({len(c.seeds) for c in comparisons})
    lines += ["", f"Mean and standard deviation over {' or '.join(map(str, seeds))} seeds, in percent. "]
    lines[-1] += '"Test set allows": 95% half-width that the number of test examples alone leaves to each mean.'
    if described["missing"]:
        lines += ["", f"Missing, so that no mean of the dataset has the seed: {', '.join(described['missing'])}."]
    lines += ["", *_in_words(described, comparisons), ""]
    pre = described["pre_finetuning"]
    if pre:
        lines.append(
            f"Pre-finetuning: {pre['updates']} updates in {pre['seconds']:.0f} s, mean scaled loss of its last epoch "
            f"{pre['final_loss']:.3f} (uniform predictions cost 1)."
        )
    made_with = ", ".join(f"{name} {number}" for name, number in described["versions"].items())
    lines.append(f"Made with {made_with} on {described['hardware']}.")
    return "\n".join(lines) + "\n"


def _in_words(described: dict[str, Any], comparisons: Sequence[Comparison]) -> list[str]:
    gained = [c.name for c in comparisons if c.gain > 0]
    lost = [f"{c.name} ({c.gain:+.1f})" for c in comparisons if c.gain < 0]
    within = [c.name for c in comparisons if abs(c.gain) <= _test_error(c)]
    words = [
        f"Pre-finetuning gained {described['mean_gain']:+.1f} points on the average of {len(comparisons)} datasets; "
        f"it gained on {len(gained)} of them."
    ]
    if lost:
        words.append(f"It lost on {', '.join(lost)}.")
    if within:
        words.append(f"Too small for these test sets to tell from nothing: {', '.join(within)}.")
    return words


def _spread(values: np.ndarray) -> float:
    return float(values.std(ddof=1)) if len(values) > 1 else 0.0


def _test_error(comparison: Comparison) -> float:
    """1.96 standard errors of a share of ``test_examples``, in percent, at the base's mean score."""
    share = comparison.values("base").mean() / 100
    return float(196 * np.sqrt(share * (1 - share) / comparison.test_examples))


def draw(comparisons: Sequence[Comparison], path: Path) -> None:
    """Draw pairs of bars with one dot a seed; kept-out and seen datasets apart, readable without colour."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(1.6 + 1.5 * len(comparisons), 4.2), layout="constrained")
    looks = {"base": ("#b8c4ce", ""), "pre_finetuned": ("#2c7fb8", "///")}
    places = np.arange(len(comparisons)) + 0.6 * np.array([c.seen for c in comparisons])
    for shift, (start, (colour, hatch)) in zip((-0.2, 0.2), looks.items(), strict=True):
        means = [c.values(start).mean() for c in comparisons]
        label = start.replace("_", "-")
        axes.bar(places + shift, means, 0.38, color=colour, hatch=hatch, edgecolor="white", label=label)
        for place, c in zip(places, comparisons, strict=True):
            values = c.values(start)
            axes.plot([place + shift] * len(values), values, "o", color="black", markersize=3)
    for place, c in zip(places, comparisons, strict=True):
        top = max(c.values(start).max() for start in STARTS)
        axes.text(place, top + 2, f"{c.gain:+.1f}", ha="center", fontweight="bold")
    labels = [f"{c.name.removeprefix('mini_')}\n({'seen' if c.seen else 'kept out'})" for c in comparisons]
    axes.set_xticks(places, labels, fontsize=8)
    axes.set_ylabel("score on the test set (%)")
    axes.set_ylim(0, 1.12 * max(c.values(s).max() for c in comparisons for s in STARTS) + 4)
    axes.set_title("Fine-tuned from the base and from the pre-finetuned encoder (dots: seeds)", fontsize=10)
    axes.legend(loc="upper right", ncols=2, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    temporary = path.with_suffix(".partial.png")
    figure.savefig(temporary, dpi=150)
    pyplot.close(figure)
    os.replace(temporary, path)
