"""Soft prompts: their arithmetic against PEFT's, and what models compute with them against transformers'."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
from fairseq.models import ARCH_CONFIG_REGISTRY, ARCH_MODEL_REGISTRY
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from muppet_fairseq import checkpoint_file
from muppet_fairseq.criterions.muppet import MuppetCriterion
from muppet_fairseq.criterions.muppet_r3f import MuppetR3FCriterion
from muppet_fairseq.data.tokenizer import Tokenizer, dictionary_sha256
from muppet_fairseq.errors import MuppetError
from muppet_fairseq.generation import GenerationOptions, Generator
from muppet_fairseq.hf import importing
from muppet_fairseq.models.checkpoint import packed
from muppet_fairseq.prompts.count import ParameterCounts, count_parameters
from muppet_fairseq.prompts.prompt import PROMPT_TYPES, DecomposedPrompt, Prompt, VanillaPrompt, drawn_words, prompt_of
from muppet_fairseq.r3f import EmbeddingNoise
from muppet_fairseq.spec import DatasetSpec
from muppet_fairseq.tasks.muppet import MuppetTask, MuppetTaskConfig
from tests import test_bart
from tests.test_import_hf import encode_both, english_sentences, spread, tiny_bert, tiny_roberta
from tests.test_layers import Waits
from tests.test_models import perturbed, some_rows
from tests.toy_suite import open_task

SUITES = {"roberta": "animals,choices,spans,counts,tags", "bart": "animals,choices,spans,counts,tags,summaries"}
LENGTH = 5
NAMES = ("a", "b", "c")


def random_prompt(kind: str, names: tuple[str, ...] = NAMES, length: int = 4, dim: int = 6, seed: int = 1) -> Prompt:
    prompt = PROMPT_TYPES[kind](names, length, dim)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in prompt.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return prompt


# -- arithmetic ---------------------------------------------------------------------------------------


def test_values_and_gradients_of_a_decomposed_prompt_are_pefts():
    from peft import MultitaskPromptTuningConfig
    from peft.tuners.multitask_prompt_tuning import MultitaskPromptEmbedding

    length, dim = 20, 48
    ours = random_prompt("decomposed", length=length, dim=dim).double()
    config = MultitaskPromptTuningConfig(
        num_tasks=len(NAMES), num_ranks=1, num_virtual_tokens=length, token_dim=dim, num_transformer_submodules=1
    )
    theirs = MultitaskPromptEmbedding(config, nn.Embedding(10, dim)).double()
    factors = [ours.factors(name) for name in NAMES]
    state = {"embedding.weight": ours.shared, "prefix_task_cols": torch.stack([u for u, _ in factors])[:, :, None]}
    theirs.load_state_dict(state | {"prefix_task_rows": torch.stack([v for _, v in factors])[:, None]})
    numbers = torch.tensor([2, 0, 1, 0])
    weights = torch.randn(len(numbers), length, dim, dtype=torch.float64)
    expected = theirs(torch.arange(length).expand(len(numbers), -1), numbers)
    values = torch.stack([ours.matrix(NAMES[number]) for number in numbers])
    torch.testing.assert_close(values, expected, rtol=1e-12, atol=1e-12)
    for prompts in (values, expected):
        (prompts * weights).sum().backward()
    pairs = [(ours.shared, theirs.embedding.weight.grad)]
    for number, (u, v) in enumerate(factors):
        pairs += [(u, theirs.prefix_task_cols.grad[number, :, 0]), (v, theirs.prefix_task_rows.grad[number, 0])]
    for parameter, gradient in pairs:
        assert gradient.abs().max() > 1
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", PROMPT_TYPES)
@given(count=st.integers(1, 6), length=st.integers(1, 30), dim=st.integers(1, 40))
def test_the_number_of_parameters_is_the_papers(kind, count, length, dim):
    prompt = PROMPT_TYPES[kind]([f"k{number}" for number in range(count)], length, dim)
    matrix = length * dim
    expected = {"vanilla": matrix * count, "decomposed": matrix + (length + dim) * count, "shared": matrix}
    assert sum(parameter.numel() for parameter in prompt.parameters()) == expected[kind]


@pytest.mark.parametrize("kind", PROMPT_TYPES)
def test_folded_and_read_back_it_is_the_same(kind):
    prompt = random_prompt(kind)
    read, folded = prompt_of(prompt.state_dict(), sharing=NAMES), prompt.fold()
    again = prompt_of({f"P_{name}": matrix for name, matrix in folded.items()})
    assert type(read) is type(prompt)
    assert read.names == prompt.names
    assert isinstance(again, VanillaPrompt)
    for name in NAMES:
        assert read.matrix(name).equal(prompt.matrix(name))
        assert again.matrix(name).equal(prompt.matrix(name))
        assert not folded[name].requires_grad


def test_words_are_drawn_by_the_seed_alone():
    words = drawn_words(50, vocabulary=30, first=4, seed=1)
    assert words.shape == (50,)
    assert {*words.tolist()} <= {*range(4, 30)}
    assert len({*words.tolist()}) > 10
    torch.rand(3)
    assert drawn_words(50, vocabulary=30, first=4, seed=1).equal(words)
    assert not drawn_words(50, vocabulary=30, first=4, seed=2).equal(words)


@pytest.mark.parametrize("kind", PROMPT_TYPES)
def test_all_datasets_begin_alike(kind):
    prompt, matrix = PROMPT_TYPES[kind](NAMES, 4, 6), torch.randn(4, 6)
    prompt.start_alike(matrix)
    for name in NAMES:
        assert prompt.matrix(name).equal(matrix)


def test_a_target_begins_with_the_shared_matrix_and_the_mean_factors():
    source = random_prompt("decomposed")
    target = DecomposedPrompt(["b", "new"], 4, 6)
    target.start_from(source)
    assert target.shared.equal(source.shared)
    assert target.matrix("b").equal(source.matrix("b"))
    mean_u, mean_v = (sum(source.factors(name)[side] for name in NAMES) / 3 for side in (0, 1))
    torch.testing.assert_close(target.factors("new"), (mean_u, mean_v))
    vanilla = VanillaPrompt(["b", "new"], 4, 6)
    vanilla.start_from(source)
    assert vanilla.matrix("b").equal(source.matrix("b"))
    torch.testing.assert_close(vanilla.matrix("new"), source.shared * mean_u[:, None] * mean_v)


@pytest.mark.parametrize("kind", PROMPT_TYPES)
def test_a_target_begins_with_the_one_matrix_of_a_source(kind):
    source = random_prompt("vanilla", ("source",))
    target = PROMPT_TYPES[kind](["one", "two"], 4, 6)
    target.start_from(source)
    assert target.matrix("one").equal(source.matrix("source"))
    assert target.matrix("two").equal(source.matrix("source"))


@pytest.mark.parametrize("kind", PROMPT_TYPES)
def test_any_target_begins_with_a_matrix_that_was_shared(kind):
    source = random_prompt("shared")
    # the state of it names no dataset
    for shared in (source, prompt_of(source.state_dict()), prompt_of(source.state_dict(), sharing=["a"])):
        target = PROMPT_TYPES[kind](["a", "new"], 4, 6)
        target.start_from(shared)
        for name in ("a", "new"):
            assert target.matrix(name).equal(source.shared)
        assert all(own.grad_fn is None and own.is_leaf for own in target.parameters())


def test_a_shared_matrix_begins_as_a_new_dataset_would():
    source = random_prompt("decomposed")
    (vanilla, shared) = (PROMPT_TYPES[kind](names, 4, 6) for kind, names in (("vanilla", ["new"]), ("shared", NAMES)))
    for target in (vanilla, shared):
        target.start_from(source)
    assert shared.shared.equal(vanilla.matrix("new"))
    assert shared.fold().keys() == set(NAMES)
    assert shared.matrix("a") is shared.matrix("b")


def test_gradients_of_a_shared_matrix_are_the_sum_of_all_datasets():
    shared, vanilla = random_prompt("shared").double(), random_prompt("vanilla").double()
    with torch.no_grad():
        for name in NAMES:
            vanilla.matrix(name).copy_(shared.shared)
    weights = torch.randn(len(NAMES), 4, 6, dtype=torch.float64)
    for prompt in (shared, vanilla):
        sum((prompt.matrix(name).sin() * w).sum() for name, w in zip(NAMES, weights, strict=True)).backward()
    expected = sum(vanilla.matrix(name).grad for name in NAMES)
    torch.testing.assert_close(shared.shared.grad, expected, rtol=1e-12, atol=1e-12)


def test_what_is_not_clear_or_not_whole_is_said():
    several = random_prompt("vanilla")
    for kind in PROMPT_TYPES:
        with pytest.raises(MuppetError, match="there are prompts for a, b, c, and a new dataset could start from any"):
            PROMPT_TYPES[kind](["new"], 4, 6).start_from(several)
    with pytest.raises(MuppetError, match=r"vectors of width 6, the model's 8 of width 6: set --prompt-length 4"):
        VanillaPrompt(NAMES, 8, 6).start_from(several)
    with pytest.raises(MuppetError, match=r"there is no prompt for 'd'; there is one for a, b, c"):
        several.matrix("d")
    state = random_prompt("decomposed").state_dict()
    of_one = {"P": state["P"], "u_a": state["u_a"]}
    for damaged in ({}, of_one, {"P": torch.ones(6)}, state | {"v_a": torch.ones(3)}, state | {"P": torch.ones(6)}):
        with pytest.raises(MuppetError, match="its prompts are not whole"):
            prompt_of(damaged)


# -- models -------------------------------------------------------------------------------------------


def build(arch: str, task: MuppetTask, backbone: Path | None = None, **options: Any) -> nn.Module:
    """The tiny model; with a backbone, one of which a part is trained."""
    args = Namespace(**options)
    if backbone is not None:
        args.backbone = str(backbone)
    arch = f"muppet_{arch}_tiny"
    ARCH_CONFIG_REGISTRY[arch](args)
    torch.manual_seed(1)
    return ARCH_MODEL_REGISTRY[arch].build_model(args, task).eval()


def write_backbone(arch: str, task: MuppetTask, path: Path) -> nn.Module:
    """A model with parameters of its own, and its checkpoint."""
    model = perturbed(build(arch, task))
    checkpoint_file.write(packed({"_name": "muppet"}, {"_name": arch}, model.state_dict()), path)
    return model


def prompted(arch: str, task: MuppetTask, backbone: Path, **options: Any) -> nn.Module:
    options = {"tune": "prompts", "prompt_length": LENGTH, "prompt_type": "decomposed"} | options
    model = build(arch, task, backbone, **options)
    with torch.no_grad():
        for parameter in [*model.prompts.parameters(), *model.heads.parameters()]:
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return model


@pytest.fixture(scope="module")
def tasks(data) -> dict[str, MuppetTask]:
    return {arch: open_task(data, suite) for arch, suite in SUITES.items()}


@pytest.fixture(scope="module")
def backbones(tasks, tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("backbones")
    for arch, task in tasks.items():
        write_backbone(arch, task, folder / f"{arch}.pt")
    return {arch: folder / f"{arch}.pt" for arch in tasks}


def samples_of(data: Path, arch: str) -> tuple[MuppetTask, dict[str, Any]]:
    """Five examples of each dataset, with the names of their prompts."""
    task = open_task(data, SUITES[arch])
    task.prompted = True
    task.load_dataset("train")
    dataset = task.dataset("train")
    starts = [0, *dataset.ends[:-1]]
    return task, {
        spec.name: dataset.collater([dataset[int(start) + i] for i in range(5)])
        for spec, start in zip(task.specs, starts, strict=True)
    }


def read_first(norm: nn.Module, matrix: Tensor) -> Any:
    """Let what follows the norm of a model's embeddings read ``matrix`` where a prompt is."""

    def prefixed(_: nn.Module, __: Any, out: Tensor) -> Tensor:
        return torch.cat([matrix.expand(len(out), -1, -1), out[:, len(matrix) :]], dim=1)

    return norm.register_forward_hook(prefixed)


@pytest.mark.parametrize("arch", SUITES)
def test_every_factor_of_a_decomposed_prompt_matters(tasks, backbones, arch):
    """A norm between the prompt and the first layer would undo the factors of whole vectors."""
    model = prompted(arch, tasks[arch], backbones[arch])
    model(some_rows(tasks[arch]), head="animals", prompt="animals")[:, 0].sum().backward()
    gradients = {part: model.prompts.get_parameter(f"{part}_animals").grad.abs() for part in ("u", "v")}
    for part, gradient in gradients.items():
        assert gradient.min() > 1e-5 * gradients["v"].max(), part


def test_prompts_begin_alike_with_the_same_seed_of_theirs(tasks, backbones, monkeypatch):
    """What is compared later (SPoT) is what they have learnt, also where runs differ in their seeds."""
    task = tasks["roberta"]

    def begins(seed: int, **options: Any) -> Tensor:
        monkeypatch.setattr(task.cfg, "seed", seed)
        options = {"tune": "prompts", "prompt_length": LENGTH} | options
        model = build("roberta", task, backbones["roberta"], **options)
        return model.prompts.fold()["animals"]

    assert not torch.equal(begins(1), begins(2))
    assert torch.equal(begins(1, prompt_seed=1), begins(2, prompt_seed=1))
    assert torch.equal(begins(1), begins(2, prompt_seed=1))


@pytest.mark.parametrize("model_type", ["bert", "roberta"])
def test_states_are_those_of_transformers_with_the_prompt_as_embeddings(tmp_path, model_type):
    """Its positions, and BERT's segments, are added to all embeddings: they are taken from the prompt before."""
    reference = {"bert": tiny_bert, "roberta": tiny_roberta}[model_type](tmp_path / "hf")
    importing.import_hf(tmp_path / "hf", tmp_path / "fairseq")
    tokenizer = Tokenizer.load(tmp_path / "fairseq")
    config = MuppetTaskConfig(max_positions=32, window_overlap=8, reuse_heads=True, seed=1)
    spec = DatasetSpec("animals", "classification", "accuracy", ("0", "1"))
    task = MuppetTask(config, tokenizer.dictionary, dictionary_sha256(tmp_path / "fairseq" / "dict.txt"), [spec])
    options = checkpoint_file.read(tmp_path / "fairseq" / "model.pt")["cfg"]["model"]
    args = Namespace(**options, tune="prompts", prompt_length=LENGTH, backbone=str(tmp_path / "fairseq" / "model.pt"))
    model = ARCH_MODEL_REGISTRY["muppet_roberta"].build_model(args, task).eval()
    texts = [text for text in spread(english_sentences(), 40) if len(text) < 60][:6]
    rows, ids = encode_both(tmp_path / "hf", tmp_path / "fairseq", texts)
    lengths = torch.tensor([len(row) for row in rows])
    assert lengths.max() <= 32
    assert len(set(lengths.tolist())) > 2
    pad = torch.nn.utils.rnn.pad_sequence
    src_tokens = pad([torch.tensor(row) for row in rows], batch_first=True, padding_value=1)
    real = torch.arange(int(lengths.max())) < lengths[:, None]
    table = reference.embeddings
    first = {"bert": 0, "roberta": 2}[model_type]  # RoBERTa counts from the number after padding's
    positions = torch.cat([torch.full((LENGTH,), 7), first + torch.arange(int(lengths.max()))])
    words = F.pad(table.word_embeddings(pad([torch.tensor(row) for row in ids], batch_first=True)), (0, 0, LENGTH, 0))
    with torch.no_grad():
        matrix = model.prompts.matrix("animals")
        # it begins as what the first layer reads of words at no position
        vectors = table.LayerNorm(table.word_embeddings.weight + table.token_type_embeddings.weight[0])
        assert ((matrix[:, None] - vectors).abs().amax(dim=2).amin(dim=1) < 1e-5).all()
        matrix.mul_(2).add_(0.1)
        read_first(table.LayerNorm, matrix)
        mask = torch.cat([torch.ones(len(rows), LENGTH), real], dim=1)
        expected = reference(
            inputs_embeds=words, attention_mask=mask, position_ids=positions.expand(len(rows), -1)
        ).last_hidden_state[:, LENGTH:]
        states = model(src_tokens, prompt="animals")
        assert states.shape == expected.shape
        torch.testing.assert_close(states[real], expected[real], atol=1e-5, rtol=0)
        scores = model(src_tokens, head="animals", prompt="animals")
        torch.testing.assert_close(scores, model.heads["animals"](expected[:, 0]), atol=1e-5, rtol=0)
        # and without it they are others
        assert (model.text_encoder(src_tokens)["encoder_out"][0][0] - expected[:, 0]).abs().max() > 1e-2


def test_barts_states_are_those_of_transformers_with_the_prompt_as_embeddings(tasks, backbones):
    """BART adds positions to all embeddings of the encoder: they are moved back."""
    task = tasks["bart"]
    model = prompted("bart", task, backbones["bart"])
    plain = build("bart", task)
    plain.load_state_dict(checkpoint_file.read(backbones["bart"])["model"])
    reference = test_bart.theirs("BartForQuestionAnswering", plain).model
    for rows in (test_bart.SINGLES, test_bart.PAIRS):
        real = rows != 1
        width = rows.shape[1]
        with torch.no_grad():
            table = reference.encoder.embed_positions.weight[2:]
            matrix = model.prompts.matrix("animals")
            # position L + t is added to token t, which is to have t's
            moved = table[:width] - table[LENGTH : LENGTH + width]
            hook = read_first(reference.encoder.layernorm_embedding, matrix)
            expected = reference(
                inputs_embeds=F.pad(moved + reference.encoder.embed_tokens(rows), (0, 0, LENGTH, 0)),
                attention_mask=torch.cat([torch.ones(len(rows), LENGTH), real], dim=1),
                decoder_input_ids=model.shifted(rows),
                decoder_attention_mask=real.long(),
            ).last_hidden_state
            hook.remove()
            torch.testing.assert_close(model(rows, prompt="animals")[real], expected[real], atol=1e-5, rtol=0)
            last = expected[torch.arange(len(rows)), real.sum(dim=1) - 1]
            scores = model(rows, head="animals", prompt="animals")
            torch.testing.assert_close(scores, model.heads["animals"](last), atol=1e-5, rtol=0)


@pytest.mark.parametrize("arch", SUITES)
def test_padding_makes_no_difference(tasks, backbones, arch):
    task = tasks[arch]
    model, rows = prompted(arch, task, backbones[arch]), some_rows(tasks[arch])
    heads = {spec.name: head for spec, head in zip(task.specs, task.heads, strict=True) if head is not None}
    with torch.no_grad():
        for name, head in heads.items():
            together = model(rows, head=head, prompt=name)
            for row, scores in zip(rows, together, strict=True):
                alone = row[row != 1][None]
                if scores.dim() == 2:
                    scores = scores[: alone.shape[1]]
                for padded in (True, False):
                    own = model(alone, head=head, prompt=name, padded=padded)[0]
                    torch.testing.assert_close(own, scores, atol=2e-6, rtol=0)
            # each dataset has a prompt of its own
            other = next(other for other in heads if other != name)
            assert (model(rows, head=head, prompt=other) - together).abs().max() > 1e-3


@pytest.mark.parametrize(("arch", "kind"), [("roberta", "decomposed"), ("bart", "decomposed"), ("bart", "shared")])
def test_every_family_trains_its_own_prompt_and_head_and_nothing_else(data, backbones, arch, kind):
    task, samples = samples_of(data, arch)
    model = prompted(arch, task, backbones[arch], prompt_type=kind, dropout=0.0, attention_dropout=0.0).train()
    r3f = MuppetR3FCriterion(task, "log", 0.1, r3f_lambda=1.0, eps=0.01, noise_type="uniform")
    for name, sample in samples.items():
        assert sample["net_input"]["prompt"] == name
        for criterion in (MuppetCriterion(task, "log", 0.1), r3f):
            model.zero_grad()
            loss, _, _ = criterion(model, sample)
            loss.backward()
            reached = {key for key, value in model.named_parameters() if value.grad is not None}
            own = {"decomposed": ("P", f"u_{name}", f"v_{name}"), "shared": ("P",)}[kind]
            assert {key for key in reached if not key.startswith("heads.")} == {f"prompts.{part}" for part in own}
            head = task.heads[sample["dataset"]]
            assert {key.split(".")[1] for key in reached if key.startswith("heads.")} == {head} - {None}
            assert all(model.get_parameter(key).grad.abs().max() > 0 for key in reached if key.startswith("prompts."))


@pytest.mark.parametrize("arch", SUITES)
def test_nothing_waits_and_the_last_layer_is_computed_where_it_is_read(data, backbones, arch):
    task, samples = samples_of(data, arch)
    model = prompted(arch, task, backbones[arch])
    for sample in samples.values():
        with Waits() as waits:
            loss, _, _ = MuppetCriterion(task, "log", 0.1)(model, sample)
            loss.backward()
        assert not waits.seen
    rows, shapes = samples["animals"]["net_input"]["src_tokens"], []
    last = (model.text_encoder if arch == "roberta" else model.decoder).layers[-1]
    last.fc1.register_forward_hook(lambda module, inputs, output: shapes.append(tuple(output.shape)))
    model(rows, head="animals", prompt="animals")
    assert shapes == [(1, len(rows), 256)]


@pytest.mark.parametrize("arch", SUITES)
def test_noise_is_of_tokens_alone(tasks, backbones, arch):
    class Recorded(EmbeddingNoise):
        def __call__(self, embeddings: Tensor, is_token: Tensor) -> Tensor:
            self.shape = embeddings.shape
            return embeddings.clone()

    model, rows = prompted(arch, tasks[arch], backbones[arch]), some_rows(tasks[arch])
    noise = Recorded(0.1, "uniform")
    with torch.no_grad():
        clean, noised = model(rows, head="animals", prompt="animals", noise=noise).chunk(2)
        assert noise.shape == (*rows.shape, 64)
        assert clean.equal(noised)
        assert clean.equal(model(rows, head="animals", prompt="animals"))


def test_texts_are_written_with_the_prompt(tasks, backbones):
    """The search of one hypothesis is the likeliest token at each step, as the model scores whole targets."""
    task = tasks["bart"]
    dictionary, model = task.dictionary, prompted("bart", task, backbones["bart"])
    generator = Generator(
        GenerationOptions(beam=1, min_len=0, max_len_b=5), dictionary, lambda t: " ".join(map(str, t))
    )
    rows = test_bart.SINGLES
    # with embeddings for a projection it would say again and again what it has read last
    model.decoder.output_projection = nn.Linear(64, len(dictionary), bias=False)
    with torch.no_grad():
        # of an untrained model, what it reads hardly matters
        for layer in model.decoder.layers:
            layer.encoder_attn.out_proj.weight.mul_(50)
        texts = {name: generator(model, rows, name) for name in ("animals", "summaries")}
        for name, written in texts.items():
            for row, text in zip(rows, written, strict=True):
                target = [dictionary.eos(), dictionary.bos()]
                while len(target) < 3 or (len(target) < 7 and target[-1] != dictionary.eos()):
                    predicted = torch.tensor([len(target) - 1])
                    previous = torch.tensor([target])
                    scores = model(row[None], prev_output_tokens=previous, predicted=predicted, prompt=name)[0]
                    scores[dictionary.pad()] = -torch.inf
                    target.append(int(scores.argmax()))
                mask = dictionary.index("<mask>")
                assert text == " ".join(
                    str(token) for token in target if token >= dictionary.nspecial and token != mask
                )
    assert texts["animals"] != texts["summaries"]


def test_dropout_of_a_prompt_differs_between_rows(tasks, backbones):
    model = prompted("roberta", tasks["roberta"], backbones["roberta"], dropout=0.5)
    encoder, vectors = model.text_encoder, model.prompt("animals")
    assert encoder._before(vectors, rows=3)[0].equal(encoder._before(vectors, rows=1)[0])
    dropped = encoder.train()._before(vectors, rows=3) == 0
    assert 0.4 < dropped.float().mean() < 0.6
    assert not dropped[0].equal(dropped[1])


@pytest.mark.parametrize("arch", SUITES)
@pytest.mark.parametrize("tune", ["prompts", "bitfit", "adapters"])
def test_exactly_what_is_tuned_is_trained_and_counted(data, backbones, arch, tune):
    task, samples = samples_of(data, arch)
    options = {"prompt_length": LENGTH, "prompt_type": "decomposed"} if tune == "prompts" else {}
    # checkpointed activations are computed again: what is frozen must not stop the gradient there
    model = build(arch, task, backbones[arch], tune=tune, adapter_dim=7, checkpoint_activations=True, **options).train()
    plain = build(arch, task)
    assert model.state_dict().keys() < nn.Module.state_dict(model).keys()
    for sample in samples.values():
        loss, _, _ = MuppetCriterion(task, "log", 0.1)(model, {**sample})
        loss.backward()
    of_plain = dict(plain.named_parameters())
    for key, parameter in model.named_parameters():
        # of vectors, the weights of layer norms alone are no biases
        is_bias = parameter.dim() == 1 and not key.endswith(("layer_norm.weight", "layernorm_embedding.weight"))
        tuned = key.startswith("heads.") or (is_bias if tune == "bitfit" else key not in of_plain)
        assert parameter.requires_grad == tuned, key
        assert (parameter.grad is not None) == tuned, key
    counts = count_parameters(model)
    heads, datasets = sum(p.numel() for p in plain.heads.parameters()), len(task.specs)
    frozen = sum(p.numel() for p in plain.parameters()) - heads
    if tune == "prompts":
        assert counts == ParameterCounts(LENGTH * 64 + (LENGTH + 64) * datasets, heads, 0, frozen)
    elif tune == "adapters":
        layers = {"roberta": 2, "bart": 4}[arch]
        assert counts == ParameterCounts(0, heads, layers * (64 * 7 + 7 + 7 * 64 + 64), frozen)
    else:
        biases = sum(p.numel() for key, p in of_plain.items() if key.endswith("bias") and "heads" not in key)
        assert counts == ParameterCounts(0, heads, biases, frozen - biases)


@pytest.mark.parametrize("arch", SUITES)
def test_adapters_begin_as_the_identity_and_then_change_states(tasks, backbones, arch):
    model, plain = build(arch, tasks[arch], backbones[arch], tune="adapters"), build(arch, tasks[arch])
    plain.load_state_dict(checkpoint_file.read(backbones[arch])["model"])
    rows = some_rows(tasks[arch])
    with torch.no_grad():
        assert model(rows).equal(plain(rows))
        for layer in model.modules():
            if getattr(layer, "adapter", None) is not None:
                layer.adapter.up.bias.add_(torch.randn(64))
        assert (model(rows) - plain(rows)).abs().max() > 0.1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"tune": "prompts"}, "--tune prompts has prompts of 0 vectors: give --prompt-length at least 1"),
        ({"prompt_length": 5}, "--prompt-length is for --tune prompts: add that, or leave it out"),
        ({"prompt_seed": 5}, "--prompt-seed is for --tune prompts: add that, or leave it out"),
        ({"tune": "bitfit", "prompt_length": 5}, "--prompt-length is for --tune prompts: add that, or leave it out"),
        ({"tune": "adapters", "adapter_dim": 0}, "--tune adapters has adapters of 0 hidden units: give --adapter-dim"),
        (
            {"tune": "bitfit", "backbone": None},
            "--tune bitfit trains a part of a model: name the checkpoint of the who",
        ),
        ({"tune": "all", "backbone": "x"}, "--backbone names what is frozen: add --tune, or start from it with --fine"),
        ({"tune": "bitfit", "backbone": "no.pt"}, "the checkpoint no.pt cannot be read"),
        (
            {"tune": "bitfit", "ddp_backend": "fully_sharded"},
            "--tune bitfit does not go with --ddp-backend fully_shard",
        ),
        ({"tune": "bitfit", "encoder_layers_to_keep": "1"}, "--tune bitfit does not go with --encoder-layers-to-keep"),
        (
            {"tune": "prompts", "prompt_length": 5, "quant_noise_pq": 0.1},
            "--tune prompts does not go with --quant-noise-pq or xFormers: leave these out",
        ),
        (
            {"tune": "bitfit", "encoder_layers": 3},
            r".*roberta.pt: the model has .*layers.2.*, which the checkpoint lac",
        ),
    ],
)
def test_options_that_do_not_go_together_are_said(tasks, backbones, options, said):
    whole = {"backbone": str(backbones["roberta"])} if options.get("tune", "all") != "all" else {}
    with pytest.raises(MuppetError, match=rf"^{said}"):
        build("roberta", tasks["roberta"], **{"quant_noise_pq": 0.0} | whole | options)


def test_a_file_that_is_no_backbone_is_said(tasks, backbones, tmp_path):
    task, path = tasks["roberta"], tmp_path / "x.pt"
    state = build("roberta", task, backbones["roberta"], tune="bitfit").state_dict()
    odd = checkpoint_file.read(backbones["roberta"])["model"] | {"encoder.sentence_encoder.version": torch.zeros(0)}
    for content, said in (
        ([1], "holds no model; name a checkpoint of a run, or model.pt of"),
        ({"model": {"x": 1}}, "holds no model; name a checkpoint of a run, or model.pt of"),
        ({"model": state}, "holds but what was tuned on a backbone, not the backbone itself"),
        ({"model": odd}, "holds no model that can be loaded"),
    ):
        checkpoint_file.write(content, path)
        with pytest.raises(MuppetError, match=rf"x\.pt {said}"):
            build("roberta", task, path, tune="bitfit")


def test_a_dataset_must_have_a_prompt(tasks, backbones):
    model, rows = prompted("roberta", tasks["roberta"], backbones["roberta"]), some_rows(tasks["roberta"])
    with pytest.raises(MuppetError, match=r"there is no prompt for 'animal' \(did you mean 'animals'\?\)"):
        model(rows, prompt="animal")
    with pytest.raises(MuppetError, match="the model has a prompt for each dataset: name one of animals, choices, "):
        model(rows)
