"""``python -m benchmarks NAME``: every benchmark is a module with ``add_arguments(parser)`` and ``run(args)``."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Sequence

from benchmarks import preprocess, r3f
from muppet_fairseq.errors import MuppetError
from muppet_fairseq.provenance import versions

BENCHMARKS = {"preprocess": preprocess, "r3f": r3f}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a benchmark and print its figures as JSON, with the command and the versions that made them."""
    # importing fairseq lets every library log its debugging messages
    logging.getLogger().setLevel(logging.WARNING)
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    names = parser.add_subparsers(required=True, metavar="NAME")
    for name, module in BENCHMARKS.items():
        summary = module.__doc__.partition("\n")[0]
        benchmark = names.add_parser(name, help=summary, description=summary)
        module.add_arguments(benchmark)
        benchmark.set_defaults(run=module.run)
    args = parser.parse_args(arguments)
    try:
        figures = args.run(args)
    except MuppetError as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 1
    command = ["python", "-m", "benchmarks", *(sys.argv[1:] if arguments is None else arguments)]
    print(json.dumps({"command": " ".join(command), **figures, "versions": versions()}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
