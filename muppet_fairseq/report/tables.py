"""The report's tables, in Markdown."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from statistics import fmean
from typing import Any

from muppet_fairseq.report.compare import PairedTest
from muppet_fairseq.report.read import Run
from muppet_fairseq.report.scores import MEAN, Cell
from muppet_fairseq.report.section import Section

#: of a cell that the study does not plan, and of a number that is not known
NOTHING = "-"


def plain(text: object) -> str:
    """Text that Markdown takes as it is, in one line."""
    line = " ".join(str(text).split()).replace("&", "&amp;").replace("<", "&lt;")
    line = re.sub(r"([\\`*\[\]|])", r"\\\1", line)
    return re.sub(r"(?<!\w)_|_(?!\w)", r"\\_", line)


def table(header: Sequence[str], rows: Iterable[Sequence[str]], texts: int) -> str:
    """A Markdown table whose first ``texts`` columns are text, the others numbers."""
    lines = [header, ["---"] * texts + ["---:"] * (len(header) - texts), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def signed(points: float) -> str:
    """``+1.2``; what rounds to nothing is ``+0.0``."""
    return f"{round(points, 1) + 0.0:+.1f}"


def variant_name(variant: str | None) -> str:
    return "all" if variant is None else variant


def scores_tables(section: Section) -> list[str]:
    """Scores as the paper lays them out: one table, or for a heat map one for each column."""
    if section.study.figure != "heat_map":
        return [_by_start(section)]
    return [f"**{plain(label)}**\n\n{_by_variant(section, label)}" for _, label in section.columns]


def _key(section: Section, model: str, start: str, variant: str | None = None) -> list[str]:
    """First cells of a row or header: the model where there are several, the start, and if given the training set."""
    with_variant = section.with_variants and variant is not None
    return [plain(cell) for cell in [model] * (len(section.models) > 1) + [start] + [variant] * with_variant]


def _by_start(section: Section) -> str:
    """A row for each start (and variant), below it the difference from the reference; a block for each model."""
    key = _key(section, "model", section.study.axis, "training set")
    labels = [label for _, label in section.columns]
    trained = ["trained"] if section.trained else []
    best = {label: _best(section, lambda key, of=label: key[-1] == of) for label in labels}
    rows = []
    for model, scores in zip(section.labels, section.models, strict=True):
        fewer = len(scores.columns) < len(labels)
        shown_model = model
        for start in scores.study.starts:
            shown_start = start.label
            for variant in scores.study.variants:
                cells = [
                    # a mean is not to be held against one of more columns
                    None if fewer and label == MEAN.label else scores.cells.get((start.name, variant, label))
                    for label in labels
                ]
                row = _key(section, shown_model, shown_start, variant_name(variant))
                row += _trained(section, model, start.name, variant)
                rows.append(row + [_cell(cell, best[label]) for cell, label in zip(cells, labels, strict=True)])
                shown_model = shown_start = ""
                if start is not scores.study.reference:
                    row = [""] * (len(key) - 1) + ["*difference*"] + [""] * len(trained)
                    for cell, label in zip(cells, labels, strict=True):
                        found = section.differences.get((model, start.name, variant, label)) if cell else None
                        row.append(signed(found.difference) if found and found.seeds else "")
                    rows.append(row)
    return table([*key, *trained, *_grouped(section.columns)], rows, len(key))


def _trained(section: Section, model: str, start: str, variant: str | None) -> list[str]:
    """A cell that says how many parameters were trained, where a study has that column."""
    if not section.trained:
        return []
    counts = section.trained.get((model, start, variant))
    if not counts:
        return [NOTHING]
    tuned, heads = [c.prompts + c.others for c in counts], [c.heads for c in counts]
    return [f"{_range(tuned)} + {_range(heads)} of heads"]


def _range(numbers: Sequence[int]) -> str:
    least, most = min(numbers), max(numbers)
    return f"{least:,}" if least == most else f"{least:,} to {most:,}"


def _grouped(columns: Sequence[tuple[str, str]]) -> list[str]:
    """Labels of columns; above the first of each group its name."""
    cells, previous = [], ""
    for group, label in columns:
        above = f"{'' if group == previous else plain(group)}<br>" if group else ""
        cells.append(above + plain(label))
        previous = group
    return cells


def _by_variant(section: Section, label: str) -> str:
    """A row for each start, a column for each variant."""
    key = _key(section, "model", section.study.axis)
    variants = list(dict.fromkeys(variant for scores in section.models for variant in scores.study.variants))
    best = {variant: _best(section, lambda key, of=variant: key[1:] == (of, label)) for variant in variants}
    rows = [
        _key(section, model, start.label)
        + [_cell(scores.cells.get((start.name, variant, label)), best[variant]) for variant in variants]
        for model, scores in zip(section.labels, section.models, strict=True)
        for start in scores.study.starts
    ]
    return table(key + [plain(variant_name(variant)) for variant in variants], rows, len(key))


def _best(section: Section, among: Callable[[tuple[str, str | None, str]], bool]) -> str:
    """The best mean of some cells as it is shown; empty where there are no two to compare."""
    means = [cell.mean for scores in section.models for key, cell in scores.cells.items() if among(key) and cell.seeds]
    return f"{max(means):.1f}" if len(means) > 1 else ""


def _cell(cell: Cell | None, best: str) -> str:
    if cell is None:
        return NOTHING
    if not cell.seeds:
        return cell.absence
    text = "/".join(f"{cell.means[name]:.1f}" for name in cell.shown)
    if f"{cell.mean:.1f}" == best:
        text = f"<u>{text}</u>"
    if cell.sd is not None:
        text += f" ± {cell.sd:.1f}"
    if len(cell.seeds) < len(cell.planned):
        text += f" ({len(cell.seeds)} of {len(cell.planned)} seeds)"
    return text


def comparison_table(section: Section) -> str:
    """A row for each comparison with the reference; p after Holm's correction in brackets."""
    key = [*_key(section, "model", section.study.axis, "training set"), "column"]
    rows = [
        [
            *_key(section, c.model, c.start.label, variant_name(c.variant)),
            plain(c.column),
            "no common seed" if c.difference is None else signed(c.difference),
            *_test(c.over_seeds),
            *_test(c.over_examples),
        ]
        for c in section.comparisons
    ]
    return table([*key, "difference", "95%, seeds", "p, seeds", "95%, examples", "p, examples"], rows, len(key))


def _test(test: PairedTest | None) -> tuple[str, str]:
    if test is None:
        return "", ""
    return f"{signed(test.low)} to {signed(test.high)}", f"{_p(test.p)} ({_p(test.holm)})"


def _p(p: float) -> str:
    return "&lt; 0.001" if p < 0.001 else f"{p:.3f}"


def hyper_parameters(point: dict[str, Any]) -> str:
    """``lr 0.0001, dropout 0.1``."""
    return ", ".join(f"{plain(name)} {plain(value)}" for name, value in point.items())


def choices_table(section: Section) -> str:
    """The chosen point of each grid."""
    key = [*_key(section, "model", section.study.axis, "training set"), "evaluated on", "chosen"]
    rows = []
    for model, scores in zip(section.labels, section.models, strict=True):
        start_labels = {start.name: start.label for start in scores.study.starts}
        rows += [
            [
                *_key(section, model, start_labels[choice.start], variant_name(choice.variant)),
                plain(", ".join(choice.datasets)),
                hyper_parameters(choice.hyper_parameters),
                _number(choice.score, ".1f"),
                f"{choice.complete_points} of {choice.points}",
            ]
            for choice in scores.choices
        ]
    return table([*key, "mean", "finished points"], rows, len(key))


def pre_finetuning_table(section: Section) -> str | None:
    """Updates, loss and time of each start's pre-finetunings, and of their teachers; None where there is none.

    Where one had R3F, its divergence is there, too.
    """
    key = [*_key(section, "model", section.study.axis), "state"]
    names = ["updates", "loss", "divergence", "seconds"]
    if all(run.divergence is None for scores in section.models for start in scores.study.starts for run in start.runs):
        names.remove("divergence")
    rows = []
    for model, scores in zip(section.labels, section.models, strict=True):
        taught: dict[tuple[Run, ...], list[str]] = {}
        for start in scores.study.starts:
            if start.teachers:
                taught.setdefault(start.teachers, []).append(start.label)
        for teachers, starts in taught.items():
            label = f"{len(teachers)} teachers of {', '.join(starts)}"
            rows.append([*_key(section, model, label), *_course(teachers, names)])
        for start in scores.study.starts:
            if start.runs:
                rows.append([*_key(section, model, start.label), *_course(start.runs, names)])
    heads = ["mean scaled loss" if name == "loss" else name for name in names]
    return table([*key, "runs", *heads], rows, len(key)) if rows else None


#: how what is known of runs becomes one number, and how that is written
_COURSE = {"updates": (sum, "d"), "loss": (fmean, ".3f"), "divergence": (fmean, ".2g"), "seconds": (sum, ".0f")}


def _course(runs: Sequence[Run], names: Sequence[str]) -> list[str]:
    """State and number of runs, then a number for each of ``names``."""
    states = Counter(run.state for run in runs)
    words = ", ".join(states) if len(states) == 1 else ", ".join(f"{n} {state}" for state, n in states.items())
    numbers = []
    for name in names:
        known = [value for run in runs if (value := getattr(run, name)) is not None]
        join, form = _COURSE[name]
        numbers.append(_number(join(known) if known else None, form))
    return [words, str(len(runs)), *numbers]


def _number(value: float | None, form: str) -> str:
    return NOTHING if value is None else f"{value:{form}}"
