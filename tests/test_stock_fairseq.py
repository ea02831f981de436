"""What we write, stock fairseq reads: its own task trains on our folder, without our plugin."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from muppet_fairseq.data.tokenizer import Tokenizer
from preprocess.__main__ import prepare
from preprocess.download import Fetch
from tests.toy_data import nli_entry, nli_rows, write_bert_tokenizer, write_wheel


def test_sentence_prediction_trains_on_a_folder_of_ours(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(write_bert_tokenizer(tmp_path / "tokenizer"))
    entry = nli_entry(write_wheel(tmp_path / "raw", {"toy/nli.jsonl": nli_rows(40)}))
    prepare([entry], tokenizer, tmp_path / "data-bin", Fetch(tmp_path, tmp_path / "raw"))
    options = """--task sentence_prediction --arch roberta_base --criterion sentence_prediction
        --classification-head-name sentence_classification_head --num-classes 3
        --init-token 0 --separator-token 2 --max-positions 512
        --encoder-layers 2 --encoder-embed-dim 32 --encoder-ffn-embed-dim 64 --encoder-attention-heads 2
        --optimizer adam --lr 0.001 --batch-size 8 --max-update 2 --cpu --no-save --num-workers 0
        --log-format simple --log-interval 1 --required-batch-size-multiple 1 --dropout 0 --attention-dropout 0"""
    result = subprocess.run(
        [sys.executable, "-m", "fairseq_cli.train", str(tmp_path / "data-bin/toy_nli"), *options.split()],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    log = result.stdout + result.stderr
    assert result.returncode == 0, log[-3000:]
    assert f"[input] dictionary: {len(tokenizer.dictionary)} types" in log
    # three classes, four special symbols, and the <mask> that fairseq's loader adds
    assert "[label] dictionary: 8 types" in log
    assert "Loaded train with #samples: 30" in log
    assert "Loaded valid with #samples: 10" in log
    losses = [float(loss) for loss in re.findall(r"\| loss (\d+\.\d+)", log)]
    # an untrained model is near the uniform guess, log2(3) = 1.58 bits
    assert losses
    assert all(abs(loss - 1.585) < 0.5 for loss in losses)
