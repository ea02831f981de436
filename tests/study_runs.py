"""Made-up studies on disk, as ``muppet study`` leaves them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

#: probability of a right answer, by start, variant, dataset, hyper-parameters and seed
Skill = Callable[[str, str | None, str, dict[str, Any], int], float]

VERSIONS = {"python": "3.11.7", "muppet_fairseq": "0.1.0", "torch": "2.13.0"}


def fixed(*words: object) -> np.random.Generator:
    """A generator for these words, the same each time."""
    return np.random.default_rng(int.from_bytes(hashlib.sha256(repr(words).encode()).digest()[:8]))


def write_run(runs: Path, path: str, **fields: Any) -> None:
    """``run.json`` of a finished run, but for what ``fields`` say."""
    described = {
        "format": 1,
        "kind": path.partition("/")[0],
        "name": path.rpartition("/")[2],
        "state": "finished",
        "reason": None,
        "commands": ["fairseq-train ..."],
        "seconds": 12.3,
        "versions": VERSIONS,
        "hardware": "2 CPU cores, x86_64",
        "training": {"updates": 60, "loss": 0.83},
    }
    (runs / path).mkdir(parents=True, exist_ok=True)
    (runs / path / "run.json").write_text(json.dumps(described | fields))


def accuracy(scores: np.ndarray) -> dict[str, Any]:
    """The result of a dataset whose examples are right (1) or wrong (0)."""
    return {
        "family": "commonsense",
        "metric": "accuracy",
        "metrics": {"accuracy": float(scores.mean())},
        "examples": len(scores),
        "example_scores": scores.tolist(),
    }


def column(label: str, *datasets: str, group: str = "") -> dict[str, Any]:
    return {"label": label, "group": group, "datasets": list(datasets or (label.lower(),))}


def start(name: str, x: float = 0) -> dict[str, Any]:
    runs = [] if name == "base" else [f"pre_finetuning/{name}"]
    return {"name": name, "label": name.replace("_", " "), "x": x, "runs": runs}


def write_study(
    runs: Path,
    skill: Skill,
    *,
    study: str = "batching",
    starts: Sequence[dict[str, Any]] = (start("base"), start("batch_homogeneous"), start("batch_heterogeneous")),
    columns: Sequence[dict[str, Any]] = (column("PIQA", group="Commonsense"), column("BoolQ", group="SP")),
    variants: Sequence[str | None] = (None,),
    grid: Sequence[dict[str, Any]] = ({"lr": 0.0001, "adam-eps": 1e-6, "dropout": 0.1},),
    seeds: Sequence[int] = (1, 2, 3),
    examples: int = 200,
    **fields: Any,
) -> dict[str, Any]:
    """Write a study all of whose runs have finished; every column is fine-tuned by itself. Returns study.json."""
    fine_tunings = []
    for begin in starts:
        for path in begin["runs"]:
            write_run(runs, path)
        for variant in variants:
            for datasets in [entry["datasets"] for entry in columns]:
                for number, point in enumerate(grid):
                    for seed in seeds:
                        path = f"fine_tuning/{datasets[0]}/{study}-{begin['name']}-{variant or 'all'}-{number}-{seed}"
                        results = {}
                        for dataset in datasets:
                            hard = fixed(dataset).random(examples) * 0.5  # the same examples in all runs
                            share = skill(begin["name"], variant, dataset, point, seed)
                            right = fixed(path).random(examples) < np.clip(share + 0.25 - hard, 0, 1)
                            results[dataset] = accuracy(right.astype(float))
                        write_run(runs, path, results=results)
                        fine_tunings.append(
                            {
                                "start": begin["name"],
                                "variant": variant,
                                "datasets": datasets,
                                "hyper_parameters": point,
                                "seed": seed,
                                "run": path,
                            }
                        )
    described = {
        "format": 1,
        "study": study,
        "title": "Batching strategies",
        "about": "The same datasets, dealt to updates in three ways.",
        "paper": "Section 5.2, Figure 2",
        "model": "MiniLM",
        "scale": "mini",
        "figure": "bars",
        "axis": "batching strategy",
        "command": f"muppet study examples/studies/{study}.yaml --scale mini",
        "starts": list(starts),
        "columns": list(columns),
        "fine_tunings": fine_tunings,
    } | fields
    folder = runs / "studies" / study
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "study.json").write_text(json.dumps(described))
    return described
