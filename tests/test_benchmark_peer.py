"""The benchmark beside a plain loop: both compute the same, on the same examples."""

import argparse
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from benchmarks import peer
from benchmarks.__main__ import main
from benchmarks.training import open_task
from muppet_fairseq.errors import MuppetError

SUITE = "animals,pairs,choices,spans"


@pytest.fixture(scope="module")
def encoder(data, tmp_path_factory) -> Path:
    """An untrained BERT with the toy data's tokenizer."""
    folder = tmp_path_factory.mktemp("encoder")
    shutil.copy(data / "tokenizer" / "tokenizer.json", folder)
    vocabulary = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    config = transformers.BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=40,
        max_position_embeddings=48,
        pad_token_id=vocabulary["[PAD]"],
    )
    torch.manual_seed(1)
    transformers.BertModel(config).save_pretrained(folder)
    return folder


def arguments(data: Path, encoder: Path) -> list[str]:
    words = ["peer", str(data), "--suite", SUITE, "--encoder", str(encoder), "--max-positions", "32", "--rounds", "2"]
    return [*words, "--max-tokens", "128", "--batch-size", "8", "--questions", "3", "--updates", "1000"]


def test_both_train_on_the_same_examples(data, encoder, capsys, monkeypatch):
    trained: dict[str, list[int]] = {"ours": [], "theirs": []}
    our_step, their_step = peer._our_step, peer.Peer.forward

    def ours(trainer, samples):
        trained["ours"] += [(sample["dataset"], int(i)) for sample in samples for i in sample["items"]]
        our_step(trainer, samples)

    def theirs(self, sample):
        if self.training:
            trained["theirs"] += [(sample["dataset"], int(i)) for i in sample["items"]]
        return their_step(self, sample)

    monkeypatch.setattr(peer, "_our_step", ours)
    monkeypatch.setattr(peer.Peer, "forward", theirs)
    assert main(arguments(data, encoder)) == 0
    printed = json.loads(capsys.readouterr().out)
    figures = printed["figures"]
    assert list(figures) == ["ours", "theirs", "theirs on our batches"]
    assert figures["ours"]["padded tokens"] == figures["theirs on our batches"]["padded tokens"]
    assert figures["ours"]["padding"] < figures["theirs"]["padding"]
    # all of the epoch, and its last part before, which warms up
    assert len(set(trained["ours"])) == printed["examples"]
    assert set(trained["ours"]) == set(trained["theirs"])
    for kind in figures.values():
        assert kind["padded tokens"] == kind["padded tokens of the epoch"]
        assert kind["seconds"]["n"] == 2
    made_of = printed["made of"]
    assert printed["targets"][0]["value"] == pytest.approx(made_of["batches"] * made_of["step"], rel=0.01)


def test_the_two_are_the_same_model(data, encoder, tmp_path, capsys):
    other = tmp_path / "other"
    shutil.copytree(encoder, other)
    model = transformers.BertModel.from_pretrained(other)
    model.embeddings.LayerNorm.bias.data[0] += 1e-3
    model.save_pretrained(other)
    parser = argparse.ArgumentParser()
    peer.add_arguments(parser)
    trainer = peer._open_trainer(parser.parse_args(arguments(data, encoder)[1:]), encoder, tmp_path)
    dataset = trainer.task.datasets["train"]
    for folder, same in ((encoder, True), (other, False)):
        theirs = peer._open_encoder(folder, 0.1)
        model = peer.Peer(theirs, torch.tensor(peer._ids(folder, theirs.config)), trainer)
        if same:
            assert peer._difference(trainer, model, dataset) < 1e-5
        else:
            with pytest.raises(MuppetError, match="the two encoders differ by"):
                peer._difference(trainer, model, dataset)


def test_random_batches(data):
    dataset = open_task(data, SUITE, 32).datasets["train"]
    updates = peer.random_updates(dataset, 8, 3, 4)
    batches = [batch for update in updates for batch in update]
    assert sorted(np.concatenate(batches)) == list(range(len(dataset)))
    assert [len(update) for update in updates[:-1]] == [4] * (len(updates) - 1)
    for batch in batches:
        (number,) = set(np.searchsorted(dataset.ends, batch, side="right"))
        assert len(batch) <= (3 if dataset.specs[number].family == "commonsense" else 8)
    # as few batches as there can be
    sizes = [(3 if spec.family == "commonsense" else 8) for spec in dataset.specs]
    own = np.diff([0, *dataset.ends])
    assert len(batches) == sum(-(-count // size) for count, size in zip(own, sizes, strict=True))
