"""``fairseq-train``, and a trace of it where the variable TRACE names a folder.

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

if "muppet" in sys.argv:
    # fairseq imports them for criteria and models that these runs do not use: a third of a short run's time
    for name in ("sklearn", "sklearn.metrics", "scipy", "scipy.stats"):
        sys.modules[name] = MagicMock(__spec__=ModuleSpec(name, None))
    sys.modules["transformers"] = None

# first: importing it sets up logging
from fairseq_cli.train import cli_main  # isort: skip
from fairseq.trainer import Trainer

train_step = Trainer.train_step


def traced_step(self: Trainer, samples: list, *arguments, **keywords):
    output = train_step(self, samples, *arguments, **keywords)
    digest = hashlib.sha256()
    for parameter in self.model.parameters():
        digest.update(parameter.detach().numpy().tobytes())
    sub_batches = [[sample["dataset"], sample["id"].tolist()] for sample in samples if sample]
    line = {"update": self.get_num_updates(), "sub_batches": sub_batches, "parameters": digest.hexdigest()}
    with open(Path(os.environ["TRACE"]) / f"{self.data_parallel_rank}.jsonl", "a") as trace:
        trace.write(json.dumps(line) + "\n")
    return output


if __name__ == "__main__":
    if os.environ.get("TRACE"):
        Path(os.environ["TRACE"]).mkdir(exist_ok=True)
        Trainer.train_step = traced_step
    cli_main()
