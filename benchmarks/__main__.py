"""``python -m benchmarks NAME``: every benchmark is a module with ``add_arguments(parser)`` and ``run(args)``."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import (
    balance,
    choices,
    gpu,
    heads,
    memory,
    overhead,
    padding,
    peer,
    planning,
    preprocess,
    r3f,
    scaling,
    startup,
    table,
    tuning,
)
from muppet_fairseq.errors import MuppetError
from muppet_fairseq.files import write_text
from muppet_fairseq.provenance import hardware, versions

BENCHMARKS = {
    "balance": balance,
    "choices": choices,
    "gpu": gpu,
    "heads": heads,
    "memory": memory,
    "overhead": overhead,
    "padding": padding,
    "peer": peer,
    "planning": planning,
    "preprocess": preprocess,
    "r3f": r3f,
    "scaling": scaling,
    "startup": startup,
    "tuning": tuning,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a benchmark and print its figures as one line of JSON, with the command, the machine and the versions."""
    # importing fairseq lets every library log its debugging messages
    logging.getLogger().setLevel(logging.WARNING)
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    names = parser.add_subparsers(required=True, metavar="NAME")
    for name, module in BENCHMARKS.items():
        summary = module.__doc__.partition("\n")[0]
        benchmark = names.add_parser(name, help=summary, description=summary)
        module.add_arguments(benchmark)
        benchmark.add_argument("--write", type=Path, metavar="FILE", help="write the figures to this file, too")
        benchmark.set_defaults(run=module.run, name=name)
    tables = names.add_parser("table", help=table.__doc__)
    tables.add_argument("files", type=Path, nargs="+", help="what --write has written")
    tables.set_defaults(name="table")
    args = parser.parse_args(arguments)
    try:
        if args.name == "table":
            print(table.markdown(args.files))
            return 0
        figures = args.run(args)
        command = " ".join(["python -m benchmarks", *(sys.argv[1:] if arguments is None else arguments)])
        made_by = {"machine": hardware(), "versions": versions()}
        result = {"benchmark": args.name, "command": command, **figures, **made_by}
        if args.write is not None:
            write_text(args.write, json.dumps(result, indent=1) + "\n")
    except MuppetError as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 1
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
