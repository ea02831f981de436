"""A trace of ``fairseq-train``; as a program, the command itself, with a trace where the variable TRACE names a folder.

Each worker writes one JSON line an update: the datasets and example ids of its sub-batches, and a hash of all its
parameters after the update.
"""

import hashlib
import json
import os
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from unittest.mock import MagicMock

if __name__ == "__main__" and "muppet" in sys.argv:
    # fairseq imports them for criteria and models that these runs do not use: a third of a short run's time
    for name in ("sklearn", "sklearn.metrics", "scipy", "scipy.stats"):
        sys.modules[name] = MagicMock(__spec__=ModuleSpec(name, None))
    sys.modules["transformers"] = None


def trace(folder: Path) -> None:
    """Have this process's trainer write its trace to ``folder``."""
    from fairseq.trainer import Trainer

    folder.mkdir(exist_ok=True)
    train_step = Trainer.train_step

    def traced_step(self: Trainer, samples: list, *arguments, **keywords):
        output = train_step(self, samples, *arguments, **keywords)
        digest = hashlib.sha256()
        for parameter in self.model.parameters():
            digest.update(parameter.detach().numpy().tobytes())
        sub_batches = [[sample["dataset"], sample["id"].tolist()] for sample in samples if sample]
        line = {"update": self.get_num_updates(), "sub_batches": sub_batches, "parameters": digest.hexdigest()}
        with open(folder / f"{self.data_parallel_rank}.jsonl", "a") as lines:
            lines.write(json.dumps(line) + "\n")
        return output

    Trainer.train_step = traced_step


if __name__ == "__main__":
    from fairseq_cli.train import cli_main

    if os.environ.get("TRACE"):
        trace(Path(os.environ["TRACE"]))
    cli_main()
