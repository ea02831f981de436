"""With our ``generation_config.json``, transformers' ``generate`` writes the tokens that our search writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from fairseq import utils
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from muppet_fairseq.errors import MuppetError
from muppet_fairseq.generation import GenerationOptions, Generator
from muppet_fairseq.hf.generation_config import generation_config
from muppet_fairseq.models.bart import MuppetBartModel
from muppet_fairseq.tasks.muppet import MuppetTask
from tests.test_bart import ALL, batch, build, row, theirs
from tests.test_generation import ROWS, opinionated
from tests.toy_suite import open_task

POSITIONS = 32
#: the first symbols of a dictionary of fairseq
BOS, PAD, EOS = range(3)


class WholeTexts(Generator):
    """Gives special tokens, too."""

    def _ordinary(self, tokens: Tensor) -> list[int]:
        return tokens.tolist()


@pytest.fixture(scope="module")
def task(data) -> MuppetTask:
    return open_task(data, ALL)


@pytest.fixture(scope="module", autouse=True)
def exact_attention():
    """Have fairseq keep float64: where two hypotheses score nearly the same, rounding would choose one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(utils, "softmax", lambda x, dim, onnx_trace=False: torch.softmax(x, dim))
        yield


def of_seed(task: MuppetTask, seed: int, **means: float) -> MuppetBartModel:
    return opinionated(build(task, seed), seed=seed, **means).double()


@pytest.fixture(scope="module")
def models(task) -> dict[str, MuppetBartModel]:
    """``usual`` writes short texts and some without end, ``brief`` short ones, ``padding`` wants to write ``<pad>``."""
    means = {"usual": {"eos": 5.0}, "brief": {"eos": 6.0}, "padding": {"eos": 5.0, "pad": 7.0}}
    return {name: of_seed(task, 0, **of_model) for name, of_model in means.items()}


def exported(
    ours: MuppetBartModel, config: dict[str, Any], folder: Path, ids: Tensor
) -> transformers.BartForConditionalGeneration:
    """Write ``ours`` in Hugging Face layout, where index ``i`` of the dictionary is ``ids[i]``, and read it again."""
    model = theirs("BartForConditionalGeneration", ours).double()
    with torch.no_grad():
        model.get_input_embeddings().weight[ids] = ours.encoder.embed_tokens.weight
    for name in ("bos_token_id", "pad_token_id", "eos_token_id", "decoder_start_token_id"):
        setattr(model.config, name, config[name])
    model.save_pretrained(folder)
    (folder / "generation_config.json").write_text(json.dumps(config))
    return transformers.BartForConditionalGeneration.from_pretrained(folder, dtype=torch.float64)


def written_by_transformers(
    ours: MuppetBartModel,
    rows: Tensor,
    config: dict[str, Any],
    folder: Path,
    ids: Tensor | None = None,
    **keywords: Any,
) -> list[list[int]]:
    """The indices that ``generate`` writes after the ``</s>`` that it begins with, without padding behind them."""
    ids = torch.arange(len(ours.encoder.dictionary)) if ids is None else ids
    model = exported(ours, config, folder, ids)
    inputs = {"input_ids": ids[rows], "attention_mask": (rows != PAD).long()}
    indices = ids.argsort()[model.generate(**inputs, **keywords)]
    assert (indices[:, 0] == EOS).all()
    texts = []
    for tokens in indices[:, 1:].tolist():
        while tokens[-1] == PAD:
            tokens.pop()
        texts.append(tokens)
    return texts


def written(ours: MuppetBartModel, rows: Tensor, **search: Any) -> list[list[int]]:
    """All tokens that our generator writes, ``<s>`` and ``</s>`` with them."""
    generator = WholeTexts(GenerationOptions.of(**search), ours.encoder.dictionary, lambda tokens: tokens)
    return generator(ours, rows)


def config_of(ids: Tensor | None = None, **search: Any) -> dict[str, Any]:
    bos, pad, eos = (BOS, PAD, EOS) if ids is None else ids[:3].tolist()
    return generation_config(GenerationOptions.of(**search), bos=bos, pad=pad, eos=eos, max_positions=POSITIONS)


def lengths(texts: list[list[int]]) -> list[int]:
    return [len(text) - 2 for text in texts]


# -- the same tokens ----------------------------------------------------------------------------------


CASES = [
    ("usual", {"beam": 1}),
    ("usual", {"beam": 1, "max_len_b": 9}),
    ("usual", {"beam": 1, "no_repeat_ngram_size": 2}),
    ("brief", {"beam": 1, "min_len": 7}),
    ("usual", {"beam": 4}),
    ("usual", {"beam": 4, "max_len_b": 7}),
    ("usual", {"beam": 4, "lenpen": 0.5}),
    ("usual", {"beam": 4, "lenpen": 2}),
    ("usual", {"beam": 4, "no_repeat_ngram_size": 3}),
    ("brief", {"beam": 5, "min_len": 0}),
    ("brief", {"beam": 5, "min_len": 4, "max_len_b": 6}),
    ("usual", {"beam": 4, "min_len": 4, "no_repeat_ngram_size": 2, "lenpen": 2.0, "max_len_b": 12}),
    ("padding", {"beam": 1}),
    ("padding", {"beam": 3}),
]


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize(("name", "search"), CASES, ids=str)
def test_the_same_tokens(models, tmp_path, name, search, use_cache):
    model, rows = models[name], batch(*ROWS)
    ours = written(model, rows, **search)
    assert written_by_transformers(model, rows, config_of(**search), tmp_path, use_cache=use_cache) == ours
    # some texts end by themselves, rows at different steps, and every option has an effect
    assert min(lengths(ours)) < min(max(lengths(ours)), search.get("max_len_b", 200))
    for option in search.keys() - {"beam"}:
        without = {key: value for key, value in search.items() if key != option}
        assert written(model, rows, **without) != ours, option


@settings(max_examples=25)
@given(data=st.data())
def test_the_same_tokens_with_any_options(task, tmp_path_factory, data):
    """Whatever the model, the sources and the order of the Hugging Face vocabulary are."""
    draw = data.draw
    # no two symbols alike: they would have the same scores
    wanted = {"eos": [3.0, 4.5, 6.0], "pad": [0.5, 6.5], "mask": [1.0, 5.0], "unk": [1.5, 5.5]}
    means = {symbol: draw(st.sampled_from(scores), label=symbol) for symbol, scores in wanted.items()}
    model = of_seed(task, draw(st.integers(0, 1000)), **means)
    rows = batch(*(row(length) for length in draw(st.lists(st.integers(0, 25), min_size=1, max_size=6))))
    most = draw(st.integers(1, 40))
    search = {
        "beam": draw(st.integers(1, 6)),
        "lenpen": draw(st.sampled_from([-0.5, 0.0, 0.5, 1.0, 2.0, 3.5])),
        "no_repeat_ngram_size": draw(st.sampled_from([0, 2, 3, 4])),
        "min_len": draw(st.integers(0, min(most, POSITIONS - 2))),
        "max_len_b": most,
    }
    ids = torch.randperm(len(task.dictionary), generator=torch.Generator().manual_seed(draw(st.integers(0, 1000))))
    config, folder = config_of(ids, **search), tmp_path_factory.mktemp("exported")
    use_cache = draw(st.booleans())
    theirs = written_by_transformers(model, rows, config, folder, ids, use_cache=use_cache)
    assert theirs == written(model, rows, **search)


#: a setting, and a case of :data:`CASES` that it matters to
MATTERS = {
    "forced_bos_token_id": ("usual", {"beam": 1}),
    "forced_eos_token_id": ("usual", {"beam": 1}),
    "suppress_tokens": ("padding", {"beam": 1}),
    "num_beams": ("usual", {"beam": 4}),
    "early_stopping": ("usual", {"beam": 4, "lenpen": 2}),
    "length_penalty": ("usual", {"beam": 4, "lenpen": 2}),
    "no_repeat_ngram_size": ("usual", {"beam": 4, "no_repeat_ngram_size": 3}),
    "min_length": ("brief", {"beam": 1, "min_len": 7}),
    "max_length": ("usual", {"beam": 4, "max_len_b": 7}),
}


@pytest.mark.parametrize("setting", MATTERS)
def test_every_setting_matters(models, tmp_path, setting):
    name, search = MATTERS[setting]
    assert (name, search) in CASES
    model, rows = models[name], batch(*ROWS)
    config = config_of(**search)
    value = config.pop(setting)
    if setting.endswith("_length"):
        config[setting] = value - 1
    assert written_by_transformers(model, rows, config, tmp_path) != written(model, rows, **search)


# -- the file -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("search", [{}, {"beam": 1, "lenpen": 2.0}, {"beam": 2, "no_repeat_ngram_size": 3}], ids=str)
def test_transformers_finds_no_fault(search):
    config = config_of(**search)
    transformers.GenerationConfig(**json.loads(json.dumps(config))).validate(strict=True)
    assert not config.keys() - vars(transformers.GenerationConfig()).keys()


def test_a_text_does_not_pass_the_positions():
    """The last token that is written, ``</s>``, is not read."""
    assert config_of(max_len_b=500)["max_length"] == POSITIONS + 1
    assert config_of(max_len_b=POSITIONS - 3)["max_length"] == POSITIONS
    assert config_of(min_len=POSITIONS - 2)["min_length"] == POSITIONS


@pytest.mark.parametrize(
    ("search", "said"),
    [
        (
            {"max_len_a": 0.5},
            "the generation option max_len_a is 0.5, but a generation_config.json knows no length that depends on the "
            "source; set it to 0 and max_len_b to the longest that a text may be",
        ),
        (
            {"no_repeat_ngram_size": 1},
            "the generation option no_repeat_ngram_size is 1, but with a generation_config.json that would forbid "
            "</s>, too, which the decoder begins with; give 0 or at least 2",
        ),
        (
            {"min_len": 31},
            "the generation option min_len is 31, but a text may have 30 tokens here (max_len_a, max_len_b and the "
            "model's 32 positions); lower it",
        ),
    ],
    ids=str,
)
def test_what_cannot_be_said_there(search, said):
    with pytest.raises(MuppetError) as caught:
        config_of(**search)
    assert str(caught.value) == said


def test_transformers_forbids_the_end_with_single_tokens(models, tmp_path):
    """Why ``no_repeat_ngram_size`` 1 is refused: no text ends before the limit."""
    model, rows = models["brief"], batch(*ROWS)
    config = config_of(beam=1, max_len_b=12)
    assert max(lengths(written_by_transformers(model, rows, config, tmp_path))) == 12
    config["no_repeat_ngram_size"] = 1
    assert lengths(written_by_transformers(model, rows, config, tmp_path)) == [12] * len(rows)
    assert min(lengths(written(model, rows, beam=1, max_len_b=12, no_repeat_ngram_size=1))) < 12
