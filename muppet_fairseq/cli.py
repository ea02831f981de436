"""The ``muppet`` command: one subcommand for each thing that is not ``fairseq-train``."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence

from muppet_fairseq import audit, evaluate, plan, release, report, study
from muppet_fairseq.hf import export, importing
from muppet_fairseq.prompts import fold, nearest, similarity

COMMANDS = {"plan": plan, "import-hf": importing, "export-hf": export, "evaluate": evaluate, "release": release}
COMMANDS |= {"fold": fold, "similarity": similarity, "nearest": nearest}
COMMANDS |= {"study": study, "report": report, "audit": audit}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run ``muppet COMMAND ...``. Every command is a module with ``add_arguments(parser)`` and ``run(args)``."""
    # importing fairseq lets every library log its debugging messages
    logging.getLogger().setLevel(logging.WARNING)
    parser = argparse.ArgumentParser(prog="muppet", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, module in COMMANDS.items():
        summary = module.__doc__.splitlines()[0]
        command = commands.add_parser(name, help=summary, description=summary)
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    args = parser.parse_args(arguments)
    args.run(args)


if __name__ == "__main__":
    main()
