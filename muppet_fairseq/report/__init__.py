"""Compare what studies have found: tables, figures and tests, as a page."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from muppet_fairseq.errors import MuppetError
from muppet_fairseq.files import write_text


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "runs", type=Path, nargs="+", help="folder of 'muppet study'; of several, the models of a study share a table"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="where the report goes (default: into RUNS)")
    parser.add_argument(
        "--records", type=Path, metavar="DIR", help="copy what the report is made of, to make it again of that alone"
    )


def run(args: argparse.Namespace) -> None:
    """Write ``report.md``, ``report.html``, ``report.json`` and ``figures/``; print the tables."""
    # scipy.stats takes a second to import, which no other command needs
    from muppet_fairseq.report.describe import describe
    from muppet_fairseq.report.figures import draw
    from muppet_fairseq.report.page import has_scores, html_page, page, summary
    from muppet_fairseq.report.read import read_studies
    from muppet_fairseq.report.records import write_records
    from muppet_fairseq.report.section import sections

    if args.out is None and len(args.runs) > 1:
        raise MuppetError(f"{len(args.runs)} folders were given; say with --out where their report goes")
    if args.records and len(args.runs) > 1:
        raise MuppetError(f"{len(args.runs)} folders were given; --records takes the runs of one")
    out = args.out or args.runs[0]
    studies = read_studies(args.runs)
    if args.records:
        write_records(studies, args.runs[0], args.records)
    found = sections(studies)
    text = page(found)
    described = json.dumps(describe(found), indent=2, allow_nan=False)
    for section in found:
        if has_scores(section):
            draw(section, out / "figures")
        print(summary(section), end="\n\n")
    write_text(out / "report.md", text)
    write_text(out / "report.html", html_page(text, out / "figures"))
    write_text(out / "report.json", described + "\n")
    print(f"written: {out / 'report.md'}, {out / 'report.html'}, {out / 'report.json'}, {out / 'figures'}")
