"""Run ``fairseq-train`` with this program's arguments, then print the most memory that it has had, in bytes, as JSON.

A program of its own, which imports nothing else of ours: what it measures is stock fairseq's, too.
"""

import json
import resource

import torch
from fairseq_cli import train

if __name__ == "__main__":
    imported = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    train.cli_main()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    # fairseq resets it at each update: that of the last one
    allocated = torch.cuda.max_memory_allocated() if torch.cuda.is_initialized() else 0
    print(json.dumps({"peak": peak, "imports": imported, "gpu": allocated}))
