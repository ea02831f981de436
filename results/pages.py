"""Make the reports and pages in ``results/`` again of their records: ``python -m results.pages [FOLDER ...]``.

Of each folder with records (``runs.jsonl``), the report and its figures are made by ``muppet report``; in its
``README.md`` every number that is a link to a record, and every table, become what the report now says; the project's
page has its headline and such links of ``results/mini``. The words around them stay: read them again.
"""

from __future__ import annotations

import functools
import json
import re
import sys
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import yaml

from muppet_fairseq import cli
from muppet_fairseq.files import write_text

RESULTS = Path(__file__).parent
#: the project's page: its headline is of records, too
PROJECT = RESULTS.parent / "README.md"
#: folders with records
RECORDED = sorted(path.parent.name for path in RESULTS.glob("*/runs.jsonl"))

_LINK = re.compile(r"\[([^\]]*)\]\(([^)\s]*)\)")
_TABLE = re.compile(r"(?:^\|.*\|$\n?)+", re.MULTILINE)
#: what a number must not touch: R3F, §5.2 and mini_scale_4 are names
_NUMBER = re.compile(r"(?<![\w§.,+-])[+-]?\d[\d,]*(?:\.\d+)?(?![\w-])")
#: numbers that are names of places in a paper, and the level of the intervals
_PLACE = r"\d+(?:\.\d+)*"
_NAMES = re.compile(rf"\b(?:Figure|Table|Section|Eq\.)s? {_PLACE}(?:(?:,| and| to) {_PLACE})*|\b95%")
#: figures that are said with their sign
_SIGNED = ("difference", "low", "high")


@functools.cache
def _content(text: str, suffix: str) -> Any:
    return json.loads(text) if suffix == ".json" else yaml.safe_load(text)


def recorded(target: str, folder: Path) -> Any:
    """What ``FILE#A/B/C`` leads to, in a JSON or YAML file; ``FILE`` is relative to the page's ``folder``.

    In a ``report.json`` that is ``STUDY[/VARIANT]/START/COLUMN/FIGURE``, where FIGURE is of the cell (``mean``, ``sd``)
    or of its comparison with the study's reference (``difference``, ``over_seeds.low``, ``over_examples.p``), or
    ``STUDY[/VARIANT]/START/pre_finetuning/FIGURE`` (``runs.0.loss``, ``teachers.0.loss``). Elsewhere, a list or a
    mapping stands for its length, and ``FILE#`` is the whole file.
    """
    name, _, fragment = target.partition("#")
    file = folder / name
    found = _content(file.read_text(encoding="utf-8"), file.suffix)
    keys = [unquote(key) for key in fragment.split("/")] if fragment else []
    if file.name != "report.json":
        for key in keys:
            found = found[int(key) if isinstance(found, list) else key]
        return len(found) if isinstance(found, (list, dict)) else found
    study, *variant, start, column, figure = keys
    study = found["studies"][study]
    (model,) = study["models"]
    place = {"start": start, "variant": variant[0] if variant else None, "column": column}
    if column == "pre_finetuning":
        entries, place = model["pre_finetuning"], {"start": start}
    else:
        entries = model["cells"] if figure in ("mean", "sd") else study["comparisons"]
    (one,) = (entry for entry in entries if place.items() <= entry.items())
    for key in figure.split("."):
        one = one[int(key)] if isinstance(one, list) else one[key]
    return one


def _said(text: str) -> re.Match[str] | None:
    """The number that begins ``text``, its decimal places as the group."""
    return re.match(r"[+-]?\d[\d,]*(?:\.(\d+))?", text)


def _as(text: str, value: float, *, signed: bool) -> str:
    """``value`` to as many places as the number that begins ``text`` has."""
    return _written(value, len(_said(text)[1] or ""), signed=signed)


def _written(value: float, places: int, *, signed: bool) -> str:
    # + 0.0: no minus before what rounds to nothing
    return f"{round(value, places) + 0.0:{'+' if signed else ''},.{places}f}"


def problems(page: str, folder: Path) -> list[str]:
    """What a page says that its records do not, or that does not name its record."""
    found = []
    for sentence in _sentences(page):
        for text, target in _LINK.findall(sentence):
            if "#" not in target:
                continue
            value, number = recorded(target, folder), _said(text)
            if number is None or number[0] != _as(text, value, signed=text.startswith("+")):
                found.append(f"{text!r} is not {value}, which {target} says")
        for number in _NUMBER.findall(_NAMES.sub("", _LINK.sub("", sentence))):
            found.append(f"{number} names no record: {sentence}")
    report = tables((folder / "report.md").read_text(encoding="utf-8")) if tables(page) else []
    found += [f"this table is not the report's:\n{table}" for table in tables(page) if table not in report]
    return found


def refreshed(page: str, folder: Path) -> str:
    """The page with the numbers of its links, and the tables, as the records have them now.

    A table that the report does not have becomes its first with the same head.
    """
    report = tables((folder / "report.md").read_text(encoding="utf-8")) if tables(page) else []
    return _with_links(_with_tables(page, report), folder)


def headed(page: str) -> str:
    """The project's page with its headline, and the numbers of its links, as the records have them now."""
    return _with_links(_with_tables(page, [headline()]), PROJECT.parent)


def headline() -> str:
    """The project's table: of the study ``scale``, the base beside pre-finetuning on all datasets."""
    report = json.loads((RESULTS / "mini" / "report.json").read_text(encoding="utf-8"))
    (model,) = report["studies"]["scale"]["models"]

    def figure(start: str, column: str, name: str, *, signed: bool = False) -> str:
        value = recorded(f"report.json#scale/{start}/{quote(column)}/{name}", RESULTS / "mini")
        return _written(value, 1, signed=signed)

    head = "| dataset | in pre-finetuning | base | pre-finetuned | gain | 95% |"
    lines = [head, "| --- | --- | ---: | ---: | ---: | ---: |"]
    for column, group in [*((c["label"], c["group"]) for c in model["columns"]), ("mean", "all")]:
        base, mean = (figure(start, column, "mean") for start in ("base", "all_datasets"))
        names = ("difference", "over_examples.low", "over_examples.high")
        gain, low, high = (figure("all_datasets", column, name, signed=True) for name in names)
        lines.append(f"| {column} | {group} | {base} | {mean} | {gain} | {low} to {high} |")
    return "\n".join([*lines, ""])


def _with_tables(page: str, report: list[str]) -> str:
    by_head = {table.split("\n", 1)[0]: table for table in reversed(report)}

    def table(found: re.Match[str]) -> str:
        return found[0] if found[0] in report else by_head.get(found[0].split("\n", 1)[0], found[0])

    return _TABLE.sub(table, page)


def _with_links(page: str, folder: Path) -> str:
    def link(found: re.Match[str]) -> str:
        text, target = found.groups()
        number = _said(text)
        if "#" not in target or number is None:
            return found[0]
        signed = text.startswith("+") or target.rpartition(".")[2].rpartition("/")[2] in _SIGNED
        return f"[{_as(text, recorded(target, folder), signed=signed)}{text[number.end() :]}]({target})"

    return _LINK.sub(link, page)


def tables(page: str) -> list[str]:
    """Its Markdown tables."""
    return _TABLE.findall(page)


def _sentences(page: str) -> list[str]:
    """The prose of a page: no code, headings or tables."""
    page = re.sub(r"^```.*?^```$", "", page, flags=re.MULTILINE | re.DOTALL)
    blocks = re.split(r"\n\s*\n|\n(?=- )", page)
    prose = [" ".join(block.split()) for block in blocks if not re.match(r"\s*(?:#|\||!\[)", block)]
    return [sentence for block in prose for sentence in re.split(r"(?<=[.:;]) +", re.sub(r"`[^`]*`", "", block))]


def main() -> None:
    for folder in map(Path, sys.argv[1:] or [RESULTS / name for name in RECORDED]):
        cli.main(["report", str(folder)])
        # of what a report is made of, these are not kept in the repository
        for file in [folder / "report.html", *folder.glob("figures/*.svg")]:
            file.unlink(missing_ok=True)
        page = folder / "README.md"
        if page.exists():
            text = refreshed(page.read_text(encoding="utf-8"), folder)
            write_text(page, text)
            for problem in problems(text, folder):
                print(f"{page}: {problem}")
    write_text(PROJECT, headed(PROJECT.read_text(encoding="utf-8")))


if __name__ == "__main__":
    main()
