"""``muppet_roberta`` against fairseq's own RoBERTa, and what becomes of a checkpoint's parameters."""

from __future__ import annotations

import logging
from argparse import Namespace

import pytest
import torch
from fairseq import options as fairseq_options
from fairseq.models.roberta.model import RobertaModel
from torch import Tensor, nn

from muppet_fairseq.errors import MuppetError
from muppet_fairseq.models.roberta import MuppetRobertaModel, muppet_roberta_tiny
from muppet_fairseq.tasks.muppet import MuppetTask
from tests.toy_suite import open_task, options, trained

POSITIONS = "encoder.sentence_encoder.embed_positions.weight"
PLAIN = "animals,pairs"


def build(task: MuppetTask, seed: int = 1, **arguments: object) -> MuppetRobertaModel:
    """The tiny model for a task, with parameters of its own."""
    args = Namespace(**arguments)
    muppet_roberta_tiny(args)
    torch.manual_seed(seed)
    return perturbed(MuppetRobertaModel.build_model(args, task))


def perturbed(model: nn.Module) -> nn.Module:
    """Make biases and layer norms differ, too: as they are initialised, one could stand for another."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model.eval()


def build_stock(task: MuppetTask, *, positions: int = 32, seed: int = 2) -> RobertaModel:
    """fairseq's RoBERTa of the same size over the same dictionary, with a classification head of its own."""
    args = Namespace(encoder_layers=2, encoder_embed_dim=64, encoder_ffn_embed_dim=256, encoder_attention_heads=2)
    args.max_positions = positions
    torch.manual_seed(seed)
    model = RobertaModel.build_model(args, task)
    model.register_classification_head("sentence_classification_head", num_classes=2)
    return perturbed(model)


def as_published(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename parameters as in the checkpoints that fairseq published in 2019: ``roberta.base/model.pt``.

    They say ``decoder``, ``emb_layer_norm``, and hold query, key and value as one matrix; they name no version.
    """
    old: dict[str, Tensor] = {}
    for key, value in state.items():
        key = key.replace("encoder.", "decoder.", 1).replace(".layernorm_embedding.", ".emb_layer_norm.")
        if ".q_proj." in key:
            parts = [state[key.replace("decoder.", "encoder.", 1).replace(".q_", f".{part}_")] for part in "qkv"]
            old[key.replace("q_proj.", "in_proj_")] = torch.cat(parts)
        elif ".k_proj." not in key and ".v_proj." not in key and not key.endswith(".version"):
            old[key] = value
    assert any(key.endswith("in_proj_bias") for key in old)
    assert any("decoder.lm_head." in key for key in old)
    return old


def some_rows(task: MuppetTask, length: int = 9) -> Tensor:
    """Rows of random words, two of them padded."""
    rows = torch.randint(4, len(task.dictionary) - 1, (4, length), generator=torch.Generator().manual_seed(3))
    rows[:, 0], rows[:, -1] = task.dictionary.bos(), task.dictionary.eos()
    rows[1, 5], rows[1, 6:] = task.dictionary.eos(), task.dictionary.pad()
    rows[2, 2], rows[2, 3:] = task.dictionary.eos(), task.dictionary.pad()
    return rows


@pytest.fixture(scope="module")
def task(data) -> MuppetTask:
    return open_task(data, PLAIN)


# -- fairseq's checkpoints ----------------------------------------------------------------------------


@pytest.mark.parametrize("rename", [dict, as_published])
def test_fairseqs_roberta_loads_strictly_and_computes_the_same(task, rename):
    stock, ours = build_stock(task), build(task)
    rows = some_rows(task)
    with torch.no_grad():
        expected, _ = stock(rows, features_only=True)
        assert (ours(rows) - expected).abs().max() > 0.1
        heads = {key: value.clone() for key, value in ours.heads.state_dict().items()}
        ours.load_state_dict(rename(stock.state_dict()), strict=True)
        torch.testing.assert_close(ours(rows), expected, atol=1e-6, rtol=0)
    # fairseq's heads are none of ours: these start fresh
    assert all(value.equal(heads[key]) for key, value in ours.heads.state_dict().items())


def test_nothing_but_the_heads_is_added_to_fairseqs_encoder(task):
    def count(module: nn.Module) -> int:
        return sum(parameter.numel() for parameter in module.parameters())

    stock, ours = build_stock(task), build(task)
    lm_head = stock.encoder.lm_head
    shared = lm_head.weight.numel()  # with the embeddings
    assert count(ours.encoder) == count(stock.encoder) - (count(lm_head) - shared)
    assert count(ours) == count(ours.encoder) + count(ours.heads)
    # dense and projection, of 2 and of 3 classes
    assert count(ours.heads) == 2 * (64 * 64 + 64) + 64 * 2 + 2 + 64 * 3 + 3


def test_positions_are_cut_to_the_models(data, task):
    stock = build_stock(task, positions=48)
    ours = build(task)
    ours.load_state_dict(as_published(stock.state_dict()), strict=True)
    table = stock.encoder.sentence_encoder.embed_positions.weight
    assert table.shape == (48 + 2, 64)
    assert ours.state_dict()[POSITIONS].equal(table[: 32 + 2])
    rows = some_rows(task, length=32)
    with torch.no_grad():
        torch.testing.assert_close(ours(rows), stock(rows, features_only=True)[0], atol=1e-6, rtol=0)


def test_a_model_longer_than_the_checkpoint_is_refused(data, task):
    ours = build(task)
    with pytest.raises(MuppetError) as caught:
        ours.load_state_dict(build_stock(task, positions=16).state_dict())
    assert str(caught.value) == (
        "the checkpoint has 18 positions, the model 34 (padding's included): set --max-positions to at most 16"
    )
    # the cure is one
    build(open_task(data, PLAIN, max_positions=16)).load_state_dict(build_stock(task, positions=16).state_dict())


CHOOSE = "choose the --arch (and its sizes) that the checkpoint was made with"


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ({"encoder_embed_dim": 32}, r"the checkpoint's encoder\..* has shape \(.*64.*\), the model's \(.*32.*\): "),
        ({"encoder_ffn_embed_dim": 100}, r"the checkpoint's .*fc1.* has shape \(256.*\), the model's \(100.*\): "),
        (
            {"encoder_layers": 1},
            r"the checkpoint has encoder\.sentence_encoder\.layers\.1\..*, which the model lacks: ",
        ),
        (
            {"encoder_layers": 3},
            r"the model has encoder\.sentence_encoder\.layers\.2\..*, which the checkpoint lacks: ",
        ),
    ],
)
def test_a_model_of_other_sizes_is_refused(task, sizes, said):
    with pytest.raises(MuppetError, match=said) as caught:
        build(task, **sizes).load_state_dict(build_stock(task).state_dict())
    assert str(caught.value).endswith(CHOOSE)


def test_layers_may_be_left_out_as_fairseq_does(task):
    """``--encoder-layers-to-keep``: fairseq's own pruning comes after our checks."""
    stock = build_stock(task)
    ours = build(task, encoder_layers_to_keep="1", arch="muppet_roberta_tiny")
    ours.load_state_dict(stock.state_dict(), strict=True, model_cfg=ours.args)
    kept, from_stock = (model.encoder.sentence_encoder.layers[-1].state_dict() for model in (ours, stock))
    assert len(ours.encoder.sentence_encoder.layers) == 1
    assert all(kept[key].equal(from_stock[key]) for key in from_stock)


def test_another_dictionary_is_refused_where_the_checkpoint_names_its_own(task):
    state = build(task).state_dict()
    state["dictionary_sha256"] = state["dictionary_sha256"] + 1
    with pytest.raises(MuppetError, match="the checkpoint was trained with another dictionary than this data-bin's"):
        build(task).load_state_dict(state)


# -- heads --------------------------------------------------------------------------------------------


def heads_after_loading(model: MuppetRobertaModel, state: dict[str, Tensor]) -> dict[str, Tensor]:
    model.load_state_dict(dict(state), strict=True)
    return model.heads.state_dict()


def test_heads_are_reused_fresh_or_left_out(data, task, tmp_path, caplog):
    """From the heads animals (2 classes) and pairs (3) to animals, choices and pairs, where pairs has 2 classes."""
    state = build(task).state_dict()
    other = open_task(data, "animals,choices", reuse_heads=True)
    ours = build(other, seed=5)
    before = {key: value.clone() for key, value in ours.heads.state_dict().items()}
    module = "muppet_fairseq.models.checkpoint"
    with caplog.at_level(logging.INFO, module):
        after = heads_after_loading(ours, state)
    assert {key.split(".")[0] for key in after} == {"animals", "commonsense"}
    for key, value in after.items():
        expected = state[f"heads.{key}"] if key.startswith("animals.") else before[key]
        assert value.equal(expected), key
        assert not state.get(f"heads.{key}", torch.ones(1)).equal(before[key]), key
    logged = [record.getMessage() for record in caplog.records if record.name == module]
    assert logged == ["heads re-used: animals", "heads fresh: commonsense", "heads left out: pairs"]


def test_a_head_of_another_shape_starts_fresh(data, task, tmp_path):
    """Of the head pairs, three classes: the dense layer would fit, the projection does not; neither is taken."""
    suite = tmp_path / "suite.yaml"
    suite.write_text("- {name: animals, head: pairs}\n")
    ours = build(open_task(data, suite, reuse_heads=True), seed=5)
    before = {key: value.clone() for key, value in ours.heads.state_dict().items()}
    after = heads_after_loading(ours, build(task).state_dict())
    assert set(after) == {f"pairs.{layer}.{part}" for layer in ("dense", "out_proj") for part in ("weight", "bias")}
    assert all(after[key].equal(before[key]) for key in before)


def test_a_new_run_starts_with_fresh_heads(task):
    state, ours = build(task).state_dict(), build(task, seed=5)
    assert not task.reuse_heads
    before = {key: value.clone() for key, value in ours.heads.state_dict().items()}
    after = heads_after_loading(ours, state)
    assert all(after[key].equal(before[key]) and not after[key].equal(state[f"heads.{key}"]) for key in before)
    assert ours.encoder.state_dict()["sentence_encoder.embed_tokens.weight"].equal(
        state["encoder.sentence_encoder.embed_tokens.weight"]
    )


@pytest.mark.parametrize(
    ("restore_file", "reset_optimizer", "there", "reuse"),
    [
        ("checkpoint_last.pt", False, False, False),  # a new run
        ("checkpoint_last.pt", False, True, True),  # a run that goes on
        ("pre/checkpoint_best.pt", True, False, False),  # from the parameters of another run
        ("run/checkpoint_1_2.pt", False, False, True),  # a run that goes on from an older checkpoint
    ],
)
def test_only_a_run_that_goes_on_keeps_its_heads(data, tmp_path, restore_file, reset_optimizer, there, reuse):
    if there:
        (tmp_path / "checkpoint_last.pt").touch()
    changes = {"save_dir": str(tmp_path), "restore_file": restore_file, "reset_optimizer": reset_optimizer}
    assert open_task(data, PLAIN, **changes).reuse_heads == reuse
    assert open_task(data, PLAIN, **changes, reuse_heads=True).reuse_heads


class Recorder:
    """An optimizer that notes which gradients it would see."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.seen = model, {}

    def step(self) -> None:
        self.seen = {
            name: None if parameter.grad is None else parameter.grad.clone()
            for name, parameter in self.model.named_parameters()
        }


def test_a_head_that_is_not_named_gets_gradient_zero_at_the_step(task):
    model = build(task)
    model.heads["pairs"].dense.bias.requires_grad_(False)  # somebody froze it
    scores = model(some_rows(task), head="animals")
    assert scores.shape == (4, 2)
    scores.sum().backward()
    assert all(parameter.grad is None for parameter in model.heads["pairs"].parameters())
    assert all(parameter.grad.abs().max() > 0 for parameter in model.heads["animals"].parameters())
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    optimizer = Recorder(model)
    task.optimizer_step(optimizer, model, update_num=1)
    unnamed = {name: optimizer.seen.pop(name) for name in list(optimizer.seen) if name.startswith("heads.pairs.")}
    assert unnamed.pop("heads.pairs.dense.bias") is None
    assert len(unnamed) == 3
    assert all(gradient.count_nonzero() == 0 for gradient in unnamed.values())
    assert all(optimizer.seen[name].equal(gradient) for name, gradient in expected.items())


def test_heads_read_the_sentence_or_every_token(data):
    """``<s>`` says all of a sentence; the span head scores each position. Neither depends on the padding."""
    task = open_task(data, "animals,spans")
    model, rows = build(task), some_rows(task)
    with torch.no_grad():
        features = model(rows)
        assert features.shape == (4, 9, 64)
        torch.testing.assert_close(model(rows, head="animals"), model.heads["animals"](features[:, 0]))
        spans = model(rows, head="mrc")
        torch.testing.assert_close(spans, model.heads["mrc"](features))
        assert spans.shape == (4, 9, 2)
        torch.testing.assert_close(model(rows[2:3, :3], head="animals"), model(rows, head="animals")[2:3])


# -- options ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arch", "option", "eps"),
    [
        ("muppet_roberta_tiny", [], 1e-5),
        ("muppet_roberta_tiny", ["--layer-norm-eps", "1e-3"], 1e-3),
        ("muppet_roberta_large", [], 1e-5),
        ("muppet_minilm", [], 1e-12),
        ("muppet_minilm", ["--layer-norm-eps", "1e-5"], 1e-5),
    ],
)
def test_the_epsilon_reaches_every_layer_norm(data, task, tmp_path, arch, option, eps):
    small = ["--encoder-layers", "2", "--encoder-embed-dim", "24", "--encoder-attention-heads", "2"]
    arguments = [*options(data, tmp_path), "--arch", arch, *small, *option]
    args = fairseq_options.parse_args_and_arch(fairseq_options.get_training_parser(), input_args=arguments)
    norms = [m for m in MuppetRobertaModel.build_model(args, task).modules() if isinstance(m, nn.LayerNorm)]
    assert len(norms) == 1 + 2 * 2  # of the embeddings, and two a layer
    assert {norm.eps for norm in norms} == {eps}


# -- the real thing -----------------------------------------------------------------------------------


def test_fairseq_train_starts_from_a_published_checkpoint(data, task, tmp_path):
    """``--restore-file`` with a file in the layout of ``roberta.base/model.pt``: what is saved is what was loaded."""
    stock = build_stock(task, positions=48)
    published = {
        "args": Namespace(arch="roberta_base", task="masked_lm", criterion="masked_lm", lr=[0.0005], max_positions=48),
        "model": as_published(stock.state_dict()),
        "optimizer_history": [
            {
                "criterion_name": "MaskedLmLoss",
                "optimizer_name": "FairseqAdam",
                "lr_scheduler_state": {},
                "num_updates": 7,
            }
        ],
        "extra_state": {"train_iterator": {"epoch": 3, "iterations_in_epoch": 5}, "val_loss": 2.5},
        "last_optimizer_state": None,
    }
    torch.save(published, tmp_path / "model.pt")
    resets = (f"--reset-{what}" for what in ("optimizer", "dataloader", "meters", "lr-scheduler"))
    more = ("--restore-file", str(tmp_path / "model.pt"), *resets, "--max-update", "1", "--lr", "1e-9")
    trained(options(data, tmp_path / "run", *more, "--disable-validation"))

    saved = torch.load(tmp_path / "run" / "checkpoint_last.pt", weights_only=True)
    assert saved["optimizer_history"][-1]["num_updates"] == 1
    assert saved["extra_state"]["train_iterator"]["epoch"] == 1
    expected = stock.state_dict()
    expected[POSITIONS] = expected[POSITIONS][: 32 + 2]
    expected["encoder.sentence_encoder.version"].fill_(1)  # fairseq's mark of parameters from before versions
    encoder = {key: value for key, value in saved["model"].items() if key.startswith("encoder.")}
    assert set(encoder) == {
        key for key in expected if not key.startswith(("encoder.lm_head.", "classification_heads."))
    }
    for key, value in encoder.items():
        torch.testing.assert_close(value, expected[key], atol=1e-6, rtol=0)
    heads = {key.split(".")[1] for key in saved["model"] if key.startswith("heads.")}
    assert heads == {"animals", "pairs", "commonsense", "mrc"}
