"""``muppet_bart`` against fairseq's own BART and that of transformers; its checkpoints; real runs on all families."""

from __future__ import annotations

import json
import logging
import shutil
from argparse import Namespace
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from fairseq.data import Dictionary
from fairseq.dataclass.configs import FairseqConfig
from fairseq.models.bart.hub_interface import BARTHubInterface
from fairseq.models.bart.model import BARTModel, bart_base_architecture
from omegaconf import OmegaConf
from torch import Tensor, nn

from muppet_fairseq.criterions.muppet import MuppetCriterion
from muppet_fairseq.data.binarized import BinarizedSplit
from muppet_fairseq.data.tokenizer import Tokenizer
from muppet_fairseq.errors import MuppetError
from muppet_fairseq.evaluate import evaluate
from muppet_fairseq.families import FAMILIES
from muppet_fairseq.families.base import FamilyDataset, pad_rows
from muppet_fairseq.generation import GenerationOptions, Generator
from muppet_fairseq.metrics.rouge import rouge
from muppet_fairseq.models.bart import EMBEDDINGS, MuppetBartModel, muppet_bart_tiny
from muppet_fairseq.tasks.muppet import MuppetTask
from tests.toy_suite import BART_NAMES, logged, open_task, options, train, trained

ALL = ",".join(BART_NAMES)
SIZES = {"encoder_embed_dim": 64, "encoder_ffn_embed_dim": 256, "encoder_layers": 2, "encoder_attention_heads": 2}
SIZES |= {"decoder_layers": 2, "decoder_attention_heads": 2}
POSITIONS = ("encoder.embed_positions.weight", "decoder.embed_positions.weight")
TINY = ("--arch", "muppet_bart_tiny")


def build(task: MuppetTask, seed: int = 1) -> MuppetBartModel:
    """The tiny model for a task, with parameters of its own."""
    args = Namespace()
    muppet_bart_tiny(args)
    torch.manual_seed(seed)
    return perturbed(MuppetBartModel.build_model(args, task))


def build_stock(dictionary: Dictionary, *, positions: int = 32, seed: int = 2) -> BARTModel:
    """fairseq's BART of the same size over a dictionary."""
    args = Namespace(**SIZES, max_source_positions=positions, max_target_positions=positions, task="denoising")
    bart_base_architecture(args)
    torch.manual_seed(seed)
    task = Namespace(source_dictionary=dictionary, target_dictionary=dictionary)
    model = perturbed(BARTModel.build_model(args, task))
    model.args = args
    return model


def perturbed(model: nn.Module) -> nn.Module:
    """Make biases and layer norms differ, too: as they are initialised, one could stand for another."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model.eval()


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.fixture(scope="module")
def task(data) -> MuppetTask:
    return open_task(data, ALL)


def of_stock(task: MuppetTask, **keywords: Any) -> tuple[BARTModel, MuppetBartModel]:
    """fairseq's model and ours with its parameters."""
    stock, ours = build_stock(task.dictionary, **keywords), build(task)
    ours.load_state_dict(stock.state_dict(), strict=True)
    return stock, ours


def split_of(data: Path, task: MuppetTask, name: str) -> FamilyDataset:
    """A dataset's validation split, as it is laid out for evaluation."""
    spec = next(spec for spec in task.specs if spec.name == name)
    split = BinarizedSplit(data, spec, "valid", task.dictionary_sha256)
    return FAMILIES[spec.family].dataset(split, task.layout, training=False)


def sample_of(data: Path, task: MuppetTask, name: str, numbers: range) -> dict[str, Any]:
    dataset = split_of(data, task, name)
    return dataset.collate([dataset[number] for number in numbers])


def row(*parts: int) -> Tensor:
    """``<s> first </s>`` or ``<s> first </s> </s> second </s>`` of random words; ``parts`` are their lengths."""
    words = torch.randint(4, 50, (sum(parts),), generator=torch.Generator().manual_seed(sum(parts)))
    tokens = [torch.tensor([0])]
    for number, part in enumerate(words.split(parts)):
        tokens += [torch.tensor([2])] * (number > 0) + [part, torch.tensor([2])]
    return torch.cat(tokens)


def batch(*rows: Tensor) -> Tensor:
    return pad_rows([r.numpy() for r in rows], 1)


SINGLES = batch(row(3), row(17), row(1), row(8))
PAIRS = batch(row(3, 9), row(10, 12), row(1, 1), row(7, 2))


# -- fairseq's own model ------------------------------------------------------------------------------


def hub_of(stock: BARTModel, task: Any) -> BARTHubInterface:
    return BARTHubInterface(OmegaConf.structured(FairseqConfig), task, stock)


@pytest.mark.parametrize("rows", [SINGLES, PAIRS], ids=["singles", "pairs"])
def test_features_and_classification_are_fairseqs(task, rows):
    """Both of fairseq's ways to a classification: its hub's and its criterion's, with our head's parameters."""
    stock, ours = of_stock(task)
    real = rows != 1
    assert not real.all()
    stock.register_classification_head("ours", num_classes=3)
    stock.classification_heads["ours"].load_state_dict(ours.heads["pairs"].state_dict())
    stock.eval()
    previous = rows.roll(1, dims=1)
    previous[:, 0] = 2
    hub = hub_of(stock, task)
    with torch.no_grad():
        features, expected = ours(rows), hub.extract_features(rows)
        assert features.shape == (4, rows.shape[1], 64)
        torch.testing.assert_close(features[real], expected[real], atol=1e-6, rtol=0)
        scores = ours(rows, head="pairs")
        assert scores.shape == (4, 3)
        assert (scores - scores[0]).abs()[1:].max() > 1e-3
        torch.testing.assert_close(scores, hub.predict("ours", rows, return_logits=True), atol=1e-6, rtol=0)
        by_forward, _ = stock(rows, None, previous, classification_head_name="ours")
        torch.testing.assert_close(scores, by_forward, atol=1e-6, rtol=0)
        torch.testing.assert_close(ours(rows, head="mrc")[real], ours.heads["mrc"](expected)[real], atol=1e-6, rtol=0)


def test_a_row_is_scored_as_it_is_alone(task):
    """Rows with one and with three ``</s>`` in one batch, which fairseq's own forward cannot take."""
    ours, rows = build(task), [row(3), row(3, 9), row(14), row(1, 2)]
    together = batch(*rows)
    with torch.no_grad():
        for head in ("animals", "commonsense"):
            alone = torch.cat([ours(r[None], head=head) for r in rows])
            torch.testing.assert_close(ours(together, head=head), alone, atol=1e-6, rtol=0)
        spans = ours(together, head="mrc")
        for line, r in zip(spans, rows, strict=True):
            torch.testing.assert_close(line[: len(r)], ours(r[None], head="mrc")[0], atol=1e-6, rtol=0)
    # not the first </s> of a pair, nor its middle ones, nor the end of the batch
    sentence = ours(together, head="animals")
    for place in (4, 5, -1):
        other = ours.heads["animals"](ours(together)[:, place])
        assert (sentence[1] - other[1]).abs().max() > 1e-4 or place == -1
        assert (sentence[0] - other[0]).abs().max() > 1e-4 or place == 4


def test_logits_under_teacher_forcing_are_fairseqs(data, task):
    stock, ours = of_stock(task)
    sample = sample_of(data, task, "summaries", range(6))
    previous = sample["prev_output_tokens"]
    assert (previous == 1).any()
    with torch.no_grad():
        logits = FAMILIES["summarization"].logits(ours, sample, None)
        full, _ = stock(sample["net_input"]["src_tokens"], None, previous)
    expected = full[previous != 1]
    assert logits.shape == (len(sample["target"]), len(task.dictionary))
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)
    # what is to be predicted: <s> text </s>, from </s> <s> text
    written = Tokenizer.load(data / "tokenizer").encode_with_eos(sample["references"])
    targets = sample["target"].split(sample["target_lengths"].tolist())
    for line, text, target in zip(previous, written, targets, strict=True):
        assert target.tolist() == [0, *text.tolist()]
        assert line[line != 1].tolist() == [2, 0, *text.tolist()[:-1]]


def test_nothing_but_the_heads_is_added(data, task):
    """With summarization alone nothing at all."""
    stock, ours = build_stock(task.dictionary), build(open_task(data, "summaries"))
    shapes = {name: parameter.shape for name, parameter in ours.named_parameters()}
    assert shapes == {name: parameter.shape for name, parameter in stock.named_parameters()}
    assert count(ours) == count(stock)
    assert ours.state_dict().keys() - stock.state_dict().keys() == {"dictionary_sha256"}
    assert stock.state_dict().keys() <= ours.state_dict().keys()
    ours = build(task)
    assert set(ours.heads) == {"animals", "pairs", "commonsense", "mrc"}
    assert not hasattr(ours, "classification_heads")
    assert count(ours) == count(stock) + count(ours.heads)
    # dense and projection of 2, 3 and 1 classes, and the span head's projection
    assert count(ours.heads) == 3 * (64 * 64 + 64) + 65 * (2 + 3 + 1) + 65 * 2


# -- transformers -------------------------------------------------------------------------------------


def as_transformers(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename the parameters of a BART as transformers names them; it says ``model.`` before all but two."""
    renamed = {}
    for key, value in state.items():
        if key == "decoder.output_projection.weight":
            renamed["lm_head.weight"] = value
        elif key.startswith(("encoder.", "decoder.")) and not key.endswith(".version"):
            renamed[f"model.{key}"] = value
    return renamed | {"model.shared.weight": state["encoder.embed_tokens.weight"]}


def theirs(kind: str, ours: MuppetBartModel) -> nn.Module:
    """A model of transformers (a class's name) with the parameters of ours."""
    import transformers

    config = transformers.BartConfig(
        vocab_size=len(ours.encoder.dictionary),
        max_position_embeddings=32,
        d_model=64,
        **{f"{side}_{what}": n for side in ("encoder", "decoder") for what, n in _THEIR_SIZES.items()},
        forced_eos_token_id=None,
    )
    assert (config.bos_token_id, config.pad_token_id, config.decoder_start_token_id) == (0, 1, 2)
    model = getattr(transformers, kind)(config).eval()
    state = as_transformers(ours.state_dict())
    if kind == "BartForQuestionAnswering":
        del state["lm_head.weight"]
        head = ours.heads["mrc"].out_proj
        state |= {"qa_outputs.weight": head.weight, "qa_outputs.bias": head.bias}
    else:
        assert model.final_logits_bias.count_nonzero() == 0
        state["final_logits_bias"] = model.final_logits_bias
    model.load_state_dict(state, strict=True)
    return model


_THEIR_SIZES = {"layers": 2, "attention_heads": 2, "ffn_dim": 256}


def test_features_and_spans_are_those_of_transformers(task):
    ours = build(task)
    reference = theirs("BartForQuestionAnswering", ours)
    for rows in (SINGLES, PAIRS):
        real = rows != 1
        with torch.no_grad():
            out = reference(rows, attention_mask=real.long())
            features = reference.model(rows, attention_mask=real.long()).last_hidden_state
            torch.testing.assert_close(ours(rows)[real], features[real], atol=1e-5, rtol=0)
            spans = ours(rows, head="mrc")[real]
        torch.testing.assert_close(spans, torch.stack([out.start_logits, out.end_logits], 2)[real], atol=1e-5, rtol=0)
        assert (spans[:, 0] - spans[:, 1]).abs().max() > 1e-2


def test_the_loss_of_a_pair_is_that_of_transformers(data, task):
    ours, family = build(task), FAMILIES["summarization"]
    reference = theirs("BartForConditionalGeneration", ours)
    losses = []
    for number in range(4):
        sample = sample_of(data, task, "summaries", range(number, number + 1))
        tokens = sample["net_input"]["src_tokens"]
        with torch.no_grad():
            losses.append(family.loss(family.logits(ours, sample, None), sample, 0.0))
            expected = reference(tokens, labels=sample["target"][None]).loss
        torch.testing.assert_close(losses[-1], expected[None], atol=1e-5, rtol=0)
    together = sample_of(data, task, "summaries", range(4))
    assert len(set(together["target_lengths"].tolist())) > 1
    with torch.no_grad():
        batched = family.loss(family.logits(ours, together, None), together, 0.0)
    torch.testing.assert_close(batched, torch.cat(losses), atol=1e-5, rtol=0)


# -- published checkpoints ----------------------------------------------------------------------------

#: how the dictionary of a published checkpoint ends
ENDINGS = {"large": ["<mask>"], "base": [*(f"unused{n}" for n in range(5)), "<mask>"], "cnn": []}


def ending_with(data: Path, symbols: list[str]) -> Dictionary:
    dictionary = Dictionary.load(str(data / "dict.txt"))
    for symbol in symbols:
        dictionary.add_symbol(symbol)
    return dictionary


def published(data: Path, kind: str, *, positions: int = 48) -> tuple[BARTModel, dict[str, Tensor]]:
    """A model as the ``kind`` of checkpoint that fairseq published has it, and that checkpoint's parameters.

    Kinds: a key of :data:`ENDINGS`; ``mnli`` is a ``large`` with a head; ``old`` and ``old-base`` are without a matrix
    of their own for the output, and name no version.
    """
    ending = ENDINGS[{"mnli": "large", "old": "large", "old-base": "base"}.get(kind, kind)]
    stock = build_stock(ending_with(data, ending), positions=positions)
    if kind == "mnli":
        stock.register_classification_head("mnli", num_classes=3)
    state = {key: value.clone() for key, value in stock.state_dict().items()}
    if kind.startswith("old"):
        for key in ("decoder.output_projection.weight", "encoder.version", "decoder.version"):
            del state[key]
    return stock, state


def check_restored(task: MuppetTask, stock: BARTModel, state: dict[str, Tensor], kind: str) -> None:
    """``state`` (of ours) holds the parameters of ``stock``, each token its own row."""
    rows, dictionary = stock.encoder.embed_tokens.weight.detach(), stock.encoder.dictionary
    assert len(rows) == len(task.dictionary) + {"base": 5, "old-base": 5, "cnn": -1}.get(kind, 0)
    for key in EMBEDDINGS:
        assert len(state[key]) == len(task.dictionary)
        for index, symbol in enumerate(task.dictionary.symbols):
            if symbol in dictionary:
                assert state[key][index].equal(rows[dictionary.index(symbol)]), (key, symbol)
            else:
                assert (kind, symbol) == ("cnn", "<mask>")
                torch.testing.assert_close(state[key][index], rows.mean(dim=0), atol=1e-6, rtol=0)
    for key, value in stock.state_dict().items():
        if key in POSITIONS:
            assert state[key].equal(value[: 32 + 2])
        elif key.endswith(".version"):
            assert key in state
        elif key not in EMBEDDINGS and not key.startswith("classification_heads."):
            assert state[key].equal(value), key
    assert not any(key.startswith("classification_heads.") for key in state)


@pytest.mark.parametrize("kind", ["large", "base", "cnn", "mnli", "old", "old-base"])
def test_published_checkpoints_load_strictly(data, task, kind):
    stock, state = published(data, kind)
    ours = build(task)
    heads = {key: value.clone() for key, value in ours.heads.state_dict().items()}
    ours.load_state_dict(state, strict=True)
    check_restored(task, stock, ours.state_dict(), kind)
    # one tensor still
    encoder, decoder = ours.encoder.embed_tokens, ours.decoder.embed_tokens
    assert encoder.weight is decoder.weight is ours.decoder.output_projection.weight
    assert all(value.equal(heads[key]) for key, value in ours.heads.state_dict().items())
    # the same text, which <mask> is a part of, by each one's own indices
    tokens = SINGLES.clone()
    if kind != "cnn":
        tokens[1, 4] = tokens[3, 2] = task.dictionary.index("<mask>")
    same = tokens.clone().apply_(lambda index: stock.encoder.dictionary.index(task.dictionary[index]))
    assert kind == "cnn" or (same == len(stock.encoder.dictionary) - 1).sum() == 2
    real = tokens != 1
    with torch.no_grad():
        expected = hub_of(stock, task).extract_features(same)
        torch.testing.assert_close(ours(tokens)[real], expected[real], atol=1e-6, rtol=0)


def test_our_own_checkpoint_is_not_fitted(data, task):
    """It names its dictionary; rows too many are then no ``<mask>``'s matter."""
    state = build(task).state_dict()
    for key in EMBEDDINGS:
        state[key] = torch.cat([state[key], state[key][-1:]])
    with pytest.raises(MuppetError, match=r"embed_tokens\.weight has shape \(\d+, 64\), the model's \(\d+, 64\): "):
        build(task).load_state_dict(state)


@pytest.mark.parametrize("missing", [2, 3])
def test_a_dictionary_of_other_symbols_is_refused(data, task, missing):
    """More than ``<mask>`` is missing: then no row can be told to be a token's."""
    state = build_stock(ending_with(data, [])).state_dict()
    for key in EMBEDDINGS:
        state[key] = state[key][: 1 - missing]
    with pytest.raises(MuppetError, match=rf"shape \({len(task.dictionary) - missing}, 64\), the model's"):
        build(task).load_state_dict(state)


def test_a_model_longer_than_the_checkpoint_is_refused(data, task):
    _, state = published(data, "large", positions=16)
    with pytest.raises(MuppetError) as caught:
        build(task).load_state_dict(dict(state))
    assert str(caught.value) == (
        "the checkpoint has 18 positions, the model 34 (padding's included): set --max-positions to at most 16"
    )
    build(open_task(data, ALL, max_positions=16)).load_state_dict(state)  # the cure is one


def write_published(data: Path, kind: str, path: Path) -> BARTModel:
    """Write a file in the layout of ``bart.base/model.pt``."""
    stock, state = published(data, kind)
    args = Namespace(arch="bart_large", task="denoising", criterion="label_smoothed_cross_entropy", lr=[0.0005])
    history = {"criterion_name": "CrossEntropyCriterion", "optimizer_name": "FairseqAdam", "num_updates": 7}
    checkpoint = {
        "args": args,
        "model": state,
        "optimizer_history": [history | {"lr_scheduler_state": {}}],
        "extra_state": {"train_iterator": {"epoch": 3, "iterations_in_epoch": 5}, "val_loss": 2.5},
        "last_optimizer_state": None,
    }
    torch.save(checkpoint, path)
    return stock


RESETS = tuple(f"--reset-{what}" for what in ("optimizer", "dataloader", "meters", "lr-scheduler"))


@pytest.mark.parametrize(
    ("kind", "way"), [("base", ["--finetune-from-model"]), ("cnn", [*RESETS, "--restore-file"])], ids=["base", "cnn"]
)
def test_fairseq_train_starts_from_a_published_checkpoint(data, task, tmp_path, kind, way):
    """At a learning rate of 0, what is saved is what was loaded."""
    stock = write_published(data, kind, tmp_path / "model.pt")
    more = (*TINY, *way, str(tmp_path / "model.pt"), "--max-update", "1", "--lr", "0", "--disable-validation")
    trained(options(data, tmp_path / "run", *more, suite=ALL))
    saved = torch.load(tmp_path / "run" / "checkpoint_last.pt", weights_only=True)
    assert saved["optimizer_history"][-1]["num_updates"] == 1
    assert saved["extra_state"]["train_iterator"]["epoch"] == 1
    check_restored(task, stock, saved["model"], kind)
    assert {key.split(".")[1] for key in saved["model"] if key.startswith("heads.")} == set(task.heads) - {None}


def test_heads_are_taken_from_a_bart_when_asked(data, task, caplog):
    """Of the suite of five; the decoder needs none."""
    state = build(task).state_dict()
    for reuse in (True, False):
        ours = build(open_task(data, "choices,summaries,counts", reuse_heads=reuse), seed=5)
        before = {key: value.clone() for key, value in ours.heads.state_dict().items()}
        caplog.clear()
        with caplog.at_level(logging.INFO, "muppet_fairseq.models.checkpoint"):
            ours.load_state_dict(dict(state), strict=True)
        for key, value in ours.heads.state_dict().items():
            taken = reuse and key.startswith("commonsense.")
            assert value.equal(state[f"heads.{key}"] if taken else before[key]), key
        said = ["heads re-used: commonsense", "heads fresh: counts"] if reuse else ["heads fresh: commonsense, counts"]
        assert [r.getMessage() for r in caplog.records] == [*said, "heads left out: animals, mrc, pairs"]


# -- training -----------------------------------------------------------------------------------------


def state_of(path: Path) -> dict[str, Tensor]:
    """Parameters and optimizer state of a checkpoint."""
    checkpoint = torch.load(path, weights_only=True)
    tensors = dict(checkpoint["model"])
    for number, values in checkpoint["last_optimizer_state"]["state"].items():
        tensors |= {f"{number}.{key}": torch.as_tensor(value) for key, value in values.items()}
    return tensors


def traced(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def valid_of(save_dir: Path) -> dict[str, float]:
    """The metrics of a run's last validation."""
    line = logged(save_dir, "valid")[-1]
    return {key: float(value) for key, value in line.items() if key.startswith("valid_")}


@pytest.fixture(scope="module")
def pre_finetuned(data, tmp_path_factory) -> Path:
    """Folder of a run over all families, with dropout; traced, and with its checkpoint of the middle of an epoch."""
    save_dir = tmp_path_factory.mktemp("bart")
    more = (*TINY, *STOCHASTIC, "--save-interval-updates", str(MIDDLE), "--keep-interval-updates", "1")
    trained(options(data, save_dir, *more, suite=ALL), trace=save_dir / "trace")
    return save_dir


#: an epoch has 10 updates
MIDDLE, END = 36, 44
STOCHASTIC = ("--dropout", "0.1", "--max-update", str(END), "--lr", "0.003", "--disable-validation")


def test_resumed_in_mid_epoch_is_bit_identical(data, pre_finetuned, tmp_path):
    shutil.copyfile(pre_finetuned / f"checkpoint_4_{MIDDLE}.pt", tmp_path / "checkpoint_last.pt")
    trained(options(data, tmp_path, *TINY, *STOCHASTIC, suite=ALL), trace=tmp_path / "trace")
    whole, parts = (traced(folder / "trace" / "0.jsonl") for folder in (pre_finetuned, tmp_path))
    assert [update["update"] for update in parts] == list(range(MIDDLE + 1, END + 1))
    for key in ("sub_batches", "parameters"):
        assert [update[key] for update in parts] == [update[key] for update in whole[MIDDLE:]]
    ours, reference = (state_of(folder / "checkpoint_last.pt") for folder in (tmp_path, pre_finetuned))
    assert ours.keys() == reference.keys()
    assert all(ours[key].equal(reference[key]) for key in reference)


@pytest.fixture(scope="module")
def one_and_two(data, pre_finetuned, tmp_path_factory) -> dict[int, Path]:
    """Folders of the same run on one and on two workers: on with a BART and its heads, writing in validation."""
    folder = tmp_path_factory.mktemp("workers")
    # SGD: Adam would blow up the rounding errors of gradients that are 0
    more = [*TINY, "--finetune-from-model", str(pre_finetuned / "checkpoint_last.pt"), "--reuse-heads"]
    more += ["--dropout", "0", "--attention-dropout", "0", "--optimizer", "sgd", "--lr", "0.1", "--max-update", "5"]
    more += ["--eval-rouge", "--eval-rouge-args", json.dumps(SEARCH)]
    for workers in (1, 2):
        trained(
            options(data, folder / str(workers), *more, suite=ALL), workers=workers, trace=folder / f"trace{workers}"
        )
    return {workers: folder / str(workers) for workers in (1, 2)}


SEARCH = {"beam": 3, "lenpen": 0.5, "no_repeat_ngram_size": 2, "min_len": 2, "max_len_b": 4}


def test_two_workers_equal_one(one_and_two):
    """All families, their sub-batches dealt to two: bit-identical workers, and one worker's parameters."""
    folder = one_and_two[1].parent
    first, second = (traced(folder / "trace2" / f"{worker}.jsonl") for worker in range(2))
    one = traced(folder / "trace1" / "0.jsonl")
    assert [u["parameters"] for u in first] == [u["parameters"] for u in second]
    assert len({u["parameters"] for u in one}) == len(first) == 5
    seen = {dataset for update in one for dataset, _ in update["sub_batches"]}
    assert seen == set(range(len(BART_NAMES)))
    for a, b, both in zip(first, second, one, strict=True):
        assert sorted(a["sub_batches"] + b["sub_batches"]) == sorted(both["sub_batches"])
        assert a["sub_batches"] != b["sub_batches"]
    reference, ours = (state_of(one_and_two[workers] / "checkpoint_last.pt") for workers in (1, 2))
    assert ours.keys() == reference.keys()
    for key in reference:
        torch.testing.assert_close(ours[key], reference[key], atol=1e-6, rtol=1e-5, msg=key)


def test_fine_tuning_takes_the_heads_of_a_bart(pre_finetuned, one_and_two):
    for save_dir in one_and_two.values():
        assert "heads re-used: animals, commonsense, mrc, pairs\n" in (save_dir / "train.log").read_text()
    before, after = (state_of(folder / "checkpoint_last.pt") for folder in (pre_finetuned, one_and_two[1]))
    for key in (key for key in before if key.startswith("heads.") and key.endswith("weight")):
        # five steps of SGD on clipped gradients do not lead far
        assert (after[key] - before[key]).abs().max() < 0.2 * before[key].abs().max(), key


def test_rouge_in_validation_is_that_of_evaluate(data, one_and_two):
    """In a real run, for one worker and for two; with other options it is another."""
    one, two = (valid_of(one_and_two[workers]) for workers in (1, 2))
    assert {key for key in one if key.startswith("valid_summaries_")} == {
        *(f"valid_summaries_{metric}" for metric in ("loss", "token_accuracy", "rouge1", "rouge2", "rougeL"))
    }
    assert one.keys() == two.keys()
    for key in one.keys() - {"valid_wps", "valid_wpb", "valid_bsz"}:
        assert two[key] == pytest.approx(one[key], rel=1e-4), key

    def evaluated(**search: Any) -> dict[str, float]:
        search = asdict(GenerationOptions()) | search
        args = Namespace(checkpoint=one_and_two[1] / "checkpoint_last.pt", data=data, datasets="summaries", **search)
        vars(args).update(
            split="valid",
            predictions=None,
            json=True,
            example_scores=False,
            max_tokens=None,
            device="cpu",
            prompts=None,
        )
        return evaluate(args)["results"][0]["metrics"]

    metrics = evaluated(**SEARCH)
    # the dataset's own comes first, and is a part of the score of all
    assert list(metrics) == ["rouge1", "rouge2", "rougeL"]
    for name, value in metrics.items():
        assert one[f"valid_summaries_{name}"] == pytest.approx(value, rel=1e-4)
        assert 0 < value < 1
    own = ("animals_f1", "pairs_accuracy", "choices_accuracy", "spans_f1", "summaries_rouge1")
    assert one["valid_score"] == pytest.approx(sum(one[f"valid_{name}"] for name in own) / 5, rel=1e-4)
    assert abs(evaluated()["rouge1"] - metrics["rouge1"]) > 0.01


def test_it_learns_to_write_eight_summaries(data):
    task = open_task(data, "summaries")
    sample = sample_of(data, task, "summaries", range(8))
    assert len(set(sample["references"])) == 6
    tokenizer = Tokenizer.load(data / "tokenizer")
    generator = Generator(GenerationOptions(beam=2, max_len_b=10), task.dictionary, tokenizer.decode)
    args = Namespace()
    muppet_bart_tiny(args)
    torch.manual_seed(1)
    model = MuppetBartModel.build_model(args, task)
    criterion = MuppetCriterion(task, "log", 0.1)

    def score() -> float:
        texts = generator(model, sample["net_input"]["src_tokens"])
        return sum(rouge(text, gold)[0] for text, gold in zip(texts, sample["references"], strict=True)) / 8

    assert score() < 0.3
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for _ in range(120):
        optimizer.zero_grad()
        loss, *_ = criterion(model, sample | {"dataset": 0})
        loss.backward()
        optimizer.step()
    assert score() >= 0.9


def test_an_encoder_alone_cannot_be_trained_to_write(data, tmp_path):
    done = train(options(data, tmp_path / "run", suite=ALL))
    assert done.returncode == 1
    assert "Traceback" not in done.stdout + done.stderr
    assert [line for line in done.stderr.splitlines() if line.startswith("muppet: ")] == [
        "muppet: the dataset summaries is of the family summarization, which an encoder alone cannot write: "
        "train a model with a decoder (--arch muppet_bart_base), or take it out of the suite"
    ]
