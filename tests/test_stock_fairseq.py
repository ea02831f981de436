"""What we write, stock fairseq reads: its own task trains on our folder, without our plugin."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np

from muppet_fairseq.data.tokenizer import Tokenizer
from preprocess.download import Fetch
from preprocess.prepare import prepare
from tests.toy_data import nli_entry, nli_rows, write_bert_tokenizer, write_wheel

SHORT_RUN = """--optimizer adam --max-update 2 --cpu --no-save --num-workers 0 --log-format simple --log-interval 1
    --required-batch-size-multiple 1 --dropout 0 --attention-dropout 0"""
SENTENCE_PREDICTION = """--task sentence_prediction --arch roberta_base --criterion sentence_prediction
    --classification-head-name sentence_classification_head --init-token 0 --separator-token 2 --max-positions 512
    --encoder-layers 2 --encoder-embed-dim 32 --encoder-ffn-embed-dim 64 --encoder-attention-heads 2 --lr 0.001"""


def stock_train(folder: Path, options: str) -> tuple[str, list[float]]:
    """Train with fairseq alone; return the log, and the losses of the updates and of the validation."""
    result = subprocess.run(
        [sys.executable, "-m", "fairseq_cli.train", str(folder), *f"{options} {SHORT_RUN}".split()],
        cwd=folder.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    log = result.stdout + result.stderr
    assert result.returncode == 0, log[-3000:]
    losses = [float(loss) for loss in re.findall(r"\| loss (\d+(?:\.\d+)?)", log)]
    assert losses
    return log, losses


def test_sentence_prediction_trains_on_a_folder_of_ours(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(write_bert_tokenizer(tmp_path / "tokenizer"))
    entry = nli_entry(write_wheel(tmp_path / "raw", {"toy/nli.jsonl": nli_rows(40)}))
    prepare([entry], tokenizer, tmp_path / "data-bin", Fetch(tmp_path, tmp_path / "raw"))
    log, losses = stock_train(tmp_path / "data-bin/toy_nli", f"{SENTENCE_PREDICTION} --num-classes 3 --batch-size 8")
    assert f"[input] dictionary: {len(tokenizer.dictionary)} types" in log
    # three classes, four special symbols, and the <mask> that fairseq's loader adds
    assert "[label] dictionary: 8 types" in log
    assert "Loaded train with #samples: 30" in log
    assert "Loaded valid with #samples: 10" in log
    # an untrained model is near the uniform guess, log2(3) = 1.58 bits
    assert all(abs(loss - 1.585) < 0.5 for loss in losses)


def test_sentence_prediction_trains_on_numbers_of_ours(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(write_bert_tokenizer(tmp_path / "tokenizer"))
    rows = [{**row, "label": 50 + i / 8} for i, row in enumerate(nli_rows(40))]
    entry = nli_entry(
        write_wheel(tmp_path / "raw", {"toy/nli.jsonl": rows}), family="regression", metric="pearson", labels=()
    )
    prepare([entry], tokenizer, tmp_path / "data-bin", Fetch(tmp_path, tmp_path / "raw"))
    log, losses = stock_train(
        tmp_path / "data-bin/toy_nli", f"{SENTENCE_PREDICTION} --num-classes 1 --regression-target --batch-size 40"
    )
    assert "Loaded train with #samples: 30" in log
    assert "Loaded valid with #samples: 10" in log
    # an untrained model predicts about 0; the criterion takes squared errors for nats and logs bits
    square = np.mean([row["label"] ** 2 for row in rows]) / np.log(2)
    assert all(abs(loss / square - 1) < 0.1 for loss in losses)


def test_translation_trains_on_a_folder_of_ours(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(write_bert_tokenizer(tmp_path / "tokenizer"))
    rows = [{"document": f"the dog {i} ran, who ran {i}", "summary": f"the dog {i} ran"} for i in range(40)]
    entry = nli_entry(
        write_wheel(tmp_path / "raw", {"toy/news.jsonl": rows}),
        name="toy_news",
        family="summarization",
        fields={"source": "document", "target": "summary"},
        metric="rouge2",
        labels=(),
    )
    prepare([entry], tokenizer, tmp_path / "data-bin", Fetch(tmp_path, tmp_path / "raw"))
    log, losses = stock_train(
        tmp_path / "data-bin/toy_news",
        "--task translation --source-lang source --target-lang target --arch transformer_tiny --lr 0.0001 "
        "--criterion cross_entropy --batch-size 40",
    )
    # without the <mask> that our tasks add
    types = len(tokenizer.dictionary) - 1
    for side in ("source", "target"):
        assert f"[{side}] dictionary: {types} types" in log
        assert re.search(rf"loaded 30 examples from: \S+/toy_news/train\.source-target\.{side}", log)
        assert re.search(rf"loaded 10 examples from: \S+/toy_news/valid\.source-target\.{side}", log)
    # an untrained model is near the uniform guess
    assert all(abs(loss - np.log2(types)) < 1 for loss in losses)
