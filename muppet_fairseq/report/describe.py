"""Everything that the report says as JSON values: scores in percent, differences in points, to ten digits.

The digits after those depend on the processor, which sums in an order of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from muppet_fairseq.report.compare import Comparison
from muppet_fairseq.report.read import Run, Study
from muppet_fairseq.report.scores import Scores
from muppet_fairseq.report.section import Section


def describe(sections: Sequence[Section]) -> dict[str, Any]:
    """Studies by name, in each its models."""
    found = {
        "format": 1,
        "studies": {
            section.study.name: {
                **{
                    key: getattr(section.study, key)
                    for key in ("title", "about", "paper", "figure", "axis", "compared_with")
                },
                "models": [_model(label, scores) for label, scores in zip(section.labels, section.models, strict=True)],
                "versions": section.versions,
                "hardware": section.hardware,
                "comparisons": [_comparison(comparison) for comparison in section.comparisons],
            }
            for section in sections
        },
    }
    return _to_ten_digits(found)


def _to_ten_digits(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _to_ten_digits(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_to_ten_digits(entry) for entry in value]
    return float(f"{value:.10g}") if isinstance(value, float) else value


def _model(label: str, scores: Scores) -> dict[str, Any]:
    study = scores.study
    return {
        "label": label,
        **{key: getattr(study, key) for key in ("model", "scale", "command")},
        "columns": [asdict(column) for column in study.columns],
        "cells": [
            {
                "start": start,
                "variant": variant,
                "column": column,
                "planned_seeds": cell.planned,
                "seeds": cell.seeds,
                "failed": cell.failed,
                "mean": cell.mean if cell.seeds else None,
                "sd": cell.sd,
                "metrics": cell.means if cell.seeds else {},
            }
            for (start, variant, column), cell in scores.cells.items()
        ],
        "chosen": [
            {
                **{key: getattr(choice, key) for key in ("start", "variant", "datasets", "hyper_parameters", "score")},
                **{key: getattr(choice, key) for key in ("points", "complete_points")},
            }
            for choice in scores.choices
        ],
        "pre_finetuning": [
            {"start": start.name, **{kind: list(map(_run, getattr(start, kind))) for kind in ("runs", "teachers")}}
            for start in study.starts
            if start.runs
        ],
        "fine_tunings": _fine_tunings(study),
    }


def _fine_tunings(study: Study) -> list[dict[str, Any]]:
    return [
        {
            **{key: getattr(tuning, key) for key in ("start", "variant", "hyper_parameters", "seed")},
            **_run(tuning.run),
            "results": {
                dataset: {"metrics": result.metrics, "examples": result.examples}
                for dataset, result in tuning.run.results.items()
            },
        }
        for tuning in study.fine_tunings
    ]


def _run(run: Run) -> dict[str, Any]:
    keys = ("path", "state", "reason", "updates", "loss", "divergence", "seconds")
    parameters = None if run.parameters is None else asdict(run.parameters)
    return {**{key: getattr(run, key) for key in keys}, "parameters": parameters}


def _comparison(comparison: Comparison) -> dict[str, Any]:
    tests = {"over_seeds": comparison.over_seeds, "over_examples": comparison.over_examples}
    return {
        "model": comparison.model,
        "start": comparison.start.name,
        **{key: getattr(comparison, key) for key in ("variant", "column", "seeds", "difference")},
        **{kind: asdict(test) if test else None for kind, test in tests.items()},
        "no_examples": comparison.no_examples,
    }
