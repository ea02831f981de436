"""R3F and R4F: noise, divergence and loss by hand and against fairseq's own, normalised heads, real runs."""

from __future__ import annotations

import copy
import logging
import math
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fairseq import metrics
from fairseq import options as fairseq_options
from fairseq.data.data_utils import collate_tokens
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.examples.rxf.rxf_src.label_smoothed_cross_entropy_r3f import LabelSmoothedCrossEntropyR3FCriterion
from fairseq.examples.rxf.rxf_src.sentence_prediction_r3f import SentencePredictionR3F
from fairseq.models.bart.model import BARTModel
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.distributions import Categorical, Normal, kl_divergence
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

from muppet_fairseq.criterions import muppet_r3f
from muppet_fairseq.criterions.muppet import MuppetCriterion
from muppet_fairseq.criterions.muppet_r3f import MuppetR3FCriterion
from muppet_fairseq.errors import MuppetError
from muppet_fairseq.families.base import Sample
from muppet_fairseq.models.bart import MuppetBartModel, muppet_bart_tiny
from muppet_fairseq.models.heads import SpanHead, SpectralNorm
from muppet_fairseq.models.roberta import MuppetRobertaModel, muppet_roberta_tiny
from muppet_fairseq.r3f import NOISE_TYPES, EmbeddingNoise, clean_and_noised, symmetric_kl
from muppet_fairseq.tasks.muppet import MuppetTask
from muppet_fairseq.trained import TrainedModel
from tests.test_models import build_stock, perturbed, some_rows
from tests.test_training import read_trace
from tests.toy_suite import BART_NAMES, NAMES, logged, open_task, options, trained

MODELS = {
    "muppet_roberta_tiny": (MuppetRobertaModel, muppet_roberta_tiny, (*NAMES, "counts")),
    "muppet_bart_tiny": (MuppetBartModel, muppet_bart_tiny, (*BART_NAMES, "counts")),
}
CASES = [(arch, name) for arch, (_, _, names) in MODELS.items() for name in names]
R3F = ("--criterion", "muppet_r3f", "--disable-validation")

each_model = pytest.mark.parametrize("arch", MODELS)
each_case = pytest.mark.parametrize(("arch", "name"), CASES)
each_noise = pytest.mark.parametrize("kind", NOISE_TYPES)


@dataclass
class Toy:
    """A tiny model without dropout, its task, and a padded training batch of each dataset."""

    task: MuppetTask
    model: nn.Module
    samples: dict[str, Sample]


def build(arch: str, task: MuppetTask, *, seed: int = 1, **arguments: object) -> nn.Module:
    """A model in training mode; without dropout unless ``arguments`` say otherwise."""
    model, complete, _ = MODELS[arch]
    args = Namespace(**{"dropout": 0.0, "attention_dropout": 0.0, "pooler_dropout": 0.0} | arguments)
    complete(args)
    torch.manual_seed(seed)
    return perturbed(model.build_model(args, task)).train()


@pytest.fixture(scope="module")
def toys(data: Path) -> dict[str, Toy]:
    toys = {}
    for arch, (_, _, names) in MODELS.items():
        task = open_task(data, ",".join(names))
        task.load_dataset("train")
        dataset = task.dataset("train")
        samples = {}
        for name, start in zip(names, [0, *dataset.ends[:-1]], strict=True):
            samples[name] = dataset.collater([dataset[int(start) + i] for i in range(6)])
            padded = (samples[name]["net_input"]["src_tokens"] == task.dictionary.pad()).any()
            assert padded or name == "choices"  # whose rows are all as long
        toys[arch] = Toy(task, build(arch, task), samples)
        # large enough for noise to be felt in the predictions, far above float32's rounding
        with torch.no_grad():
            for key, parameter in toys[arch].model.named_parameters():
                if key.endswith(("_proj.weight", ".dense.weight", ".fc1.weight", ".fc2.weight")):
                    parameter.mul_(3)
    return toys


@pytest.fixture(autouse=True)
def _anew(toys: dict[str, Toy]) -> None:
    """The same noise and warnings for a test, whichever tests came before."""
    muppet_r3f._warn_once.cache_clear()
    torch.manual_seed(1)


def r3f(task: MuppetTask, **changes: object) -> MuppetR3FCriterion:
    options = {"loss_scaling": "none", "label_smoothing": 0.1, "r3f_lambda": 1.0, "eps": 1e-2, "noise_type": "uniform"}
    return MuppetR3FCriterion(task, **(options | changes))


class RecordingNoise(EmbeddingNoise):
    """Remembers what it added."""

    def __call__(self, embeddings: Tensor, is_token: Tensor) -> Tensor:
        noised = super().__call__(embeddings, is_token)
        self.drawn = (noised - embeddings).detach()
        return noised


def gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    named = dict(model.named_parameters())
    values = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    return {name: value for name, value in zip(named, values, strict=True) if value is not None}


# -- noise --------------------------------------------------------------------------------------------


def test_uniform_noise_fills_its_bounds():
    noise = EmbeddingNoise(0.03, "uniform")(torch.zeros(50, 40, 16), torch.ones(50, 40, dtype=torch.bool))
    assert 0.0299 < noise.max() <= 0.03
    assert -0.03 <= noise.min() < -0.0299
    assert abs(noise.mean()) < 0.0005
    assert noise.std() == pytest.approx(0.03 / math.sqrt(3), rel=0.02)


def test_normal_noise_has_eps_as_its_standard_deviation():
    noise = EmbeddingNoise(0.03, "normal")(torch.zeros(50, 40, 16), torch.ones(50, 40, dtype=torch.bool)) / 0.03
    assert abs(noise.mean()) < 0.02
    assert noise.std() == pytest.approx(1, rel=0.02)
    # no other distribution of that size: the share beyond one and two standard deviations
    assert (noise.abs() > 1).float().mean() == pytest.approx(0.3173, abs=0.01)
    assert (noise.abs() > 2).float().mean() == pytest.approx(0.0455, abs=0.005)


@each_noise
def test_noise_is_drawn_anew_for_every_entry_and_call(kind):
    noise, is_token = EmbeddingNoise(1.0, kind), torch.ones(3, 4, dtype=torch.bool)
    drawn = torch.cat([noise(torch.zeros(3, 4, 5), is_token), noise(torch.zeros(3, 4, 5), is_token)])
    assert len(drawn.unique()) == 2 * 3 * 4 * 5


@pytest.mark.parametrize(
    ("at_tokens", "at_padding", "survived"), [(0.1, 1e9, 1.0), (1e9, 0.1, 0.0), ((0.1, 1e9), 1e9, 0.75)]
)
def test_padding_does_not_count_in_what_survived(at_tokens, at_padding, survived):
    """Next to 1e9 the noise rounds away, even in float32."""
    pad = 1
    table = nn.Embedding(5, 8)
    nn.init.constant_(table.weight, at_padding)
    with torch.no_grad():
        # in the last case six of a token's eight entries are small, and so in all
        first, second = at_tokens if isinstance(at_tokens, tuple) else (at_tokens, at_tokens)
        table.weight[2:, :6], table.weight[2:, 6:] = first, second
    noise = EmbeddingNoise(0.01, "uniform")
    clean_and_noised(table, torch.tensor([[2, 3, 4, 2], [2, 3, pad, pad], [4, pad, pad, pad]]), noise, pad)
    assert noise.survived.item() == pytest.approx(survived)


def test_rows_are_stacked_with_their_noised_selves():
    table, tokens = nn.Embedding(5, 8), torch.tensor([[2, 3, 4], [2, 3, 1]])
    noise = RecordingNoise(0.01, "uniform")
    stacked, embeddings = clean_and_noised(table, tokens, noise, pad=1)
    assert stacked.equal(torch.cat([tokens, tokens]))
    clean, noised = embeddings.chunk(2)
    assert clean.equal(table(tokens))
    torch.testing.assert_close(noised, table(tokens) + noise.drawn)
    # both halves train the table, as in fairseq's criterion for texts
    (gradient,) = torch.autograd.grad(embeddings.sum(), table.weight)
    assert gradient[:, 0].tolist() == [0, 2, 4, 4, 2]


@pytest.mark.parametrize(("dtype", "enough"), [(torch.float16, 1e-3), (torch.bfloat16, 1e-2)])
def test_small_noise_rounds_away_in_half_precision(dtype, enough):
    embeddings, is_token = torch.randn(50, 40, 16) * 0.05, torch.ones(50, 40, dtype=torch.bool)

    def survived(eps: float, dtype: torch.dtype) -> float:
        noise = EmbeddingNoise(eps, "uniform")
        noised = noise(embeddings.to(dtype), is_token)
        assert noised.dtype == dtype
        assert noise.survived == (noised != embeddings.to(dtype)).float().mean()
        return float(noise.survived)

    assert survived(1e-5, dtype) < 0.5
    assert survived(enough, dtype) > 0.9
    assert survived(1e-5, torch.float32) > 0.99


# -- divergence ---------------------------------------------------------------------------------------


def plain_symmetric_kl(clean: Tensor, noised: Tensor) -> Tensor:
    """Of two rows of logits, by torch.distributions; what is no candidate for either is left out."""
    own = ~clean.isneginf()
    p, q = Categorical(logits=clean[own].double()), Categorical(logits=noised[own].double())
    return kl_divergence(p, q) + kl_divergence(q, p)


@st.composite
def pairs_of_logits(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Rows of logits of up to 7 candidates, of which each row may lack some."""
    rows, width = draw(st.integers(1, 4)), draw(st.integers(1, 7))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    size = draw(st.sampled_from([1e-2, 1.0, 30.0]))
    clean, noised = (torch.randn(rows, width, generator=generator) * size for _ in range(2))
    lacking = torch.rand(rows, width, generator=generator) < draw(st.sampled_from([0.0, 0.4]))
    lacking[:, 0] = False
    return clean.masked_fill(lacking, -math.inf), noised.masked_fill(lacking, -math.inf)


@given(pairs_of_logits())
def test_symmetric_kl_is_that_of_the_distributions(pair):
    clean, noised = pair
    expected = torch.stack([plain_symmetric_kl(*rows) for rows in zip(clean, noised, strict=True)])
    ours = symmetric_kl(clean, noised, dim=1)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours.double(), expected, rtol=1e-4, atol=1e-6)
    # the other way round, and along another dimension
    torch.testing.assert_close(symmetric_kl(noised, clean, dim=1), ours)
    torch.testing.assert_close(symmetric_kl(clean.T, noised.T, dim=0), ours)


@given(pairs_of_logits())
def test_gradients_of_the_divergence_are_those_of_kl_div(pair):
    """Finite where candidates lack, and equal to those of fairseq's formula on the others."""
    clean, noised = (logits.clone().requires_grad_() for logits in pair)
    ours = torch.autograd.grad(symmetric_kl(clean, noised, dim=1).sum(), (clean, noised))
    for row in range(len(clean)):
        own = ~clean[row].isneginf()
        p, q = (logits[row].detach()[own].double().requires_grad_() for logits in (clean, noised))
        forward = F.kl_div(q.log_softmax(0), p.softmax(0), reduction="sum")
        backward = F.kl_div(p.log_softmax(0), q.softmax(0), reduction="sum")
        for gradient, expected in zip(ours, torch.autograd.grad(forward + backward, (p, q)), strict=True):
            torch.testing.assert_close(gradient[row, own].double(), expected, rtol=1e-3, atol=1e-5)
            assert gradient[row, ~own].count_nonzero() == 0


# -- the loss, by hand --------------------------------------------------------------------------------


def outputs(model: nn.Module, sample: Sample, head: str | None) -> Tensor:
    """What the model itself says, before the family has arranged it."""
    if head is not None:
        return model(**sample["net_input"], head=head)
    return model(**sample["net_input"], prev_output_tokens=sample["prev_output_tokens"], predicted=sample["predicted"])


def reduced(logs: list[dict[str, Any]]) -> dict[str, float]:
    """What is printed of these logging outputs."""
    with metrics.aggregate() as line:
        MuppetR3FCriterion.reduce_metrics(logs)
    return line.get_smoothed_values()


@contextmanager
def shifted_embeddings(model: nn.Module, noise: Tensor) -> Iterator[None]:
    """Add ``noise`` to what the encoder looks up; BART's decoder looks up in the same table, later."""
    todo = [noise]
    encoder = getattr(model.encoder, "sentence_encoder", model.encoder)
    hook = encoder.embed_tokens.register_forward_hook(lambda _, inputs, out: out + todo.pop() if todo else out)
    yield
    hook.remove()
    assert not todo


def divergence_by_hand(
    family: str,
    clean: Tensor,
    noised: Tensor,
    sample: Sample,
    between: Callable[[Tensor, Tensor], Tensor] = plain_symmetric_kl,
) -> Tensor:
    """The divergence of each example from the model's outputs for it, ``[B]``; of regression, the symmetric one."""
    if family == "classification":
        values = [between(*rows) for rows in zip(clean, noised, strict=True)]
    elif family == "commonsense":
        counts = sample["is_choice"].sum(dim=1).tolist()
        assert len(set(counts)) > 1
        examples = zip(*(scores.squeeze(1).split(counts) for scores in (clean, noised)), strict=True)
        values = [between(*scores) for scores in examples]
    elif family == "mrc":
        values = [
            sum(between(a[own, side], b[own, side]) for side in (0, 1)) / 2
            for a, b, own in zip(clean, noised, sample["candidates"], strict=True)
        ]
    elif family == "summarization":
        lengths = sample["target_lengths"].tolist()
        assert len(set(lengths)) > 1
        examples = zip(clean.split(lengths), noised.split(lengths), strict=True)
        values = [torch.stack([between(*r) for r in zip(a, b, strict=True)]).mean() for a, b in examples]
    elif family == "tagging":
        values = [
            torch.stack([between(a[place], b[place]) for place in starts[starts > 0].tolist()]).mean()
            for a, b, starts in zip(clean, noised, sample["starts"], strict=True)
        ]
    else:
        p, q = (Normal(numbers.squeeze(1).double(), 1.0) for numbers in (clean, noised))
        return kl_divergence(p, q) + kl_divergence(q, p)
    return torch.stack(values)


def factors_by_hand(family: str, sample: Sample, classes: int, vocabulary: int) -> Tensor:
    """1 / log n(i), ``[B]``."""
    size = len(sample["id"])
    if family == "regression":
        return torch.ones(size).double()
    counts = {
        "classification": lambda: [classes] * size,
        "commonsense": lambda: sample["is_choice"].sum(dim=1).tolist(),
        "mrc": lambda: sample["candidates"].sum(dim=1).tolist(),
        "summarization": lambda: [vocabulary] * size,
    }[family]()
    return 1 / torch.tensor(counts).double().log()


@each_case
@pytest.mark.parametrize("scaling", ["none", "log"])
def test_the_loss_is_the_plain_one_and_lambda_times_the_divergence(toys, arch, name, scaling):
    """Value and gradients: the noised prediction by another forward of the model, on embeddings shifted from outside,
    the divergence by ``torch.distributions``, the factors by the paper's formula."""
    toy, sample = toys[arch], toys[arch].samples[name]
    spec = toy.task.specs[sample["dataset"]]
    criterion = r3f(toy.task, eps=0.05, r3f_lambda=2.5, loss_scaling=scaling)
    criterion.noise = RecordingNoise(0.05, "uniform")
    loss, sample_size, log = criterion(toy.model, sample)
    assert sample_size == 1

    head = toy.task.heads[sample["dataset"]]
    clean = outputs(toy.model, sample, head)
    with shifted_embeddings(toy.model, criterion.noise.drawn):
        noised = outputs(toy.model, sample, head)
    divergences = divergence_by_hand(spec.family, clean, noised, sample)
    factors = factors_by_hand(spec.family, sample, len(spec.labels), len(toy.task.dictionary))
    factors = torch.ones_like(factors) if scaling == "none" else factors
    plain, _, _ = MuppetCriterion(toy.task, scaling, 0.1)(toy.model, sample)
    expected = plain + 2.5 * (factors * divergences).mean()
    # the divergence must matter in what is compared
    assert expected - plain > 1e-3
    torch.testing.assert_close(loss.double(), expected.double(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(log["divergence"].double(), divergences.mean(), rtol=1e-3, atol=1e-6)
    assert log["noise_survived"] > 0.99
    ours, reference = gradients(toy.model, loss), gradients(toy.model, expected)
    assert ours.keys() == reference.keys()
    for key, value in reference.items():
        torch.testing.assert_close(ours[key], value, rtol=1e-3, atol=2e-5, msg=key)


@each_case
@each_noise
def test_the_divergence_falls_with_the_square_of_the_noise(toys, arch, name, kind):
    toy, sample = toys[arch], toys[arch].samples[name]
    sizes, added = (1e-2, 1e-3, 1e-4), []
    for eps in sizes:
        losses = []
        for weight in (0.0, 3.0):
            torch.manual_seed(5)  # the same noise, but for its size
            with torch.no_grad():
                losses.append(r3f(toy.task, eps=eps, noise_type=kind, r3f_lambda=weight)(toy.model, sample))
        (without, _, log), (loss, _, again) = losses
        assert log["divergence"] == again["divergence"] > 0
        torch.testing.assert_close(loss - without, 3 * log["divergence"], rtol=1e-3, atol=1e-6)
        added.append(float(log["divergence"]))
    assert added[0] > 30 * added[1]
    assert added[1] / added[2] == pytest.approx(100, rel=0.2)
    assert added[2] < 1e-4


@each_case
def test_the_clean_half_is_the_plain_forward(toys, arch, name):
    toy, sample = toys[arch], toys[arch].samples[name]
    # in single precision, products of a few rows are rounded otherwise than those of twice as many
    model = copy.deepcopy(toy.model).double()
    loss, _, log = r3f(toy.task, r3f_lambda=0.0, eps=0.5, loss_scaling="log")(model, sample)
    plain, _, plain_log = MuppetCriterion(toy.task, "log", 0.1)(model, sample)
    assert log["divergence"] > 0
    torch.testing.assert_close(loss, plain, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(log["statistics"], plain_log["statistics"], rtol=1e-5, atol=1e-6)
    ours, reference = gradients(model, loss), gradients(model, plain)
    assert ours.keys() == reference.keys()
    for key, value in reference.items():
        torch.testing.assert_close(ours[key], value, rtol=1e-5, atol=1e-6, msg=key)


@each_case
def test_validation_is_without_noise(toys, arch, name):
    toy, sample = toys[arch], toys[arch].samples[name]
    criterion, plain = r3f(toy.task, eps=0.5).eval(), MuppetCriterion(toy.task, "none", 0.1).eval()
    with torch.no_grad():
        (loss, _, log), (expected, _, plain_log) = (c(toy.model.eval(), sample) for c in (criterion, plain))
        noised, _, _ = criterion.train()(toy.model.train(), sample)
    assert loss.equal(expected)
    assert log["statistics"].equal(plain_log["statistics"])
    assert noised > loss
    assert not reduced([log, log])
    # every worker sends the same keys, whether it validates or trains
    assert log.keys() == plain_log.keys() | {"divergence", "noise_survived", "noised"}


@each_case
def test_replaced_embeddings_change_the_prediction(toys, arch, name):
    """Where a model drops the embeddings that it is given, R3F compares a prediction with itself."""
    toy, sample = toys[arch], toys[arch].samples[name]

    class Constant(EmbeddingNoise):
        def __call__(self, embeddings: Tensor, is_token: Tensor) -> Tensor:
            super().__call__(embeddings, is_token)
            return torch.full_like(embeddings, 99.0)

    criterion = r3f(toy.task)
    criterion.noise = Constant(1.0, "uniform")
    _, _, log = criterion(toy.model, sample)
    assert log["divergence"] > 1e-3


def test_fairseqs_roberta_still_drops_the_embeddings(toys):
    """Why ``MuppetRobertaModel`` goes past its encoder's ``forward``; if this fails, it need not."""
    task = toys["muppet_roberta_tiny"].task
    stock, rows = build_stock(task), some_rows(task)
    with torch.no_grad():
        expected, _ = stock.encoder(rows, features_only=True)
        given_others, _ = stock.encoder(rows, features_only=True, token_embeddings=torch.full((*rows.shape, 64), 99.0))
    assert given_others.equal(expected)


# -- fairseq's own R3F --------------------------------------------------------------------------------


class GivenNoise:
    """Stands in for the distribution that fairseq's criteria draw from."""

    def __init__(self, noise: Tensor) -> None:
        self.noise = noise

    def sample(self, sample_shape: torch.Size) -> Tensor:
        assert sample_shape == self.noise.shape
        return self.noise


def stock_bart(toy: Toy, head: str) -> BARTModel:
    """fairseq's BART with our parameters, and our head as its classification head; in training mode."""
    args = Namespace(dropout=0.0, attention_dropout=0.0, pooler_dropout=0.0)
    args.max_source_positions = args.max_target_positions = 32
    muppet_bart_tiny(args)
    model = BARTModel.build_model(args, toy.task)
    ours = toy.model.state_dict()
    own = {key: value for key, value in ours.items() if key.startswith(("encoder.", "decoder."))}
    projection = ours[f"heads.{head}.out_proj.weight"]
    model.register_classification_head(head, num_classes=len(projection), inner_dim=64)
    own |= {
        key.replace("heads.", "classification_heads."): value
        for key, value in ours.items()
        if key.startswith(f"heads.{head}.")
    }
    nn.Module.load_state_dict(model, own, strict=True)  # without BARTModel's rules for older checkpoints
    # where the criterion looks for the embeddings; not as a submodule, which would contain itself
    vars(model.encoder)["sentence_encoder"] = model.encoder
    return model.train()


def stock_inputs(toy: Toy, sources: list[Tensor], targets: list[Tensor]) -> Sample:
    """Rows as fairseq collates them: the decoder reads the target one position later, ``</s>`` first."""
    pad, eos = toy.task.dictionary.pad(), toy.task.dictionary.eos()
    return {
        "src_tokens": collate_tokens(sources, pad),
        "src_lengths": torch.tensor([len(row) for row in sources]),
        "prev_output_tokens": collate_tokens(targets, pad, eos, move_eos_to_beginning=True),
    }


def unpadded(toy: Toy, tokens: Tensor) -> list[Tensor]:
    return [row[row != toy.task.dictionary.pad()] for row in tokens]


@each_noise
@pytest.mark.parametrize("name", ["animals", "pairs"])
def test_classification_costs_what_fairseqs_own_r3f_says(toys, name, kind):
    """``sentence_prediction_r3f`` on fairseq's BART. Its loss is the batch's sum, ours the mean."""
    toy = toys["muppet_bart_tiny"]
    sample = toy.samples[name]
    criterion = r3f(toy.task, r3f_lambda=0.7)
    criterion.noise = RecordingNoise(0.1, kind)
    ours, _, log = criterion(toy.model, sample)

    theirs = SentencePredictionR3F(toy.task, 0.1, 0.7, kind, name, False)
    theirs.noise_sampler = GivenNoise(criterion.noise.drawn)
    rows = unpadded(toy, sample["net_input"]["src_tokens"])
    stock_sample = {"net_input": stock_inputs(toy, rows, rows), "target": sample["target"], "ntokens": 1}
    expected, sample_size, stock_log = theirs.train()(stock_bart(toy, name), stock_sample)
    assert sample_size == len(sample["id"]) == 6
    assert stock_log["symm_kl"] / sample_size > 1e-3
    torch.testing.assert_close(ours, expected / sample_size, rtol=0, atol=1e-6)
    assert float(log["divergence"]) == pytest.approx(stock_log["symm_kl"] / sample_size, abs=1e-6)


@each_noise
def test_summarization_costs_what_fairseqs_own_r3f_says(toys, kind):
    """``label_smoothed_cross_entropy_r3f`` on fairseq's BART, an example at a time: for a batch of one it divides the
    divergence by 1, and with ``sentence_avg`` multiplies it by 1; the loss is then a sum over the target's tokens, of
    which ours is the mean. It smooths over the other tokens, ours over all, as BART's own training did."""
    toy = toys["muppet_bart_tiny"]
    sample, vocabulary = toy.samples["summaries"], len(toy.task.dictionary)
    criterion = r3f(toy.task, r3f_lambda=0.7, label_smoothing=0.1 * vocabulary / (vocabulary - 1))
    criterion.noise = RecordingNoise(0.1, kind)
    ours, _, log = criterion(toy.model, sample)

    theirs = LabelSmoothedCrossEntropyR3FCriterion(toy.task, True, 0.1, 0.1, 0.7, kind).train()
    model = stock_bart(toy, "animals")
    targets = sample["target"].split(sample["target_lengths"].tolist())
    losses, divergences = [], []
    for number, source in enumerate(unpadded(toy, sample["net_input"]["src_tokens"])):
        target = targets[number]
        theirs.noise_sampler = GivenNoise(criterion.noise.drawn[number : number + 1, : len(source)])
        stock_sample = {"net_input": stock_inputs(toy, [source], [target]), "target": target[None], "ntokens": 1}
        loss, _, stock_log = theirs(model, stock_sample)
        losses.append(loss / len(target))
        divergences.append(stock_log["symm_kl"] / len(target))
    assert np.mean(divergences) > 1e-3
    torch.testing.assert_close(ours, torch.stack(losses).mean(), rtol=0, atol=1e-6)
    assert float(log["divergence"]) == pytest.approx(np.mean(divergences), abs=1e-6)


# -- R4F ----------------------------------------------------------------------------------------------


def largest_singular_value(weight: Tensor) -> float:
    return float(np.linalg.svd(weight.detach().double().numpy(), compute_uv=False)[0])


def of_singular_values(values: list[float], width: int, seed: int) -> Tensor:
    """A random matrix ``[len(values), width]`` with these singular values, the largest ``min`` of the two sides."""
    rng = np.random.default_rng(seed)
    rank = min(len(values), width)
    left, right = (np.linalg.qr(rng.normal(size=(size, size)))[0] for size in (len(values), width))
    matrix = left[:, :rank] * sorted(values, reverse=True)[:rank] @ right[:rank]
    return torch.from_numpy(matrix).float()


#: repeated, nearly equal and zero ones among them
singular_values = st.lists(st.sampled_from([0.0, 0.5, 0.999, 0.9999, 1.0]), max_size=5).map(lambda few: [1.0, *few])


@given(singular_values, st.integers(1, 70), st.sampled_from([1e-3, 1.0, 50.0]), st.integers(0, 2**31))
def test_spectral_norm_divides_by_the_largest_singular_value(values, width, size, seed):
    weight = of_singular_values(values, width, seed) * size
    normalized = SpectralNorm()(weight)
    assert largest_singular_value(normalized) == pytest.approx(1, abs=1e-3)
    # by a number: the direction stays
    torch.testing.assert_close(normalized * largest_singular_value(weight), weight, rtol=1e-3, atol=0)


def test_spectral_norm_is_as_exact_under_autocast():
    """``--amp``: half precision would leave up to 6e-3."""
    for seed in range(20):
        weight = torch.randn(3, 768, generator=torch.Generator().manual_seed(seed)) * 0.02
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert largest_singular_value(SpectralNorm()(weight)) == pytest.approx(1, abs=1e-3)


@settings(max_examples=40)
@given(st.lists(st.sampled_from([0.0, 0.3, 0.8]), max_size=4), st.integers(1, 70), st.integers(0, 2**31))
def test_gradients_of_spectral_norm_are_those_of_pytorchs(values, width, seed):
    """Of fairseq's R4F, which applies ``torch.nn.utils.spectral_norm``, by a power iteration that has converged."""
    weight = of_singular_values([1.0, *values], width, seed) * 3
    weights = torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed))
    original = weight.clone().requires_grad_()
    ours = SpectralNorm()(original)
    (gradient,) = torch.autograd.grad((ours * weights).sum(), original)

    linear = nn.Linear(width, len(weight), bias=False).double()
    with torch.no_grad():
        linear.weight.copy_(weight)
    spectral_norm(linear, n_power_iterations=40)
    theirs = linear.weight
    (expected,) = torch.autograd.grad((theirs * weights).sum(), linear.parametrizations.weight.original)
    torch.testing.assert_close(ours.double(), theirs, rtol=0, atol=1e-4)
    torch.testing.assert_close(gradient.double(), expected, rtol=0, atol=1e-3)


@given(st.integers(2, 5), st.integers(0, 2**31))
def test_gradients_of_repeated_singular_values_are_finite_and_keep_the_norm(count, seed):
    """Scaling the matrix changes nothing, so no gradient points along it."""
    weight = of_singular_values([1.0] * count, 16, seed).requires_grad_()
    weights = torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed))
    (gradient,) = torch.autograd.grad((SpectralNorm()(weight) * weights).sum(), weight)
    assert gradient.isfinite().all()
    assert gradient.abs().max() > 0.01
    assert abs(float((gradient * weight).sum())) < 1e-3


@each_model
def test_checkpoints_load_with_and_without_normalised_heads(data, arch):
    """Plain to normalised and back with ``--reuse-heads``: the predictions of a normalised model are kept."""
    names = ",".join(MODELS[arch][2])
    task = open_task(data, names, reuse_heads=True)
    plain = build(arch, task, seed=2)
    state = plain.state_dict()
    normalized = build(arch, task, seed=3, spectral_norm_heads=True)
    normalized.load_state_dict(dict(state), strict=True)
    rows = some_rows(task)
    assert set(normalized.heads) == {"animals", "pairs", "commonsense", "mrc", "counts"}
    again, other = build(arch, task, seed=4), build(arch, task, seed=5, spectral_norm_heads=True)
    for model in (again, other):
        model.load_state_dict(normalized.state_dict(), strict=True)
    for name, head in normalized.heads.items():
        value = largest_singular_value(plain.heads[name].out_proj.weight)
        assert abs(value - 1) > 0.05
        assert head.out_proj.parametrizations.weight.original.equal(plain.heads[name].out_proj.weight)
        torch.testing.assert_close(head.out_proj.weight * value, plain.heads[name].out_proj.weight)
        assert type(again.heads[name].out_proj) is nn.Linear
        assert again.heads[name].out_proj.weight.equal(head.out_proj.weight)
        with torch.no_grad():
            scores = normalized(rows, head=name)
            torch.testing.assert_close(again(rows, head=name), scores)
            torch.testing.assert_close(other(rows, head=name), scores)
            assert not torch.allclose(plain(rows, head=name), scores, atol=1e-3)


@each_model
def test_without_reuse_normalised_heads_start_fresh(data, arch):
    task = open_task(data, "animals,spans")
    state = build(arch, task, seed=2).state_dict()
    ours = build(arch, task, seed=3, spectral_norm_heads=True)
    before = {key: value.clone() for key, value in ours.heads.state_dict().items()}
    ours.load_state_dict(dict(state), strict=True)
    after = ours.heads.state_dict()
    assert "animals.out_proj.parametrizations.weight.original" in after
    assert all(after[key].equal(before[key]) for key in before)


def test_a_normalised_head_learns(data):
    """Its stored weight gets the gradient."""
    task = open_task(data, "spans")
    model = build("muppet_roberta_tiny", task, spectral_norm_heads=True)
    model(some_rows(task), head="mrc").square().sum().backward()
    head = model.heads["mrc"]
    assert isinstance(head, SpanHead)
    assert head.out_proj.parametrizations.weight.original.grad.abs().max() > 1e-3


# -- logs ---------------------------------------------------------------------------------------------


def test_the_log_is_the_mean_over_sub_batches(toys):
    """The batch that fills an idle round counts for nothing, a worker's sum of sub-batches for all of them."""
    toy = toys["muppet_roberta_tiny"]
    criterion = r3f(toy.task, eps=0.1)
    logs = [criterion(toy.model, toy.samples[name])[2] for name in NAMES]
    idle = {key: value * 0 for key, value in logs[0].items()}
    expected = np.mean([float(log["divergence"]) for log in logs])
    together = {key: logs[0][key] + logs[1][key] for key in ("divergence", "noise_survived", "noised")}
    for given_logs in (logs, [*logs, idle], [together, *logs[2:], idle]):
        values = reduced(given_logs)
        assert values["divergence"] == pytest.approx(expected, abs=1e-6)
        assert values["noise_survived"] == pytest.approx(1, abs=1e-3)


@each_model
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_noise_that_changes_nothing_is_warned_of_once(data, toys, caplog, arch, dtype):
    """A whole model without dropout, with the default noise."""
    task, samples = toys[arch].task, toys[arch].samples
    model = build(arch, task).to(dtype)
    criterion = r3f(task, eps=1e-5)
    half = dtype != torch.float32
    with caplog.at_level(logging.INFO, muppet_r3f.__name__):
        for _ in range(2):
            logs = [criterion(model, sample)[2] for sample in samples.values()]
            values = reduced(logs)
            assert 0 <= values["noise_survived"] <= 1
            assert (values["noise_survived"] < 0.5) == half
            assert math.isfinite(values["divergence"])
    said = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    rounded = (
        "the noise of --eps changed less than half of the embedding entries: it rounds away in half precision; "
        "give a larger --eps, or train in float32"
    )
    negligible = (
        "the divergence is below 1e-06: the noise of --eps changes next to nothing in the predictions, and R3F adds "
        "nothing to training; give a larger --eps, or a --dropout, whose masks differ, too"
    )
    assert said == [rounded if half else negligible]


def test_larger_noise_survives_in_half_precision(toys, caplog):
    task, samples = toys["muppet_roberta_tiny"].task, toys["muppet_roberta_tiny"].samples
    criterion = r3f(task, eps=1e-2)
    log = criterion(build("muppet_roberta_tiny", task).bfloat16(), samples["animals"])[2]
    with caplog.at_level(logging.WARNING, muppet_r3f.__name__):
        values = reduced([log])
    assert values["noise_survived"] > 0.9
    assert not caplog.records


# -- bad input ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("--eps 0", "--eps is 0.0; give a size above 0, or use --criterion muppet for no noise"),
        ("--eps nan", "--eps is nan; give a size above 0, or use --criterion muppet for no noise"),
        ("--eps=-1e-5", "--eps is -1e-05; give a size above 0, or use --criterion muppet for no noise"),
        ("--r3f-lambda -1", "--r3f-lambda is -1.0; give a weight of at least 0"),
        ("--label-smoothing 1", "--label-smoothing is 1.0; give a share from 0 to below 1"),
        ("--label-smoothing=-0.1", "--label-smoothing is -0.1; give a share from 0 to below 1"),
    ],
)
def test_what_makes_no_sense_is_refused(data, toys, tmp_path, option, said):
    """As ``fairseq-train`` builds its criterion; how a MuppetError becomes one sentence is tested in test_training."""
    arguments = options(data, tmp_path, *R3F, *option.split())
    args = fairseq_options.parse_args_and_arch(fairseq_options.get_training_parser(), input_args=arguments)
    cfg = convert_namespace_to_omegaconf(args)
    with pytest.raises(MuppetError) as caught:
        toys["muppet_roberta_tiny"].task.build_criterion(cfg.criterion)
    assert str(caught.value) == said


def test_the_options_reach_the_criterion(data, toys, tmp_path):
    more = ("--eps", "0.5", "--r3f-lambda", "3", "--noise-type", "normal", "--label-smoothing", "0.2")
    for given_options, expected in (((), (1e-5, "uniform", 1.0, 0.1)), (more, (0.5, "normal", 3.0, 0.2))):
        arguments = options(data, tmp_path, *R3F, *given_options)
        args = fairseq_options.parse_args_and_arch(fairseq_options.get_training_parser(), input_args=arguments)
        ours = toys["muppet_roberta_tiny"].task.build_criterion(convert_namespace_to_omegaconf(args).criterion)
        assert (ours.noise.eps, str(ours.noise.kind), ours.r3f_lambda, ours.label_smoothing) == expected


# -- the real thing -----------------------------------------------------------------------------------


def check_logs(save_dir: Path, names: tuple[str, ...]) -> None:
    """Every dataset was trained on, every line has R3F's entries, and float32 is not warned of."""
    lines = logged(save_dir, "train_inner")
    assert {name for line in lines for name in names if line.get(f"{name}_loss") is not None} == set(names)
    for line in lines:
        assert float(line["divergence"]) > 0
        assert float(line["noise_survived"]) > 0.99
        assert math.isfinite(float(line["loss"]))
    assert "rounds away" not in (save_dir / "train.log").read_text()


def check_normalised_heads(save_dir: Path, data: Path, outputs: dict[str, int]) -> None:
    """All heads of the checkpoint have the largest singular value 1, and would not without their normalisation."""
    model = TrainedModel.load(save_dir / "checkpoint_last.pt", data / "dict.txt").model
    assert {name: len(head.out_proj.weight) for name, head in model.heads.items()} == outputs
    for name, head in model.heads.items():
        assert largest_singular_value(head.out_proj.weight) == pytest.approx(1, abs=1e-3), name
        assert abs(largest_singular_value(head.out_proj.parametrizations.weight.original) - 1) > 0.05, name


def check_workers_agree(trace: Path, updates: int) -> None:
    first, second = read_trace(trace)
    assert [update["update"] for update in first] == list(range(1, updates + 1))
    assert [update["parameters"] for update in first] == [update["parameters"] for update in second]
    assert [update["sub_batches"] for update in first] != [update["sub_batches"] for update in second]


HEADS = {"animals": 2, "pairs": 3, "commonsense": 1, "mrc": 2}


def test_r4f_trains_roberta(data, tmp_path):
    more = (*R3F, "--spectral-norm-heads", "--max-update", "24", "--update-freq", "1")
    names = (*NAMES, "counts")
    trained(options(data, tmp_path / "run", *more, suite=",".join(names)))
    assert logged(tmp_path / "run", "train_inner")[-1]["num_updates"] == "24"
    check_logs(tmp_path / "run", names)
    check_normalised_heads(tmp_path / "run", data, HEADS | {"counts": 1})


def test_r4f_trains_bart_on_two_workers(data, tmp_path):
    """fairseq's own data parallelism (``legacy_ddp``)."""
    more = (*R3F, "--arch", "muppet_bart_tiny", "--spectral-norm-heads", "--max-update", "20", "--update-freq", "2")
    trained(options(data, tmp_path / "run", *more, suite=",".join(BART_NAMES)), workers=2, trace=tmp_path / "trace")
    check_logs(tmp_path / "run", BART_NAMES)
    check_workers_agree(tmp_path / "trace", updates=20)
    check_normalised_heads(tmp_path / "run", data, HEADS)


def test_r3f_trains_bart_on_two_workers_with_pytorchs_data_parallelism(data, tmp_path):
    more = (*R3F, "--arch", "muppet_bart_tiny", "--max-update", "8", "--no-save", "--ddp-backend", "pytorch_ddp")
    trained(options(data, tmp_path / "run", *more, suite=",".join(BART_NAMES)), workers=2, trace=tmp_path / "trace")
    check_logs(tmp_path / "run", BART_NAMES)
    check_workers_agree(tmp_path / "trace", updates=8)
