"""Hugging Face layout to fairseq's and back: the same tensors, with training between them or not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
import torch
import transformers
from safetensors.torch import load_file

from muppet_fairseq.data.tokenizer import Tokenizer
from muppet_fairseq.errors import MuppetError
from muppet_fairseq.hf.export import export
from muppet_fairseq.hf.importing import RECORD, WEIGHTS, import_hf
from muppet_fairseq.hf.tokenizer import HuggingFaceTokenizer
from muppet_fairseq.trained import TrainedModel
from tests.test_import_hf import (
    SIZES,
    english_sentences,
    minilm,  # noqa: F401 - a fixture
    randomise,
    save_byte_level_bpe,
    save_wordpiece,
)
from tests.toy_suite import options, trained

BART_SIZES = {
    "d_model": 24,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 40,
    "decoder_ffn_dim": 48,
    "max_position_embeddings": 46,
}
CLASSES = (
    "BertModel",
    "BertForMaskedLM",
    "BertForPreTraining",
    "BertForSequenceClassification",
    "RobertaModel",
    "RobertaForMaskedLM",
    "RobertaForQuestionAnswering",
    "XLMRobertaModel",
    "XLMRobertaForMaskedLM",
    "BartModel",
    "BartForConditionalGeneration",
    "BartForSequenceClassification",
)


def save_unigram(folder: Path) -> int:
    """Train a small Unigram model as XLM-R's ``tokenizer.json`` and return its size."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.Unigram())
    tokenizer.normalizer = tokenizers.normalizers.NFKC()
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    tokenizer.decoder = tokenizers.decoders.Metaspace()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trainer = tokenizers.trainers.UnigramTrainer(
        vocab_size=300, special_tokens=special, unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(english_sentences(), trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    return tokenizer.get_vocab_size()


def saved(folder: Path, class_name: str, *, weights: str = WEIGHTS[0], **options: Any) -> transformers.PreTrainedModel:
    """A random model of ``class_name`` with a tokenizer, in ``folder`` as transformers saves one."""
    folder.mkdir(parents=True)
    torch.manual_seed(4)
    kind = getattr(transformers, class_name)
    if class_name.startswith("Bert"):
        config = transformers.BertConfig(vocab_size=save_wordpiece(folder), **SIZES | options)
    elif class_name.startswith("XLM"):
        special = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}
        size = save_unigram(folder)
        config = transformers.XLMRobertaConfig(vocab_size=size, type_vocab_size=1, **SIZES | special | options)
    elif class_name.startswith("Bart"):
        config = transformers.BartConfig(vocab_size=save_byte_level_bpe(folder, "vocab.json"), **BART_SIZES | options)
    else:
        size = save_byte_level_bpe(folder, "tokenizer.json")
        config = transformers.RobertaConfig(vocab_size=size, type_vocab_size=1, **SIZES | options)
    model = randomise(kind(config))
    model.save_pretrained(folder)
    if weights != WEIGHTS[0]:
        # with every tied copy, as they were saved before safetensors
        torch.save(model.state_dict(), folder / weights)
        (folder / WEIGHTS[0]).unlink()
    return model


def assert_same(model: transformers.PreTrainedModel, folder: Path) -> None:
    """What transformers loads from ``folder`` is ``model``, bit for bit."""
    loaded, info = type(model).from_pretrained(folder, output_loading_info=True)
    assert not any(info[fault] for fault in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    ours, theirs = loaded.state_dict(), model.state_dict()
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype, name
        assert torch.equal(ours[name], tensor), name


@pytest.mark.parametrize("class_name", CLASSES)
def test_a_model_comes_back_bit_for_bit(tmp_path: Path, class_name: str) -> None:
    # in one or the other kind of file
    model = saved(tmp_path / "hf", class_name, weights=WEIGHTS[CLASSES.index(class_name) % 2])
    import_hf(tmp_path / "hf", tmp_path / "fairseq")
    export(tmp_path / "fairseq", tmp_path / "out")
    assert_same(model, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architectures"] == [class_name]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("class_name", ["RobertaModel", "BartModel"])
def test_half_precision_comes_back_as_such(tmp_path: Path, class_name: str, dtype: torch.dtype) -> None:
    model = saved(tmp_path / "hf", class_name).to(dtype)
    model.save_pretrained(tmp_path / "hf")
    import_hf(tmp_path / "hf", tmp_path / "fairseq")
    export(tmp_path / "fairseq", tmp_path / "out")
    assert_same(model, tmp_path / "out")


def test_minilm_comes_back(minilm: tuple[Path, Path], tmp_path: Path) -> None:  # noqa: F811
    source, imported = minilm
    export(imported, tmp_path / "out")
    assert_same(transformers.BertModel.from_pretrained(source), tmp_path / "out")
    ours, theirs = (load_file(folder / WEIGHTS[0]) for folder in (tmp_path / "out", source))
    theirs.pop("embeddings.position_ids", None)
    assert {name.removeprefix("bert.") for name in ours} == theirs.keys()


def test_a_second_round_changes_nothing(tmp_path: Path) -> None:
    """What was exported can be imported, with the same tensors of fairseq's."""
    saved(tmp_path / "hf", "RobertaForMaskedLM")
    import_hf(tmp_path / "hf", tmp_path / "first")
    export(tmp_path / "first", tmp_path / "out")
    import_hf(tmp_path / "out", tmp_path / "second")
    first, second = (
        torch.load(tmp_path / name / "model.pt", weights_only=True)["model"] for name in ("first", "second")
    )
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert (tmp_path / "first" / "dict.txt").read_bytes() == (tmp_path / "second" / "dict.txt").read_bytes()


def test_bart_large_cnn_lacks_the_row_of_mask(tmp_path: Path) -> None:
    """Its embedding ends before ``<mask>``, which is the last token: it gets the mean, and the rest comes back."""
    size = save_byte_level_bpe(tmp_path, "vocab.json")
    vocabulary = json.loads((tmp_path / "vocab.json").read_text())
    rest = sorted((token for token in vocabulary if token != "<mask>"), key=vocabulary.__getitem__)
    folder = tmp_path / "hf"
    folder.mkdir()
    order = [*rest, "<mask>"]
    (folder / "vocab.json").write_text(json.dumps({token: number for number, token in enumerate(order)}))
    shutil.copyfile(tmp_path / "merges.txt", folder / "merges.txt")
    torch.manual_seed(4)
    model = randomise(transformers.BartModel(transformers.BartConfig(vocab_size=size - 1, **BART_SIZES)))
    model.save_pretrained(folder)
    import_hf(folder, tmp_path / "fairseq")
    export(tmp_path / "fairseq", tmp_path / "out")
    loaded = transformers.BartModel.from_pretrained(tmp_path / "out")
    words = loaded.shared.weight
    assert len(words) == size
    assert torch.equal(words[:-1], model.shared.weight)
    assert torch.allclose(words[-1], model.shared.weight.mean(dim=0))


def test_a_model_in_several_files(tmp_path: Path) -> None:
    """As large models are saved, and as a head is that ``export-hf`` writes."""
    model = saved(tmp_path / "hf", "RobertaForMaskedLM")
    (tmp_path / "hf" / WEIGHTS[0]).unlink()
    model.save_pretrained(tmp_path / "hf", max_shard_size="20KB")
    assert len(list((tmp_path / "hf").glob("model-*-of-*.safetensors"))) > 2
    import_hf(tmp_path / "hf", tmp_path / "fairseq")
    export(tmp_path / "fairseq", tmp_path / "out")
    assert_same(model, tmp_path / "out")


@pytest.mark.parametrize("places", [{}, None, {"a": "../model.safetensors"}, {"a": 1}, {"a": "missing.safetensors"}])
def test_a_wrong_index_is_one_sentence(tmp_path: Path, places: Any) -> None:
    saved(tmp_path / "hf", "RobertaModel")
    (tmp_path / "hf" / WEIGHTS[0]).rename(tmp_path / WEIGHTS[0])
    (tmp_path / "hf" / f"{WEIGHTS[0]}.index.json").write_text(json.dumps({"weight_map": places}))
    with pytest.raises(MuppetError, match=r"does not say which files|has no missing\.safetensors, which"):
        import_hf(tmp_path / "hf", tmp_path / "fairseq")


def test_code_that_came_with_a_model_does_not_go_on(tmp_path: Path) -> None:
    """Nor does its head: nobody could load it."""
    model = saved(tmp_path / "hf", "RobertaForSequenceClassification")
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    config["auto_map"] = {"AutoModel": "modeling.Mine"}
    (tmp_path / "hf" / "config.json").write_text(json.dumps(config))
    import_hf(tmp_path / "hf", tmp_path / "fairseq")
    export(tmp_path / "fairseq", tmp_path / "out")
    loaded, info = transformers.RobertaModel.from_pretrained(
        tmp_path / "out", output_loading_info=True, add_pooling_layer=False
    )
    assert not info["unexpected_keys"] | info["missing_keys"]
    assert torch.equal(loaded.embeddings.word_embeddings.weight, model.roberta.embeddings.word_embeddings.weight)
    assert "auto_map" not in json.loads((tmp_path / "out" / "config.json").read_text())


def test_a_final_bias_cannot_be_imported(tmp_path: Path) -> None:
    model = saved(tmp_path / "hf", "BartForConditionalGeneration")
    model.final_logits_bias.fill_(0.5)
    model.save_pretrained(tmp_path / "hf")
    with pytest.raises(MuppetError, match="final_logits_bias that is not zero"):
        import_hf(tmp_path / "hf", tmp_path / "out")


def test_an_import_has_no_heads(tmp_path: Path) -> None:
    saved(tmp_path / "hf", "RobertaModel")
    import_hf(tmp_path / "hf", tmp_path / "fairseq")
    with pytest.raises(MuppetError, match=r"has no head 'rte'; it has none"):
        export(tmp_path / "fairseq", tmp_path / "out", head="rte")


DAMAGE = {
    "another format": lambda folder: (folder / RECORD).write_text('{"format": 1}'),
    "another dictionary": lambda folder: (folder / "dict.txt").write_text(
        "\n".join(sorted((folder / "dict.txt").read_text().splitlines())) + "\n"
    ),
    "no tensors": lambda folder: torch.save({"model": {}}, folder / "model.pt"),
    "a list": lambda folder: torch.save([1], folder / "model.pt"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_import_is_one_sentence(tmp_path: Path, kind: str) -> None:
    saved(tmp_path / "hf", "RobertaModel")
    import_hf(tmp_path / "hf", tmp_path / "fairseq")
    DAMAGE[kind](tmp_path / "fairseq")
    with pytest.raises(MuppetError) as raised:
        export(tmp_path / "fairseq", tmp_path / "out")
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "out").exists()


def test_a_hub_model_is_pre_finetuned_and_goes_back(data: Path, tmp_path: Path) -> None:
    """Import, ``fairseq-train`` and export; and what was exported can be imported again."""
    tokenizer = json.loads((data / "tokenizer" / "tokenizer.json").read_text())
    source, imported, run, out = (tmp_path / name for name in ("hf", "imported", "run", "out"))
    source.mkdir()
    shutil.copyfile(data / "tokenizer" / "tokenizer.json", source / "tokenizer.json")
    torch.manual_seed(5)
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 256}
    config = transformers.BertConfig(vocab_size=len(tokenizer["model"]["vocab"]), max_position_embeddings=40, **sizes)
    model = randomise(transformers.BertForMaskedLM(config))
    model.save_pretrained(source)
    import_hf(source, imported)
    assert (imported / "dict.txt").read_bytes() == (data / "dict.txt").read_bytes()

    start = ("--finetune-from-model", str(imported / "model.pt"), "--layer-norm-eps", "1e-12")
    trained(options(data, run, *start, "--max-update", "12", "--disable-validation"))
    export(run / "checkpoint_last.pt", out)

    before = {name: tensor for name, tensor in model.state_dict().items() if name.startswith("bert.")}
    after = load_file(out / WEIGHTS[0])
    assert after.keys() == before.keys()
    for name, tensor in after.items():
        if name.endswith("token_type_embeddings.weight"):  # nothing trains it
            assert torch.equal(tensor, before[name])
        elif name.endswith("position_embeddings.weight"):  # 32 of 40 were trained on
            assert 0 < (tensor - before[name][:32]).abs().max() < 0.1
        else:
            assert 0 < (tensor - before[name]).abs().max() < 0.1, name
    tokens = transformers.AutoTokenizer.from_pretrained(out)(
        ["the dog is a cat", "who"], padding=True, return_tensors="pt"
    )
    own = TrainedModel.load(run / "checkpoint_last.pt", data / "dict.txt")
    rows = torch.from_numpy(np.argsort(HuggingFaceTokenizer.of(Tokenizer.load(data / "tokenizer")).ids))
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(out / "heads" / "animals").eval()
    with torch.inference_mode():
        logits = own.model(rows[tokens["input_ids"]], head="animals")
        assert (theirs(**tokens).logits - logits).abs().max() < 1e-5
    assert import_hf(out, tmp_path / "again")["changed"]
