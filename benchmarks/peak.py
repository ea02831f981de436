"""Run ``fairseq-train`` with this program's arguments, then print the most memory that it has had, in bytes, as JSON.

A program of its own, which imports nothing else of ours: what it measures is stock fairseq's, too.
"""

import json
from pathlib import Path

import torch
from fairseq_cli import train


def peak_memory() -> int:
    """Bytes of this process at most so far (``ru_maxrss`` would begin with those of the process that started it)."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["VmHWM"].split()[0]) * 1024


if __name__ == "__main__":
    imported = peak_memory()
    train.cli_main()
    peak = peak_memory()
    # fairseq resets it at each update: that of the last one
    allocated = torch.cuda.max_memory_allocated() if torch.cuda.is_initialized() else 0
    print(json.dumps({"peak": peak, "imports": imported, "gpu": allocated}))
