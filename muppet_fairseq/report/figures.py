"""The figure of a study: bars, lines, curves or a heat map, all readable without colour."""

from __future__ import annotations

import io
import itertools
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from muppet_fairseq.files import write_bytes
from muppet_fairseq.report.read import Column, Start
from muppet_fairseq.report.scores import Cell, Scores
from muppet_fairseq.report.section import Section
from muppet_fairseq.report.tables import signed, variant_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: of bars, the base's first: light and dark in turn, so that neighbours differ in grey print, too
LOOKS = (
    ("#e3e3e3", ""),
    ("#4e79a7", ""),
    ("#c9d8ea", "////"),
    ("#1f3552", ""),
    ("#9db7d5", "...."),
    ("#6f6f6f", "\\\\\\\\"),
    ("#ffffff", "xxxx"),
    ("#30557f", "++++"),
)
LINE = "#1f3552"
#: marker and line of each curve, so that they differ in grey print, too
CURVES = (("o", "-"), ("s", "--"), ("^", "-"), ("D", ":"), ("v", "--"), ("P", "-."), ("X", "-"), ("*", ":"))
SCORE = "score (%)"
#: of red, green and blue
LUMINANCE = (0.2126, 0.7152, 0.0722)
#: of a figure, in inches
WIDTH = 11.0
STYLE = {
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "hatch.linewidth": 0.6,
    "svg.hashsalt": "muppet",  # the same ids each time
}

#: of each format that is written: nothing that differs from one time to the next
METADATA: dict[str, dict[str, None]] = {"png": {"Software": None}, "svg": {"Date": None, "Creator": None}}


def draw(section: Section, folder: Path) -> None:
    """Write ``<study>.png`` and ``<study>.svg``. Scores there must be. Raises MuppetError."""
    import matplotlib

    with matplotlib.rc_context(STYLE):
        figure = {"bars": _bars, "lines": _lines, "curves": _curves, "heat_map": _heat_maps}[section.study.figure](
            section
        )
        for kind in METADATA:
            _write(figure, folder / f"{section.study.name}.{kind}")


def draw_similarities(names: Sequence[str], values: np.ndarray, path: Path) -> None:
    """Write a heat map of similarities ``[n, n]`` between prompts to a PNG or SVG file. Raises MuppetError."""
    import matplotlib

    def draw_panel(axes: Axes) -> None:
        _heat_map(axes, values, "{:.2f}", "upper")
        axes.set_xticks(range(len(names)), [_wrapped(name) for name in names], rotation=45, ha="right")
        axes.set_yticks(range(len(names)), [_wrapped(name) for name in names])

    with matplotlib.rc_context(STYLE):
        title = "cosine similarity of prompts"
        _write(_panels([(title, draw_panel)], 2.2 + 0.55 * len(names), 1.8 + 0.45 * len(names)), path)


def _write(figure: Figure, path: Path) -> None:
    buffer, kind = io.BytesIO(), path.suffix[1:]
    figure.savefig(buffer, format=kind, dpi=150, metadata=METADATA[kind])
    write_bytes(path, buffer.getvalue())


#: draws one panel
Draw = Callable[["Axes"], None]


def _panels(panels: Sequence[tuple[str, Draw]], width: float, height: float) -> Figure:
    """Draw titled panels of a size in inches, as many in a row as there is room for."""
    from matplotlib.figure import Figure

    columns = min(max(1, int(WIDTH / width)), len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(columns * width, rows * height), layout="constrained")
    for place, (title, draw_panel) in enumerate(panels):
        axes = figure.add_subplot(rows, columns, place + 1)
        axes.set_title(title)
        draw_panel(axes)
    return figure


def _title(section: Section, model: str, *words: str) -> str:
    return ", ".join([model, *words] if len(section.models) > 1 else words)


def _scored(scores: Scores, columns: Sequence[Column]) -> list[str]:
    """Labels of those columns that have a finished run."""
    with_seeds = {label for (_, _, label), cell in scores.cells.items() if cell.seeds}
    return [column.label for column in columns if column.label in with_seeds]


# bars


def _bars(section: Section) -> Figure:
    """A bar for each start: at each column, or with variants a panel for each column and bars at each variant."""
    labels = dict.fromkeys(start.label for scores in section.models for start in scores.study.starts)
    looks = dict(zip(labels, itertools.cycle(LOOKS), strict=False))
    panels, names = [], []
    for model, scores in zip(section.labels, section.models, strict=True):
        if section.with_variants:
            for label in _scored(scores, scores.study.columns):
                places = [(variant_name(variant), variant, label) for variant in scores.study.variants]
                panels.append((_title(section, model, label), _bar_panel(scores, places, looks)))
                names.append([name for name, _, _ in places])
        elif labels := _scored(scores, scores.study.columns):
            places = [(_wrapped(label), None, label) for label in labels]
            panels.append((_title(section, model), _bar_panel(scores, places, looks)))
            names.append([name for name, _, _ in places])
    starts = max(len(scores.study.starts) for scores in section.models)
    longest = max(len(line) for found in names for name in found for line in name.split("\n"))
    group = max(0.25 + 0.25 * starts, 0.15 + 0.075 * longest)
    return _with_legend(_panels(panels, max(3.4, 0.7 + group * max(map(len, names))), 3.2))


def _wrapped(label: str) -> str:
    return textwrap.fill(label.replace("_", " "), 14, break_long_words=False)


def _bar_panel(
    scores: Scores, places: Sequence[tuple[str, str | None, str]], looks: dict[str, tuple[str, str]]
) -> Draw:
    """``places`` along the x axis: their names, and variant and column of their bars. ``looks`` by start's label."""

    def draw_panel(axes: Axes) -> None:
        starts = scores.study.starts
        width = 0.8 / len(starts)
        for place, start in enumerate(starts):
            colour, hatch = looks[start.label]
            x = np.arange(len(places)) + (place - (len(starts) - 1) / 2) * width
            cells = [scores.cells.get((start.name, variant, label)) for _, variant, label in places]
            means = [cell.mean if cell and cell.seeds else 0.0 for cell in cells]
            axes.bar(x, means, 0.92 * width, color=colour, hatch=hatch, edgecolor="black", lw=0.6, label=start.label)
            for at, cell in zip(x, cells, strict=True):
                if cell:
                    _seeds(axes, at, width, cell)
        axes.set_xticks(range(len(places)), [name for name, _, _ in places])
        axes.tick_params(axis="x", length=0)
        axes.set_ylabel(SCORE)
        axes.margins(x=0.02)
        if len(starts) == 2:
            for at, (_, variant, label) in enumerate(places):
                _gain(axes, at, [scores.cells.get((start.name, variant, label)) for start in starts])

    return draw_panel


def _gain(axes: Axes, at: float, cells: Sequence[Cell | None]) -> None:
    """Write the difference of two means above their bars; only where both are of the same seeds."""
    base, other = cells
    if base and other and base.seeds and base.seeds == other.seeds:
        top = max(cell.mean + (cell.sd or 0) for cell in (base, other))
        top = max(top, *base.values(base.seeds), *other.values(other.seeds))
        axes.annotate(
            signed(other.mean - base.mean), (at, top), (0, 4), textcoords="offset points", ha="center", fontsize=8
        )
        axes.margins(y=0.12)


def _seeds(axes: Axes, at: float, width: float, cell: Cell) -> None:
    """The standard deviation as a whisker and each seed as a dot."""
    if not cell.seeds:
        _absent(axes, at, cell)
        return
    values = cell.values(cell.seeds)
    if cell.sd is not None:
        axes.errorbar(at, cell.mean, cell.sd, color="black", lw=1, capsize=2.5)
    across = at + np.linspace(-0.18, 0.18, len(values)) * width * (len(values) > 1)
    axes.plot(across, values, "o", color="white", markeredgecolor="black", markeredgewidth=0.7, markersize=3.2)


def _absent(axes: Axes, at: float, cell: Cell) -> None:
    """Say where a planned score would stand why it does not."""
    looks = {"rotation": 90, "ha": "center", "va": "bottom", "fontsize": 7}
    axes.text(at, 0.02, cell.absence, transform=axes.get_xaxis_transform(), **looks)


def _with_legend(figure: Figure) -> Figure:
    handles = {}
    for axes in figure.axes:
        handles |= dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    # a key, its name and the space after it, in inches
    entry = 0.6 + 0.075 * max(map(len, handles))
    columns = max(1, min(4, len(handles), int(figure.get_figwidth() / entry)))
    figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=columns, frameon=False)
    return figure


# lines


def _lines(section: Section) -> Figure:
    """A panel for each column (and variant): score over the starts' x."""
    panels = []
    for model, scores in zip(section.labels, section.models, strict=True):
        for label in _scored(scores, scores.columns):
            for variant in scores.study.variants:
                words = [label] + [variant_name(variant)] * section.with_variants
                panels.append((_title(section, model, *words), _line_panel(scores, variant, label)))
    figure = _panels(panels, 2.9, 2.4)
    figure.supxlabel(section.study.axis, fontsize=STYLE["font.size"])
    figure.supylabel(SCORE, fontsize=STYLE["font.size"])
    return _with_legend(figure)


def _line_panel(scores: Scores, variant: str | None, label: str) -> Draw:
    def draw_panel(axes: Axes) -> None:
        base, *others = scores.study.starts
        reference = scores.cells.get((base.name, variant, label))
        if reference and reference.seeds:
            axes.axhline(reference.mean, color="black", ls="--", lw=1, label=base.label)
            if reference.sd is not None:
                axes.axhspan(
                    reference.mean - reference.sd, reference.mean + reference.sd, color="#bbbbbb", alpha=0.5, lw=0
                )
        found = [(start.x, scores.cells.get((start.name, variant, label))) for start in _by_x(others)]
        drawn = [(x, cell) for x, cell in found if cell and cell.seeds]
        axes.errorbar(
            [x for x, _ in drawn],
            [cell.mean for _, cell in drawn],
            [cell.sd or 0.0 for _, cell in drawn],
            color=LINE,
            marker="o",
            markersize=4,
            lw=1.4,
            elinewidth=0.9,
            capsize=2.5,
            label="pre-finetuned",
        )
        for x, cell in found:
            if cell and not cell.seeds:
                _absent(axes, x, cell)
        axes.set_xticks([x for x, _ in found], [f"{x:g}" for x, _ in found])

    return draw_panel


def _by_x(starts: Sequence[Start]) -> list[Start]:
    return sorted(starts, key=lambda start: start.x)


# curves


def _curves(section: Section) -> Figure:
    """A panel for each column: score over the variants, a line for each start."""
    panels = [
        (_title(section, model, label), _curve_panel(scores, label))
        for model, scores in zip(section.labels, section.models, strict=True)
        for label in _scored(scores, scores.columns)
    ]
    figure = _panels(panels, 3.4, 2.8)
    figure.supxlabel("training set", fontsize=STYLE["font.size"])
    figure.supylabel(SCORE, fontsize=STYLE["font.size"])
    return _with_legend(figure)


def _curve_panel(scores: Scores, label: str) -> Draw:
    def draw_panel(axes: Axes) -> None:
        variants = scores.study.variants
        for start, (marker, style) in zip(scores.study.starts, itertools.cycle(CURVES), strict=False):
            cells = [scores.cells.get((start.name, variant, label)) for variant in variants]
            drawn = [(place, cell) for place, cell in enumerate(cells) if cell and cell.seeds]
            axes.errorbar(
                [place for place, _ in drawn],
                [cell.mean for _, cell in drawn],
                [cell.sd or 0.0 for _, cell in drawn],
                color=LINE,
                marker=marker,
                markersize=4.5,
                markerfacecolor="white" if style != "-" else LINE,
                ls=style,
                lw=1.2,
                elinewidth=0.7,
                capsize=2,
                label=start.label,
            )
        axes.set_xticks(range(len(variants)), [variant_name(variant) for variant in variants])
        axes.margins(x=0.08)

    return draw_panel


# heat maps


def _heat_maps(section: Section) -> Figure:
    """A panel for each column: starts by x upwards from the base, variants to the right."""
    panels = [
        (_title(section, model, label), _heat_panel(scores, label, section.study.axis))
        for model, scores in zip(section.labels, section.models, strict=True)
        for label in _scored(scores, scores.study.columns)
    ]
    variants = max(len(scores.study.variants) for scores in section.models)
    starts = max(len(scores.study.starts) for scores in section.models)
    return _panels(panels, 1.2 + 0.42 * variants, 0.9 + 0.32 * starts)


def _heat_panel(scores: Scores, label: str, axis: str) -> Draw:
    def draw_panel(axes: Axes) -> None:
        base, *others = scores.study.starts
        starts, variants = [base, *_by_x(others)], scores.study.variants
        means = np.full((len(starts), len(variants)), np.nan)
        for row, start in enumerate(starts):
            for column, variant in enumerate(variants):
                cell = scores.cells.get((start.name, variant, label))
                if cell and cell.seeds:
                    means[row, column] = cell.mean
        _heat_map(axes, means, "{:.1f}", "lower")
        axes.axhline(0.5, color="black", lw=1)
        axes.set_xticks(range(len(variants)), [variant_name(variant) for variant in variants])
        axes.set_yticks(range(len(starts)), [base.label, *(f"{start.x:g}" for start in starts[1:])])
        axes.set_xlabel("training set")
        axes.set_ylabel(axis)

    return draw_panel


def _heat_map(axes: Axes, values: np.ndarray, form: str, origin: Literal["lower", "upper"]) -> None:
    """Cells with their numbers; hatched where there is none. ``origin`` is where the first row is."""
    image = axes.imshow(values, cmap="Blues", origin=origin, aspect="auto")
    for (row, column), value in np.ndenumerate(values):
        if np.isnan(value):
            axes.fill_between(
                [column - 0.5, column + 0.5], row - 0.5, row + 0.5, hatch="////", facecolor="none", edgecolor="grey"
            )
            continue
        light = np.dot(image.cmap(image.norm(value))[:3], LUMINANCE) > 0.5
        colour = "black" if light else "white"
        axes.text(column, row, form.format(value), ha="center", va="center", fontsize=7.5, color=colour)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
