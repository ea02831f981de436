"""A small BART on real data, trained by ``fairseq-train`` and judged by ``muppet evaluate``: ``make test-slow``."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from muppet_fairseq.data.tokenizer import Tokenizer
from muppet_fairseq.hub import MuppetHub
from muppet_fairseq.packages import default_cache
from preprocess.binarize import binarize
from preprocess.catalog import lookup
from preprocess.convert import Examples, Split, convert
from preprocess.download import Fetch
from tests.toy_suite import ROOT, logged, options, trained

pytestmark = pytest.mark.slow

SUITE = ROOT / "examples" / "suites" / "four_families.yaml"
SMALL = ("--arch", "muppet_bart_small", "--lr-scheduler", "polynomial_decay", "--adam-betas", "(0.9,0.98)")


def run(*words: object) -> str:
    command = [sys.executable, "-m", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_bart_overfits_64_real_pairs(gpt2_folder: Path, tmp_path: Path):
    tokenizer, entry, data = Tokenizer.load(gpt2_folder), lookup("mini_xsum"), tmp_path / "data-bin"
    pairs = list(convert(entry, Fetch(default_cache()), 0.01)["train"].examples)[:64]
    data.mkdir()
    tokenizer.save(data / "tokenizer")
    (data / "dict.txt").write_bytes((gpt2_folder / "dict.txt").read_bytes())
    binarize(entry, {split: Split([Examples(pairs)]) for split in ("train", "valid")}, tokenizer, data)
    updates = 240
    trained(
        options(
            *(data, tmp_path / "run", *SMALL, "--max-positions", "128", "--dropout", "0", "--label-smoothing", "0"),
            *("--batch-size", "16", "--max-tokens", "4096", "--update-freq", "1", "--warmup-updates", "20"),
            *("--max-update", str(updates), "--total-num-update", str(updates), "--disable-validation"),
            *("--save-interval", "1000"),
            suite="mini_xsum",
        ),
        timeout=1800,
    )
    printed = run(
        "muppet_fairseq.cli", "evaluate", tmp_path / "run" / "checkpoint_last.pt", data, "--beam", 4, "--json"
    )
    (result,) = json.loads(printed)["results"]
    assert result["examples"] == 64
    assert result["metrics"]["rouge1"] >= 0.9


def test_four_families_train_are_released_and_answer(gpt2_folder: Path, tmp_path: Path):
    data, save_dir = tmp_path / "data-bin", tmp_path / "run"
    run("preprocess", "prepare", "--suite", SUITE, "--tokenizer", gpt2_folder, "--out", data)
    trained(
        options(
            *(data, save_dir, *SMALL, "--criterion", "muppet_r3f", "--max-positions", "128", "--max-tokens", "512"),
            *("--window-overlap", "32", "--update-freq", "8", "--max-update", "24", "--total-num-update", "24"),
            *("--warmup-updates", "4", "--disable-validation", "--ddp-backend", "pytorch_ddp"),
            suite=str(SUITE),
        ),
        workers=2,
        timeout=1800,
    )
    lines = logged(save_dir, "train_inner")
    losses = [float(line["loss"]) for line in lines]
    assert sum(losses[-4:]) / 4 < 0.97 * sum(losses[:2]) / 2
    assert all(float(line["divergence"]) > 0 and float(line["noise_survived"]) > 0.9 for line in lines)
    datasets = "mini_boolq,mini_openbookqa,mini_disflqa,mini_xsum"
    families = {"classification", "commonsense", "mrc", "summarization"}
    release = tmp_path / "release"
    run("muppet_fairseq.cli", "release", save_dir / "checkpoint_last.pt", release, "--data", data)
    said = run(
        *("muppet_fairseq.cli", "evaluate", release, data, "--datasets", datasets, "--json", "--max-len-b", 20),
        *("--predictions", tmp_path / "predictions"),
    )
    results = json.loads(said)["results"]
    assert {result["family"] for result in results} == families
    assert all(0 <= value <= 1 for result in results for value in result["metrics"].values())
    cost = json.loads(run("benchmarks", "r3f", data, "--suite", datasets, "--steps", 6, "--max-tokens", 1024))
    assert cost["figures"]["all"]["ratio"] <= 2.05
    hub = MuppetHub.load(release)
    predicted = [json.loads(line) for line in (tmp_path / "predictions" / "mini_xsum.valid.jsonl").open()]
    documents = list(convert(lookup("mini_xsum"), Fetch(default_cache()), 0.01)["valid"].examples)[:8]
    texts = hub.summarize([document["source"] for document in documents], truncate=True, max_len_b=20)
    assert texts == [line["text"] for line in predicted[:8]]
