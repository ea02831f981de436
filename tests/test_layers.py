"""The layers leave out what nobody reads, and nothing else."""

from __future__ import annotations

import copy
import os
import shutil
from argparse import Namespace
from typing import Any

import pytest
import torch
from fairseq.modules import gelu
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from muppet_fairseq.criterions.muppet import MuppetCriterion
from muppet_fairseq.criterions.muppet_r3f import MuppetR3FCriterion
from muppet_fairseq.errors import MuppetError
from muppet_fairseq.models import bart, layers, roberta
from muppet_fairseq.tasks.muppet import MuppetTask
from tests.runs import parameters
from tests.test_models import perturbed
from tests.toy_suite import open_task, options, trained

MODELS = {
    "roberta": (roberta.MuppetRobertaModel, roberta.muppet_roberta_tiny),
    "bart": (bart.MuppetBartModel, bart.muppet_bart_tiny),
}
SUITES = {"roberta": "animals,choices,spans,counts,tags", "bart": "animals,choices,spans,counts,tags,summaries"}
CASES = [
    *((arch, {}) for arch in MODELS),
    ("roberta", {"encoder_normalize_before": True}),
    ("roberta", {"encoder_layerdrop": 0.5}),
    ("roberta", {"encoder_layerdrop": 1.0}),
    ("roberta", {"checkpoint_activations": True}),
    ("roberta", {"quant_noise_pq": 1e-9}),
    ("bart", {"encoder_normalize_before": True, "decoder_normalize_before": True}),
    ("bart", {"encoder_layerdrop": 0.5, "decoder_layerdrop": 0.5}),
    ("bart", {"decoder_layerdrop": 1.0}),
    ("bart", {"checkpoint_activations": True}),
    ("bart", {"quant_noise_pq": 1e-9}),
]

needs_compiler = pytest.mark.skipif(
    shutil.which(os.environ.get("CXX", "g++")) is None, reason="PyTorch compiles with a C++ compiler; there is none"
)


class AsFairseq:
    """Mixed into ours, it computes all with fairseq's layers, and takes what is asked for from that."""

    is_unusual = property(lambda self: True, lambda self, value: None)


class FairseqEncoder(AsFairseq, layers.Encoder):
    pass


class FairseqDecoder(AsFairseq, layers.Decoder):
    pass


def build(arch: str, task: MuppetTask, **options: Any) -> nn.Module:
    """The tiny model without dropout, in double precision."""
    model, complete = MODELS[arch]
    args = Namespace(dropout=0.0, attention_dropout=0.0, pooler_dropout=0.0, **options)
    complete(args)
    torch.manual_seed(1)
    return perturbed(model.build_model(args, task)).double().train()


def build_both(arch: str, task: MuppetTask, monkeypatch: pytest.MonkeyPatch, **options: Any) -> list[nn.Module]:
    """Ours and one of fairseq's layers, with the same parameters."""
    ours = build(arch, task, **options)
    with monkeypatch.context() as patch:
        patch.setattr(roberta, "Encoder", FairseqEncoder)
        patch.setattr(bart, "Encoder", FairseqEncoder)
        patch.setattr(bart, "Decoder", FairseqDecoder)
        theirs = build(arch, task, **options)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    theirs.load_state_dict(copy.deepcopy(ours.state_dict()))
    return [ours, theirs]


@pytest.fixture(scope="module")
def tasks(data) -> dict[str, MuppetTask]:
    tasks = {arch: open_task(data, suite) for arch, suite in SUITES.items()}
    for task in tasks.values():
        task.load_dataset("train")
    return tasks


def samples_of(task: MuppetTask) -> dict[str, Any]:
    dataset = task.dataset("train")
    starts = [0, *dataset.ends[:-1]]
    return {
        spec.name: dataset.collater([dataset[int(start) + i] for i in range(5)])
        for spec, start in zip(task.specs, starts, strict=True)
    }


def criterions(task: MuppetTask) -> list[MuppetCriterion]:
    noised = MuppetR3FCriterion(task, "log", 0.1, r3f_lambda=1.0, eps=0.01, noise_type="uniform")
    return [MuppetCriterion(task, "log", 0.1), noised]


def gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(("arch", "options"), CASES)
def test_losses_and_gradients_are_those_of_fairseqs_layers(tasks, monkeypatch, arch, options):
    """To rounding: the criterions compute in single precision what the models give in double precision."""
    task = tasks[arch]
    both = build_both(arch, task, monkeypatch, **options)
    for name, sample in samples_of(task).items():
        for criterion in criterions(task):
            results = []
            for model in both:
                torch.manual_seed(2)  # the same noise, and the same layers dropped
                loss, _, _ = criterion(model, sample)
                results.append((loss, gradients(model, loss)))
            (loss, ours), (expected, theirs) = results
            torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
            for key in ours.keys() | theirs.keys():
                # what no gradient reaches may have none, or zeros
                values = [side.get(key, torch.zeros(())) for side in (ours, theirs)]
                error = (values[0] - values[1]).abs().max()
                assert error <= 1e-6 * max(1e-2, float(values[1].abs().max())), (name, key)


@pytest.mark.parametrize("arch", MODELS)
def test_rows_without_padding_may_be_promised(tasks, arch):
    """With it and without, the same; and the sample says which."""
    task = tasks[arch]
    model, samples = build(arch, task).eval(), samples_of(task)
    padded = {name: sample["net_input"]["padded"] for name, sample in samples.items()}
    pad = task.dictionary.pad()
    assert padded == {n: bool((s["net_input"]["src_tokens"] == pad).any()) for n, s in samples.items()}
    assert set(padded.values()) == {False, True}
    for name, sample in samples.items():
        rows, head = sample["net_input"]["src_tokens"], task.heads[sample["dataset"]]
        if head is not None and not padded[name]:
            assert torch.allclose(model(rows, head=head, padded=False), model(rows, head=head), atol=1e-12)
    # a broken promise shows
    rows = samples["animals"]["net_input"]["src_tokens"]
    assert (model(rows, head="animals", padded=False) - model(rows, head="animals")).abs().max() > 1e-3


@pytest.mark.parametrize("arch", MODELS)
def test_the_last_layer_is_computed_where_it_is_read(tasks, arch):
    model, rows = build(arch, tasks[arch]), samples_of(tasks[arch])["animals"]["net_input"]["src_tokens"]
    last = (model.encoder.sentence_encoder if arch == "roberta" else model.decoder).layers[-1]
    seen: list[tuple[int, ...]] = []
    last.fc1.register_forward_hook(lambda module, inputs, output: seen.append(tuple(output.shape)))
    for head in ("animals", "mrc"):
        model(rows, head=head)
    assert seen == [(1, len(rows), 256), (rows.shape[1], len(rows), 256)]


class Waits(TorchDispatchMode):
    """Notes what, on a GPU, would wait for the device."""

    NAMES = {"_local_scalar_dense", "is_nonzero", "nonzero", "masked_select", "equal", "_unique2", "bincount"}

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        name = function.overloadpacket.__name__
        by_truth = name.startswith("index") and any(
            isinstance(index, Tensor) and index.dtype == torch.bool
            for argument in args
            if isinstance(argument, list | tuple)
            for index in argument
        )
        if name in self.NAMES or by_truth:
            self.seen.append(name)
        return function(*args, **(kwargs or {}))


def test_waits_are_noticed():
    values = torch.ones(3)
    with Waits() as waits:
        values.sum().item()
        values[values > 0]
        bool(values.any())
    assert waits.seen == ["_local_scalar_dense", "index", "_local_scalar_dense"]


@pytest.mark.parametrize("arch", MODELS)
def test_nothing_in_a_step_waits_for_the_device(tasks, arch):
    task = tasks[arch]
    model = build(arch, task)
    for name, sample in samples_of(task).items():
        for criterion in criterions(task):
            with Waits() as waits:
                loss, _, _ = criterion(model, sample)
                loss.backward()
            assert not waits.seen, name


def test_pytorchs_gelu_is_fairseqs_in_half_precision():
    values = (torch.randn(1000, generator=torch.Generator().manual_seed(1)) * 3).bfloat16()
    sides = [values.clone().requires_grad_() for _ in range(2)]
    for side, function in zip(sides, (F.gelu, gelu), strict=True):
        function(side).float().square().sum().backward()
    assert F.gelu(values).equal(gelu(values))
    assert sides[0].grad.equal(sides[1].grad)


# -- compiled -----------------------------------------------------------------------------------------


def test_what_cannot_be_compiled_is_one_sentence(tasks, monkeypatch):
    plain, kept = (build("roberta", tasks["roberta"], checkpoint_activations=value) for value in (False, True))
    unusual = build("roberta", tasks["roberta"], quant_noise_pq=0.1)
    for model, why in ((kept, "does not go with --checkpoint-activations"), (unusual, "--quant-noise-pq")):
        with pytest.raises(MuppetError, match=why):
            layers.compile_layers(model)
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(MuppetError, match=r"needs a C\+\+ compiler, and there is no no-such-compiler: install one, or"):
        layers.compile_layers(plain)


@needs_compiler
@pytest.mark.slow
def test_compiled_layers_compute_the_same_under_the_same_names(tasks):
    """To 1e-6, float32's rounding, for rows of several numbers and lengths, with padding and without."""
    task = tasks["roberta"]
    plain = build("roberta", task).float()
    compiled = copy.deepcopy(plain)
    layers.compile_layers(compiled)
    assert compiled.state_dict().keys() == plain.state_dict().keys()
    criterion, samples = MuppetCriterion(task, "log", 0.1), samples_of(task)
    for name in ("animals", "choices", "spans"):
        results = []
        for model in (plain, compiled):
            loss, _, _ = criterion(model, samples[name])
            results.append((loss, gradients(model, loss)))
        (expected, theirs), (loss, ours) = results
        torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
        assert ours.keys() == theirs.keys()
        for key, value in theirs.items():
            torch.testing.assert_close(ours[key], value, rtol=1e-4, atol=1e-6)


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("arch", ["muppet_roberta_tiny", "muppet_bart_tiny"])
def test_a_compiled_run_goes_on_and_may_go_on_without(data, tmp_path, arch):
    """Two workers; without dropout, the parameters are those of a run that compiles nothing."""
    more = ["--arch", arch, "--dropout", "0", "--attention-dropout", "0", "--disable-validation", "--optimizer", "sgd"]
    trained(options(data, tmp_path / "plain", *more, "--max-update", "4"))
    trained(options(data, tmp_path / "compiled", *more, "--compile", "--max-update", "2"), workers=2, timeout=600)
    trained(options(data, tmp_path / "compiled", *more, "--compile", "--max-update", "3"), timeout=600)
    trained(options(data, tmp_path / "compiled", *more, "--max-update", "4"))
    ours, expected = parameters(tmp_path / "compiled"), parameters(tmp_path / "plain")
    assert ours.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(ours[key], value, rtol=1e-4, atol=1e-6)
