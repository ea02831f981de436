"""The report as a page: Markdown, and the same as one HTML file that needs nothing else."""

from __future__ import annotations

import re
import shlex
from argparse import ArgumentParser
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

import markdown
import numpy as np

from muppet_fairseq.report.compare import Comparison
from muppet_fairseq.report.read import NOT_STARTED, STATES, Run
from muppet_fairseq.report.scores import MEAN
from muppet_fairseq.report.section import Section
from muppet_fairseq.report.tables import (
    choices_table,
    comparison_table,
    hyper_parameters,
    plain,
    pre_finetuning_table,
    scores_tables,
    signed,
)

#: corrected p below which the words call a difference significant
LEVEL = 0.05
#: so many comparisons of a start are named, more are counted; longer tables are folded
NAMED, FOLDED = 10, 20

TITLE = "Studies"

FIGURE_CAPTIONS = {
    "bars": "Bars: means. Dots: seeds. Whiskers: standard deviation over seeds.",
    "curves": "Means and standard deviation over seeds.",
    "lines": "Means and standard deviation over seeds; dashed, in grey: the base.",
    "heat_map": "Means; the lowest row is the base. Hatched: no run has finished.",
}

STYLE = """
:root { color-scheme: light dark; }
body { margin: 0 auto; max-width: 72rem; padding: 1rem; font: 16px/1.5 system-ui, sans-serif; }
h2 { margin-top: 3rem; border-top: 1px solid #8888; padding-top: 1rem; }
.scroll { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 0.9rem; }
th, td { padding: 0.2rem 0.6rem; white-space: nowrap; vertical-align: bottom; }
thead th { border-block: 1.5px solid; }
tbody tr:last-child td { border-bottom: 1.5px solid; }
em { opacity: 0.75; }
summary { cursor: pointer; margin: 1rem 0; }
figure { margin: 1rem 0; padding: 0.5rem; background: white; border-radius: 4px; overflow-x: auto; }
figure svg { display: block; max-width: 100%; height: auto; margin: auto; }
code { overflow-wrap: anywhere; }
"""


def has_scores(section: Section) -> bool:
    """Whether any column has a finished run, so that there is something to draw."""
    return any(
        cell.seeds for scores in section.models for (_, _, label), cell in scores.cells.items() if label != MEAN.label
    )


def page(sections: Sequence[Section]) -> str:
    """The whole report in Markdown. Its figures are looked for as ``figures/<study>.png``."""
    parts = [f"# {TITLE}"]
    if len(sections) > 1:
        parts.append("\n".join(f"- {plain(s.study.title)}: {states(s.runs)}" for s in sections))
    parts += [part for section in sections for part in _section(section)]
    return "\n\n".join(parts) + "\n"


def summary(section: Section) -> str:
    """What the terminal shows of a study: its runs' states and its scores."""
    return "\n\n".join([f"## {plain(section.study.title)}", *_runs(section), *scores_tables(section)])


def states(runs: Sequence[Run]) -> str:
    """``48 runs: 45 finished, 1 failed, 2 not started``."""
    counts = Counter(run.state for run in runs)
    found = [f"{counts[state]} {state}" for state in (*STATES.values(), NOT_STARTED) if counts[state]]
    return f"{len(runs)} {'run' if len(runs) == 1 else 'runs'}: {', '.join(found)}"


def _section(section: Section) -> list[str]:
    study = section.study
    about = f"{study.about} In the paper: {study.paper}." if study.paper else study.about
    parts = [f"## {plain(study.title)}", plain(about), *_runs(section), *scores_tables(section), _caption(section)]
    if has_scores(section):
        parts += [f"![{plain(study.title)}](figures/{study.name}.png)", FIGURE_CAPTIONS[study.figure]]
    if section.comparisons:
        parts += [f"### Compared with {plain(study.reference.label)}", *_in_words(section), *_comparisons(section)]
    parts += ["### Hyper-parameters", *_hyper_parameters(section)]
    if pre_finetuning := pre_finetuning_table(section):
        words = (
            "Mean scaled loss of the last epoch: uniform predictions cost 1. Of several runs (seeds, teachers), "
            "updates and seconds are sums, the loss is their mean."
        )
        parts += ["### Pre-finetuning", pre_finetuning, words]
    return [*parts, "### Made with", *_made_with(section)]


def _runs(section: Section) -> list[str]:
    """States of all runs, and why runs failed."""
    parts = [f"{states(section.runs)}."]
    failed: dict[str, list[str]] = defaultdict(list)
    for run in section.runs:
        if run.state == "failed":
            failed[run.reason or "no reason was left"].append(plain(run.path))
    if failed:
        parts.append("\n".join(f"- failed: {plain(reason)}: {', '.join(paths)}" for reason, paths in failed.items()))
    return parts


def _caption(section: Section) -> str:
    metrics, joined = defaultdict(dict), {}
    for scores in section.models:
        for (_, _, label), cell in scores.cells.items():
            if cell.seeds and label != MEAN.label:
                metrics["/".join(cell.shown)][label] = None
                if len(cell.shown) > 1:
                    joined[next(iter(cell.means))] = None
    seeds = {len(cell.planned) for scores in section.models for cell in scores.cells.values()}
    words = ["Percent; the best of a column underlined."]
    if seeds == {1}:
        words.append("One seed, so there is neither a spread nor a test over seeds.")
    else:
        words.append(f"Mean ± standard deviation over {' or '.join(map(str, sorted(seeds)))} seeds.")
    if section.comparisons:
        words.append(f"Differences: from {plain(section.study.reference.label)}.")
    if metrics:
        named = [f"{plain(metric)} ({', '.join(map(plain, labels))})" for metric, labels in metrics.items()]
        words.append(f"Metrics: {'; '.join(named)}.")
    if joined:
        words.append(f"Of several, {' and '.join(joined)} counts: for ±, differences, underlines and tests.")
    return " ".join(words)


def _in_words(section: Section) -> list[str]:
    """Which differences are significant over the test examples, for each start."""
    by_start: dict[tuple[str, str], list[Comparison]] = defaultdict(list)
    means: dict[tuple[str, str], list[Comparison]] = defaultdict(list)
    for comparison in section.comparisons:
        if comparison.difference is not None:
            of = means if comparison.column == MEAN.label else by_start
            of[comparison.model, comparison.start.label].append(comparison)
    lines = []
    for (model, start), found in by_start.items():
        name = f"{model}, {start}" if len(section.models) > 1 else start
        mean = np.mean([c.difference for c in found])
        higher = sum(c.difference > 0 for c in found)
        interval = ""
        if len(means[model, start]) == 1 and (test := means[model, start][0].over_examples):
            interval = f" ({signed(test.low)} to {signed(test.high)})"
        words = f"{signed(mean)} points on average{interval}, higher on {higher} of {len(found)}."
        tested = [c for c in found if c.over_examples]
        significant = [c for c in tested if c.over_examples.holm < LEVEL]
        if len(found) > NAMED:
            gains = sum(c.difference > 0 for c in significant)
            words += f" Significant: {f'{gains} gains, {len(significant) - gains} losses' if significant else 'none'}."
        else:
            for kind, those in (
                ("Significant", significant),
                ("Not significant", [c for c in tested if c not in significant]),
                ("Not tested", [c for c in found if c not in tested]),
            ):
                words += f" {kind}: {_names(those)}." if those else ""
        lines.append(f"- **{plain(name)}**: {words}")
    if not lines:
        return []
    about = (
        f"Significant: p over the test examples is below {LEVEL:g} after Holm's correction for their number. "
        "In brackets behind an average, its 95% interval over them. That is about other test examples, not about other "
        "seeds."
    )
    return ["\n".join(lines), about]


def _names(comparisons: Sequence[Comparison]) -> str:
    return "; ".join(
        f"{plain(c.column)}{f', {plain(c.variant)}' if c.variant else ''} ({signed(c.difference)})" for c in comparisons
    )


def _comparisons(section: Section) -> list[str]:
    found = section.comparisons
    over_seeds, over_examples = (
        sum(getattr(c, kind) is not None for c in found) for kind in ("over_seeds", "over_examples")
    )
    words = (
        f"{len(found)} comparisons, over the seeds that both starts have: paired t-tests, {over_seeds} over seeds and "
        f"{over_examples} over test examples (their scores averaged over the seeds; a mean's are those of its columns, "
        "each with the same weight, by Welch's degrees of freedom; examples about the same thing, as a passage, are no "
        "independent ones: clustered by that, where the runs know of it). p is not corrected for their "
        "number; in brackets it is, by Holm's method, each kind of test for itself. The first interval says what "
        "another seed may change, the second what other test examples may. No interval: fewer than two pairs, or all "
        "differences the same."
    )
    why: dict[str, dict[str, None]] = defaultdict(dict)
    for c in found:
        if c.no_examples:
            why[c.no_examples][plain(c.column)] = None
    untested = [f"No test over examples, because {reason}: {', '.join(columns)}." for reason, columns in why.items()]
    return [_folded(comparison_table(section), "all comparisons"), words, *untested]


def _folded(table: str, name: str) -> str:
    """A long table behind a line to click on."""
    rows = table.count("\n") - 1
    if rows <= FOLDED:
        return table
    return f'<details markdown="1">\n<summary>{name} ({rows})</summary>\n\n{table}\n\n</details>'


def _hyper_parameters(section: Section) -> list[str]:
    choices = [choice for scores in section.models for choice in scores.choices]
    if all(choice.points == 1 for choice in choices):
        points = list(dict.fromkeys(hyper_parameters(choice.hyper_parameters) for choice in choices))
        if len(points) == 1:
            return [f"The same for every fine-tuning: {points[0]}."]
        return [_folded(choices_table(section), "hyper-parameters")]
    same = all(scores.same_grid for scores in section.models)
    words = (
        "Of each grid the point with the most finished seeds and then the best mean score is used everywhere above. "
        "It was chosen on the same examples that are reported, as in the paper: scores are optimistic. "
    )
    words += (
        "Every start has the same grid, so differences are less so."
        if same
        else "The starts' grids are not the same, so differences may favour the start with the larger one."
    )
    return [words, _folded(choices_table(section), "chosen points")]


def _made_with(section: Section) -> list[str]:
    commands = list(dict.fromkeys(scores.study.command for scores in section.models))
    parts = ["\n".join(f"- `{command}`" for command in commands)]
    name = next((tuning.run.name for tuning in section.study.fine_tunings if tuning.run.name), None)
    if name:
        parts.append(f"A single run again: `{_again(commands[0], name)}`")
    if section.versions:
        found = ", ".join(f"{name} {' and '.join(numbers)}" for name, numbers in section.versions.items())
        parts.append(plain(f"{found}; on {' and '.join(section.hardware)}."))
    return parts


def _again(command: str, name: str) -> str:
    """The command that does one run of ``command`` in a new folder.

    Without ``--records``: with them it would find the run finished and do nothing.
    """
    parser = ArgumentParser(add_help=False)
    parser.add_argument("--records")
    parser.add_argument("--runs")
    words = parser.parse_known_args(shlex.split(command))[1]
    return shlex.join([*words, "--only", name, "--runs", "again"])


def html_page(text: str, figures: Path) -> str:
    """The Markdown ``text`` as a page of its own, the SVG files of ``figures`` in it."""
    body = markdown.markdown(text, extensions=["tables", "md_in_html"])
    body = re.sub(r"<table>.*?</table>", r'<div class="scroll">\g<0></div>', body, flags=re.DOTALL)
    body = re.sub(
        r'<p><img alt="([^"]*)" src="figures/([^"]*)\.png" /></p>',
        lambda found: _inlined(figures / f"{found[2]}.svg", found[1]),
        body,
    )
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{TITLE}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def _inlined(path: Path, title: str) -> str:
    """The drawing, its ids unlike those of the page's other drawings."""
    drawing = path.read_text(encoding="utf-8")
    drawing = re.sub(r'( id="|href="#|url\(#)', rf"\g<1>{path.stem}-", drawing[drawing.index("<svg") :])
    return f'<figure role="img" aria-label="{title}">\n{drawing}</figure>'
