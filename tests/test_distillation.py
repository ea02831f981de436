"""Prompt distillation: losses and gradients against plain PyTorch's and by hand, teachers, and real runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch
from fairseq import metrics
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.distributions import Categorical, kl_divergence
from torch.nn import functional as F

from muppet_fairseq import checkpoint_file
from muppet_fairseq.criterions.muppet import MuppetCriterion
from muppet_fairseq.criterions.muppet_distill import MuppetDistillCriterion
from muppet_fairseq.errors import MuppetError
from muppet_fairseq.families import FAMILIES
from muppet_fairseq.families.base import Sample
from muppet_fairseq.models.base import Part, WithHeads
from muppet_fairseq.models.checkpoint import packed
from muppet_fairseq.models.layers import DecoderLayer, EncoderLayer
from muppet_fairseq.r3f import kl
from muppet_fairseq.release import release
from muppet_fairseq.tasks.muppet import MuppetTask
from tests import test_bart
from tests.runs import equal, finished, parameters
from tests.test_layers import Waits
from tests.test_models import some_rows
from tests.test_prompts import SUITES, build, prompted, samples_of, write_backbone
from tests.test_r3f import divergence_by_hand, gradients, outputs, pairs_of_logits
from tests.toy_suite import logged, open_task, options, train, trained

CASES = [(arch, name) for arch, suite in SUITES.items() for name in suite.split(",")]
STILL = {"dropout": 0.0, "attention_dropout": 0.0, "pooler_dropout": 0.0}
#: of a teacher's prompts, and of their student's
SHORT, LONG = 3, 5

each_arch = pytest.mark.parametrize("arch", SUITES)
each_case = pytest.mark.parametrize(("arch", "name"), CASES)


def distill(task: MuppetTask, teachers: list[Path], **changes: Any) -> MuppetDistillCriterion:
    values = {"loss_scaling": "log", "label_smoothing": 0.1, "distill": "both"}
    values |= {"distillation_weight": 1.0, "distillation_temperature": 1.0}
    return MuppetDistillCriterion(task, teachers=",".join(map(str, teachers)), **(values | changes))


def write(path: Path, model: nn.Module, task: MuppetTask) -> Path:
    """The checkpoint of a run that trained ``model``."""
    state = {"specs": [spec.to_dict() for spec in task.specs]}
    checkpoint_file.write(packed({"_name": "muppet"}, {"_name": "muppet"}, model.state_dict(), state), path)
    return path


class Toy:
    """A tiny backbone, prompts on it that differ, a batch of each dataset, and one file of a teacher for all."""

    def __init__(self, data: Path, arch: str, folder: Path) -> None:
        self.arch, self.backbone = arch, folder / f"{arch}.pt"
        self.task, self.samples = samples_of(data, arch)
        write_backbone(arch, self.task, self.backbone)
        self.teacher = self.build(prompt_type="vanilla", prompt_length=SHORT).eval()
        self.file = write(folder / f"{arch}-teacher.pt", self.teacher, self.task)

    def build(self, **options: Any) -> nn.Module:
        """A student in training mode, without dropout; with a head and prompts of its own."""
        model = prompted(self.arch, self.task, self.backbone, **(STILL | {"prompt_length": LONG} | options)).train()
        generator = torch.Generator().manual_seed(sum(p.numel() for p in model.prompts.parameters()))
        with torch.no_grad():
            # prompts as long as what the first layer reads of words; larger heads would be sure of everything
            for part, size in ((model.prompts, 1.0), (model.heads, 0.3)):
                for parameter in part.parameters():
                    parameter.add_(torch.randn(parameter.shape, generator=generator) * size)
        self.task.model = model
        return model


@pytest.fixture(scope="module")
def toys(data, tmp_path_factory) -> dict[str, Toy]:
    folder = tmp_path_factory.mktemp("distillation")
    return {arch: Toy(data, arch, folder) for arch in SUITES}


# -- the divergence -----------------------------------------------------------------------------------


#: the teacher is nearly sure of a candidate of which the student is sure that it is wrong
OPPOSED = (
    torch.tensor([[18.3543, -5.6658, -15.7860, 24.9247]]),
    torch.tensor([[-21.5975, -36.6732, 108.8202, -22.9133]]),
)


@given(pairs_of_logits(), st.sampled_from([0.5, 1.0, 4.0]))
@hypothesis.example(OPPOSED, 0.5)
def test_the_divergence_and_its_gradients_are_those_of_kl_div(pair, temperature):
    """In double precision, over the candidates alone; and the value by ``torch.distributions``, too."""
    teacher, student = (logits.clone().requires_grad_() for logits in pair)
    ours = kl(teacher, student, 1, temperature)
    assert ours.dtype == torch.float32
    found = torch.autograd.grad(ours.sum(), (teacher, student))
    for row, value in enumerate(ours):
        own = ~teacher[row].isneginf()
        p, q = (logits[row].detach()[own].double().requires_grad_() for logits in (teacher, student))
        expected = F.kl_div(
            (q / temperature).log_softmax(0), (p / temperature).log_softmax(0), log_target=True, reduction="sum"
        )
        torch.testing.assert_close(value.double(), expected, rtol=1e-4, atol=1e-6)
        of_distributions = kl_divergence(Categorical(logits=p / temperature), Categorical(logits=q / temperature))
        torch.testing.assert_close(of_distributions, expected, rtol=1e-6, atol=1e-9)
        for gradient, reference in zip(found, torch.autograd.grad(expected, (p, q)), strict=True):
            torch.testing.assert_close(gradient[row, own].double(), reference, rtol=1e-3, atol=5e-6)
            assert gradient[row, ~own].count_nonzero() == 0
    # where only the student learns
    torch.testing.assert_close(torch.autograd.grad(kl(pair[0], student, 1, temperature).sum(), student)[0], found[1])


# -- states -------------------------------------------------------------------------------------------


@each_arch
def test_states_are_those_that_layers_give_of_tokens(toys, arch):
    toy = toys[arch]
    model, rows = toy.build().eval().double(), some_rows(toy.task)
    with torch.no_grad():
        for head in (None, "animals", "mrc"):
            output, states = model(rows, head=head, prompt="animals", hidden=True)
            torch.testing.assert_close(output, model(rows, head=head, prompt="animals"), atol=1e-12, rtol=0)
            layers = states_by_hooks(model, {"src_tokens": rows, "prompt": "animals"})
            for (ours, is_token), theirs in zip(states, layers, strict=True):
                assert is_token.equal(rows != 1)
                torch.testing.assert_close(ours, theirs[:, -rows.shape[1] :], atol=1e-12, rtol=0)
        given = Part(model.prompts.matrix("spans").clone(), model.heads["tags"])
        ours = model(rows, head="animals", prompt="animals", part=given)
        assert ours.equal(model(rows, head="tags", prompt="spans"))


def test_barts_states_are_those_of_transformers(toys):
    task = toys["bart"].task
    model = build("bart", task)
    reference = test_bart.theirs("BartForQuestionAnswering", model).model
    for rows in (test_bart.SINGLES, test_bart.PAIRS):
        real = rows != 1
        with torch.no_grad():
            _, states = model(rows, head="animals", hidden=True)
            expected = reference(
                rows,
                attention_mask=real.long(),
                decoder_input_ids=model.shifted(rows),
                decoder_attention_mask=real.long(),
                output_hidden_states=True,
            )
        layers = [*expected.encoder_hidden_states[1:], *expected.decoder_hidden_states[1:]]
        for (ours, is_token), theirs in zip(states, layers, strict=True):
            assert is_token.equal(real)
            torch.testing.assert_close(ours[real], theirs[real], atol=1e-5, rtol=0)


def states_by_hooks(model: nn.Module, inputs: dict[str, Any]) -> list[Tensor]:
    """What each layer gives, ``[R, L + T, D]``, where the last is computed whole."""
    found: list[Tensor] = []
    layers = [module for module in model.modules() if isinstance(module, EncoderLayer | DecoderLayer)]
    hooks = [layer.register_forward_hook(lambda _, inputs, output: found.append(output)) for layer in layers]
    model(**inputs)
    for hook in hooks:
        hook.remove()
    return [states.transpose(0, 1) for states in found]


# -- the loss, by hand --------------------------------------------------------------------------------


def plain_kl(temperature: float) -> Callable[[Tensor, Tensor], Tensor]:
    def between(teacher: Tensor, student: Tensor) -> Tensor:
        p, q = (Categorical(logits=logits.double() / temperature) for logits in (teacher, student))
        return kl_divergence(p, q)

    return between


def hidden_by_hand(teacher: nn.Module, student: nn.Module, sample: Sample) -> Tensor:
    """The mean squared difference of each example, ``[B]``: example by example, of two models."""
    inputs = dict(sample["net_input"])
    widths = {"encoder": inputs["src_tokens"], "decoder": inputs["src_tokens"]}
    if "prev_output_tokens" in sample:
        inputs["prev_output_tokens"] = widths["decoder"] = sample["prev_output_tokens"]
    with torch.no_grad():
        theirs = states_by_hooks(teacher, inputs)
    ours = states_by_hooks(student, inputs)
    counts = sample["is_choice"].sum(dim=1).tolist() if "is_choice" in sample else [1] * len(inputs["src_tokens"])
    number_of_encoders = sum(isinstance(module, EncoderLayer) for module in student.modules())
    values = []
    for example in torch.arange(sum(counts)).split(counts):
        layers = []
        for number, (a, b) in enumerate(zip(theirs, ours, strict=True)):
            tokens = widths["encoder" if number < number_of_encoders else "decoder"]
            places = [(row, place) for row in example.tolist() for place in range(int((tokens[row] != 1).sum()))]
            own, other = (
                torch.stack([states[row, states.shape[1] - tokens.shape[1] + place] for row, place in places])
                for states in (b, a)
            )
            layers.append(F.mse_loss(own, other))
        values.append(torch.stack(layers).mean())
    return torch.stack(values)


@each_case
@pytest.mark.parametrize(("kind", "temperature"), [("both", 1.0), ("logits", 2.5), ("hidden", 1.0)])
def test_the_loss_is_the_plain_one_and_lambda_times_what_the_teacher_says(toys, arch, name, kind, temperature):
    """The teacher by a whole model of its own, whose prompts are shorter; values and gradients in double precision."""
    toy, sample = toys[arch], toys[arch].samples[name]
    teacher, student = toy.teacher.double(), toy.build().double()
    changes = {"distillation_weight": 500.0, "distillation_temperature": temperature, "distill": kind}
    criterion = distill(toy.task, [toy.file], **changes)
    loss, sample_size, log = criterion(student, sample)
    assert sample_size == 1

    spec, head = toy.task.specs[sample["dataset"]], toy.task.heads[sample["dataset"]]
    with torch.no_grad():
        expected = outputs(teacher, sample, head)
    own = outputs(student, sample, head)
    of_logits = divergence_by_hand(spec.family, expected, own, sample, plain_kl(temperature))
    of_hidden = hidden_by_hand(teacher, student, sample)
    family = FAMILIES[spec.family]
    factors = MuppetCriterion(toy.task, "log", 0.1).weights(
        family.num_predictions(family.logits(student, sample, head), sample), sample["dataset"]
    )
    plain, _, _ = MuppetCriterion(toy.task, "log", 0.1)(student, sample)
    added = torch.zeros((), dtype=torch.float64)
    for key, values in (("logits", of_logits), ("hidden", of_hidden)):
        assert values.min() > 5e-6
        if kind in ("both", key):
            added = added + 500 * (factors * values).mean()
            total, count = log[f"distill_{key}"].tolist()
            assert count == 1
            assert total == pytest.approx(values.mean().item(), rel=1e-4)
        else:
            assert log[f"distill_{key}"].tolist() == [0, 0]
    torch.testing.assert_close(loss.double() - plain, added, rtol=1e-3, atol=1e-6)
    trains = nn.ModuleDict({"prompts": student.prompts, "heads": student.heads})
    ours, reference = gradients(trains, loss - plain), gradients(trains, added)
    assert reference.keys() <= ours.keys()
    largest = max(float(value.abs().max()) for value in reference.values())
    for key, value in ours.items():
        expected = reference.get(key, torch.zeros_like(value))  # states do not depend on heads
        torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-5 * largest, msg=key)


@each_case
def test_a_student_that_is_its_teacher_learns_nothing(toys, arch, name):
    toy, sample = toys[arch], toys[arch].samples[name]
    student = toy.build(prompt_type="vanilla", prompt_length=SHORT)
    student.load_state_dict(checkpoint_file.read(toy.file)["model"])
    loss, _, log = distill(toy.task, [toy.file])(student, sample)
    plain, _, _ = MuppetCriterion(toy.task, "log", 0.1)(student, sample)
    assert log["distill_logits"].tolist() == log["distill_hidden"].tolist() == [0, 1]
    torch.testing.assert_close(loss, plain, rtol=1e-6, atol=1e-6)
    for key, value in gradients(student.prompts, plain).items():
        torch.testing.assert_close(gradients_of(student, toy, sample)[key], value, rtol=1e-4, atol=1e-6, msg=key)


def gradients_of(student: nn.Module, toy: Toy, sample: Sample, **changes: Any) -> dict[str, Tensor]:
    loss, _, _ = distill(toy.task, [toy.file], **changes)(student, sample)
    return gradients(student.prompts, loss)


@pytest.mark.parametrize(("kind", "weight"), [("logits", 30.0), ("hidden", 1000.0)])
def test_it_draws_the_student_to_its_teachers(toys, kind, weight):
    toy = toys["roberta"]
    student, samples = toy.build(), [toy.samples[name] for name in ("animals", "spans")]
    criterion = distill(toy.task, [toy.file], distill=kind, distillation_weight=weight)
    optimizer = torch.optim.Adam([*student.prompts.parameters(), *student.heads.parameters()], lr=0.02)
    history = []
    for _ in range(15):
        optimizer.zero_grad()
        logs = []
        for sample in samples:
            loss, _, log = criterion(student, sample)
            loss.backward()
            logs.append(float(log[f"distill_{kind}"][0]))
        history.append(sum(logs))
        optimizer.step()
    assert history[-1] < 0.7 * history[0]


@each_case
def test_neighbours_in_the_batch_make_no_difference(data, toys, arch, name):
    """What each example alone costs, with no padding, is what it costs among longer ones."""
    toy, together = toys[arch], toys[arch].samples[name]
    student = toy.build().double()
    criterion = distill(toy.task, [toy.file], loss_scaling="none")
    dataset = toy.task.dataset("train")
    first = [0, *dataset.ends[:-1]][together["dataset"]]
    alone = [dataset.collater([dataset[int(first) + number]]) for number in range(5)]
    assert len({sample["net_input"]["src_tokens"].shape[1] for sample in alone}) > 1 or name == "choices"
    logs = [criterion(student, sample)[2] for sample in alone]
    _, _, log = criterion(student, together)
    for key in ("distill_logits", "distill_hidden"):
        mean = sum(one[key][0] for one in logs) / len(logs)
        assert float(log[key][0]) == pytest.approx(float(mean), rel=1e-4)


# -- what the teachers leave as it is -----------------------------------------------------------------


@each_arch
def test_without_weight_it_is_the_plain_loss_bit_by_bit(toys, arch):
    toy = toys[arch]
    student = toy.build(dropout=0.3, attention_dropout=0.2)
    criterion, plain = distill(toy.task, [toy.file], distillation_weight=0.0), MuppetCriterion(toy.task, "log", 0.1)
    trains = nn.ModuleDict({"prompts": student.prompts, "heads": student.heads})
    for sample in toy.samples.values():
        found = []
        for one in (criterion, plain):
            torch.manual_seed(4)
            loss, _, log = one(student, sample)
            found.append((loss, log["statistics"], *gradients(trains, loss).values(), torch.get_rng_state()))
        assert len(found[0]) > 4
        assert all(ours.equal(theirs) for ours, theirs in zip(*found, strict=True))


@each_arch
def test_the_students_dropout_does_not_depend_on_the_teacher(toys, arch):
    """The teacher has none, nor a layer dropped; the student drops what it drops without a teacher."""
    toy, sample = toys[arch], toys[arch].samples["animals"]
    student = toy.build(dropout=0.3, attention_dropout=0.2, encoder_layerdrop=0.5)
    criterion = distill(toy.task, [toy.file], distill="logits", distillation_weight=2.0)
    found, teachers = [], []
    divergence = FAMILIES["classification"].divergence
    for one in (criterion, MuppetCriterion(toy.task, "log", 0.1)):
        torch.manual_seed(4)
        loss, _, log = one(student, sample)
        found.append((loss, log, torch.get_rng_state()))
        assert all(module.training for module in student.modules())
    (loss, log, state), (plain, _, expected) = found
    assert state.equal(expected)
    scale = torch.tensor(2.0).log()  # two classes
    torch.testing.assert_close(loss, plain + 2 * log["distill_logits"][0] / scale)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            FAMILIES["classification"],
            "divergence",
            lambda teacher, *others: (teachers.append(teacher), divergence(teacher, *others))[1],
        )
        for _ in range(2):
            criterion(student, sample)
    own = outputs(toy.teacher.float(), sample, "animals")
    for teacher in teachers:
        assert not teacher.requires_grad
        torch.testing.assert_close(teacher, own, rtol=1e-4, atol=1e-5)
    assert teachers[0].equal(teachers[1])


@each_arch
def test_validation_is_without_teachers(toys, arch):
    toy = toys[arch]
    student = toy.build().eval()
    criterion, plain = distill(toy.task, [toy.file]).eval(), MuppetCriterion(toy.task, "log", 0.1).eval()
    for sample in toy.samples.values():
        with torch.no_grad():
            (loss, _, log), (expected, _, plain_log) = (one(student, sample) for one in (criterion, plain))
            # every worker sends the same keys, whether it validates or trains
            _, _, trained_log = criterion.train()(student.train(), sample)
        student.eval(), criterion.eval()
        assert loss.equal(expected)
        assert log["statistics"].equal(plain_log["statistics"])
        assert log.keys() == trained_log.keys() == plain_log.keys() | {"distill_logits", "distill_hidden"}
        assert all(log[key].shape == trained_log[key].shape for key in ("distill_logits", "distill_hidden"))
        with metrics.aggregate() as line:
            criterion.reduce_metrics([log, trained_log, trained_log])
        assert line["distill_hidden"].avg == pytest.approx(float(trained_log["distill_hidden"][0]))
        with metrics.aggregate() as line:
            criterion.reduce_metrics([log, log])
        assert not line.get_smoothed_values()


@each_arch
def test_nothing_waits_and_only_what_is_read_is_computed(toys, arch):
    toy = toys[arch]
    student = toy.build(checkpoint_activations=True)
    criterion = distill(toy.task, [toy.file])
    for sample in toy.samples.values():
        with Waits() as waits:
            criterion(student, sample)[0].backward()
        assert not waits.seen
    shapes, rows = [], len(toy.samples["animals"]["id"])
    last = (student.text_encoder if arch == "roberta" else student.decoder).layers[-1]
    last.fc1.register_forward_hook(lambda module, inputs, output: shapes.append(tuple(output.shape)))
    distill(toy.task, [toy.file], distill="logits")(student, toy.samples["animals"])
    assert shapes == [(1, rows, 256)] * 2


def test_teachers_are_neither_trained_nor_saved(toys):
    toy = toys["roberta"]
    student = toy.build()
    criterion = distill(toy.task, [toy.file])
    assert not list(criterion.parameters())
    assert not criterion.state_dict()
    before = [[value.clone() for value in (part.prompt, *part.head.parameters())] for part in criterion.teachers]
    for sample in toy.samples.values():
        criterion(student, sample)[0].backward()
    for part, values in zip(criterion.teachers, before, strict=True):
        for value, was in zip((part.prompt, *part.head.parameters()), values, strict=True):
            assert value.grad is None
            assert not value.requires_grad
            assert value.equal(was)


@pytest.mark.parametrize("normalized", ["teacher", "student"])
def test_a_teachers_head_predicts_as_it_did_whatever_the_students(toys, tmp_path, normalized):
    """R4F's heads differ from others in what they make of their weights."""
    toy, sample = toys["roberta"], toys["roberta"].samples["animals"]
    of_teacher, of_student = ({"spectral_norm_heads": normalized == which} for which in ("teacher", "student"))
    teacher = toy.build(prompt_type="vanilla", **of_teacher).eval()
    file = write(tmp_path / "teacher.pt", teacher, toy.task)
    student = toy.build(**of_student).eval()
    (part, *_) = distill(toy.task, [file]).teachers
    ours = student(**sample["net_input"], head="animals", part=part)
    torch.testing.assert_close(ours, outputs(teacher, sample, "animals"), rtol=1e-4, atol=1e-5)
    assert (ours - outputs(student, sample, "animals")).abs().max() > 1e-2


# -- the identity decomposition -----------------------------------------------------------------------


@each_arch
@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_with_ones_for_factors_it_is_vanilla_prompt_tuning(toys, arch, weight):
    """Same predictions, and the shared matrix's gradient is the sum of those of the datasets' own, bit by bit."""
    toy = toys[arch]
    decomposed, vanilla = toy.build(), toy.build(prompt_type="vanilla")
    with torch.no_grad():
        for name in vanilla.prompts.names:
            for factor in decomposed.prompts.factors(name):
                factor.fill_(1)
            vanilla.prompts.matrix(name).copy_(decomposed.prompts.shared)
    vanilla.heads.load_state_dict(decomposed.heads.state_dict())
    criterion = distill(toy.task, [toy.file], distillation_weight=weight)
    total = 0
    for name, sample in toy.samples.items():
        (ours, _, log), (theirs, _, others) = (criterion(model, sample) for model in (decomposed, vanilla))
        assert ours.equal(theirs)
        assert all(log[key].equal(others[key]) for key in ("statistics", "distill_logits", "distill_hidden"))
        ours.backward()
        theirs.backward()
        total = total + vanilla.prompts.matrix(name).grad
        assert decomposed.prompts.shared.grad.equal(total)
    for ours, theirs in zip(decomposed.heads.parameters(), vanilla.heads.parameters(), strict=True):
        assert ours.grad.equal(theirs.grad)


def tuned_otherwise(change: Callable[[nn.Module], Any]) -> Callable[[int], None]:
    """What has a run's worker change its model after ``--tune``."""

    def inject(rank: int) -> None:
        tune = WithHeads.tune

        def tuned(self: nn.Module, *arguments: Any) -> None:
            tune(self, *arguments)
            change(self)

        WithHeads.tune = tuned

    return inject


def hold_factors(model: nn.Module) -> None:
    for name in model.prompts.names:
        for factor in model.prompts.factors(name):
            factor.requires_grad_(False)


def tie(model: nn.Module) -> None:
    """One matrix for all datasets, under each of their names."""
    for name in model.prompts.names[1:]:
        model.prompts.register_parameter(f"P_{name}", model.prompts.matrix(model.prompts.names[0]))


@pytest.mark.parametrize("suite", ["animals", "animals,pairs,spans"])
def test_a_run_with_ones_for_factors_is_one_of_vanilla_prompt_tuning(data, runs, tmp_path, suite):
    """With dropout, Adam and clipping; of several datasets, vanilla prompts are one matrix for all."""
    more = ("--max-update", "12", "--disable-validation", "--lr", "0.01")
    own = runs.student(tmp_path / "ours", "--distillation-weight", "0", *more, suite=suite)
    finished(own, tmp_path / "a", inject=tuned_otherwise(hold_factors))
    vanilla = runs.prompts(tmp_path / "theirs", suite, *more, length="5")
    finished(vanilla, tmp_path / "b", inject=tuned_otherwise(tie))
    ours, theirs = (
        checkpoint_file.read(tmp_path / name / "checkpoint_last.pt")["model"] for name in ("ours", "theirs")
    )
    for name in suite.split(","):
        assert ours[f"prompts.u_{name}"].eq(1).all()
        assert ours[f"prompts.v_{name}"].eq(1).all()
        torch.testing.assert_close(ours["prompts.P"], theirs[f"prompts.P_{name}"], atol=1e-6, rtol=0)
    for key in [key for key in ours if key.startswith("heads.")]:
        torch.testing.assert_close(ours[key], theirs[key], atol=1e-6, rtol=0)
    embeddings = checkpoint_file.read(runs.backbone)["model"]["encoder.sentence_encoder.embed_tokens.weight"]
    assert (ours["prompts.P"][:, None] - embeddings).abs().amax(dim=2).min() > 1e-2  # no word any more


# -- real runs ----------------------------------------------------------------------------------------


class Runs:
    """A backbone, and two teachers' runs: of ``animals``, and of ``pairs`` and ``spans``, with other lengths."""

    def __init__(self, data: Path, folder: Path) -> None:
        self.data, self.folder = data, folder
        quiet = ("--max-epoch", "1", "--disable-validation", "--log-interval", "1000", "--lr", "0.01")
        trained(options(data, folder / "all", *quiet, suite="counts"))
        release(folder / "all" / "checkpoint_last.pt", folder / "release")
        self.backbone = folder / "release" / "model.pt"
        self.teachers = []
        for suite, length in (("animals", "4"), ("pairs,spans", "6")):
            trained(self.prompts(folder / length, suite, *quiet, length=length))
            self.teachers.append(folder / length / "checkpoint_last.pt")

    def prompts(self, save_dir: Path, suite: str, *more: str, length: str) -> list[str]:
        tuned = ("--tune", "prompts", "--backbone", str(self.backbone), "--prompt-length", length)
        return options(self.data, save_dir, *tuned, *more, suite=suite)

    def student(self, save_dir: Path, *more: str, suite: str = "animals,pairs,spans") -> list[str]:
        words = ("--criterion", "muppet_distill", "--teachers", ",".join(map(str, self.teachers)))
        return self.prompts(save_dir, suite, "--prompt-type", "decomposed", *words, *more, length="5")


@pytest.fixture(scope="module")
def runs(data, tmp_path_factory) -> Runs:
    return Runs(data, tmp_path_factory.mktemp("runs"))


def test_one_worker_and_two_learn_the_same_of_teachers(data, runs, tmp_path):
    still = ("--dropout", "0", "--attention-dropout", "0", "--pooler-dropout", "0")
    still += ("--optimizer", "sgd", "--lr", "0.5", "--max-epoch", "1")
    more = ("--distillation-temperature", "2", "--distillation-weight", "3")
    for name, workers, ddp in (("one", 1, ()), ("two", 2, ()), ("ddp", 2, ("--ddp-backend", "pytorch_ddp"))):
        trained(runs.student(tmp_path / name, *still, *more, *ddp), workers=workers)
    (end,) = logged(tmp_path / "one", "valid")
    lines = logged(tmp_path / "one", "train_inner")
    assert len(lines) >= 5
    assert all(float(line["distill_logits"]) > 0 and float(line["distill_hidden"]) > 0 for line in lines)
    assert not any("distill" in key for key in end)
    reference = parameters(tmp_path / "one")
    for name in ("two", "ddp"):
        for ours, theirs in zip(logged(tmp_path / name, "train_inner"), lines, strict=True):
            for key in ("loss", "distill_logits", "distill_hidden"):
                assert float(ours[key]) == pytest.approx(float(theirs[key]), rel=1e-3, abs=2e-4), (name, key)
        ours = parameters(tmp_path / name)
        assert ours.keys() == reference.keys()
        for key, value in reference.items():
            torch.testing.assert_close(ours[key], value, atol=1e-6, rtol=1e-5, msg=key)
    content = checkpoint_file.read(tmp_path / "one" / "checkpoint_last.pt")
    assert content.get("criterion") is None
    assert {key.split(".")[0] for key in content["model"]} == {
        "dictionary_sha256",
        "backbone_sha256",
        "prompts",
        "heads",
    }
    tensors = [*parameters(tmp_path / "one").values()]
    size = sum(value.numel() * value.element_size() for value in tensors)
    assert (tmp_path / "one" / "checkpoint_last.pt").stat().st_size < size + 60_000


def test_a_stopped_run_goes_on_as_if_it_had_not_been(runs, tmp_path):
    def run(name: str, until: str) -> None:
        words = ("--disable-validation", "--bf16", "--ddp-backend", "pytorch_ddp", "--max-update", until)
        trained(runs.student(tmp_path / name, *words), workers=2)

    run("whole", "7")
    run("stopped", "3")
    stopped = parameters(tmp_path / "stopped")
    run("stopped", "7")
    assert not equal(parameters(tmp_path / "stopped"), stopped)
    assert equal(parameters(tmp_path / "stopped"), parameters(tmp_path / "whole"))


# -- what cannot be used ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"distillation_weight": -1.0}, "--distillation-weight is -1.0; give a weight of at least 0"),
        ({"distillation_weight": float("nan")}, "--distillation-weight is nan; give a weight of at least 0"),
        ({"distillation_temperature": 0.0}, "--distillation-temperature is 0.0; give one above 0"),
        ({"distillation_temperature": float("inf")}, "--distillation-temperature is inf; give one above 0"),
    ],
)
def test_numbers_that_make_no_sense_are_said(toys, changes, said):
    toys["roberta"].build()
    with pytest.raises(MuppetError, match=f"^{said}$"):
        distill(toys["roberta"].task, [toys["roberta"].file], **changes)


def test_teachers_that_cannot_be_used_are_said(data, toys, tmp_path):
    """Also where their weight is 0."""
    toy = toys["roberta"]
    student = toy.build()

    def changed(name: str, change: Callable[[dict[str, Any]], Any]) -> Path:
        content = checkpoint_file.read(toy.file)
        change(content)
        checkpoint_file.write(content, tmp_path / name)
        return tmp_path / name

    def relabelled(content: dict[str, Any]) -> None:
        content["task_state"]["specs"][0]["labels"] = ["1", "0"]

    def other(key: str) -> Callable[[dict[str, Any]], Any]:
        return lambda content: content["model"].update({key: torch.zeros(32, dtype=torch.uint8)})

    def cut(content: dict[str, Any]) -> None:
        del content["model"]["heads.mrc.out_proj.bias"]

    part = open_task(data, "choices,spans")
    two = write(tmp_path / "two.pt", prompted("roberta", part, toy.backbone, prompt_type="vanilla"), part)
    text = tmp_path / "text.pt"
    text.write_text("no checkpoint")
    unnamed = changed("unnamed.pt", lambda content: content["task_state"]["specs"].pop(0))
    for files, said in (
        (
            [],
            r"the dataset animals has no teacher \(there is one for none\): name a checkpoint of a run on it with --tu",
        ),
        ([two], r"the dataset animals has no teacher \(there is one for choices, spans\): name a checkpoint of a run"),
        ([toy.file, two], rf"the dataset choices has two teachers, {toy.file} and {two}: leave one out of --teachers"),
        ([toy.file, toy.file], "the dataset animals has two teachers, "),
        (
            [toy.backbone],
            rf"{toy.backbone} does not say which datasets it was trained on: it is no checkpoint of --task",
        ),
        ([text], rf"{text} is damaged, or no checkpoint"),
        ([tmp_path / "none.pt"], "the checkpoint .*none.pt cannot be read"),
        (
            [write(tmp_path / "whole.pt", build("roberta", toy.task), toy.task)],
            r".*whole.pt holds no prompts; name a checkpoint of a run with --tune prompts$",
        ),
        ([changed("a.pt", other("backbone_sha256"))], r".*a.pt: the checkpoint was trained on another backbone \("),
        ([changed("b.pt", other("dictionary_sha256"))], r".*b.pt: the checkpoint was trained with another dictionary"),
        (
            [changed("c.pt", relabelled)],
            r".*c.pt was trained on another animals \(classification: 1, 0\) than the suite's \(classification: 0, 1"
            r"\): train the teacher on the same data$",
        ),
        ([changed("d.pt", cut)], r".*d.pt holds no head of the model's shape for spans: train the teacher with"),
        ([unnamed], r".*unnamed.pt is of another version of muppet_fairseq"),
    ):
        with pytest.raises(MuppetError, match=f"^{said}"):
            distill(toy.task, files, distillation_weight=0.0)
    assert student.prompts is not None
    prompted("roberta", toy.task, toy.backbone, encoder_layerdrop=0.2)
    toy.build(encoder_layerdrop=0.2)
    with pytest.raises(
        MuppetError, match="leave out layers whose states are to be compared: set them to 0, or --distill"
    ):
        distill(toy.task, [toy.file])
    plain = open_task(data, SUITES["roberta"])
    with pytest.raises(
        MuppetError, match=r"^--criterion muppet_distill trains prompts by their teachers: add --tune pro"
    ):
        distill(plain, [toy.file])


def test_a_run_says_what_is_wrong_in_one_sentence(data, runs, tmp_path):
    for arguments, said in (
        (
            runs.student(tmp_path / "run", suite="animals,pairs,choices"),
            "muppet: the dataset choices has no teacher (there is one for animals, pairs, spans): name a checkpoint of "
            "a run on it with --tune prompts in --teachers",
        ),
        (
            [*options(data, tmp_path / "run"), "--criterion", "muppet_distill"],
            "muppet: --criterion muppet_distill trains prompts by their teachers: add --tune prompts",
        ),
    ):
        done = train(arguments)
        assert done.returncode == 1
        assert [line for line in done.stderr.splitlines() if "muppet: " in line] == [said]
        assert "Traceback" not in done.stderr
