"""Summarization, and other writing of a text from another: pre-finetuning's datasets (MUPPET §A.1, lines 27 to 31),
then those for fine-tuning only, some of which put data into words.

Published rows stay as they are, but for those without a source or a target, which are left out.
"""

from __future__ import annotations

import gzip
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from muppet_fairseq.errors import MuppetError
from preprocess.download import Fetch, Hub, Repository, Row, json_rows, until_damage
from preprocess.entry import UNSTATED, Entry, HeldOut, LeaveOut
from preprocess.fields import Text
from preprocess.originals import FirstFound
from preprocess.rows import RowIterator

NO_DOCUMENT = "it has no document"
RATED_BAD = "its text was rated bad"
NO_TEXT = "it has no text"

_SPLITS = {"train": "train", "valid": "validation", "test": "test"}

_COHAN_2018 = (
    "Cohan et al. 2018, A Discourse-Aware Attention Model for Abstractive Summarization of Long Documents, "
    "arXiv:1804.05685"
)


def _news(row: Row) -> str:
    """The articles on one event, ``|||||`` between them; some are empty."""
    articles = [article.strip() for article in row["document"].split("|||||")]
    if not any(articles):
        raise LeaveOut(NO_DOCUMENT)
    return " ||||| ".join(filter(None, articles))


def _lexicalizations(row: Row) -> Iterator[Row]:
    """A set of triples was put into words by several people: an example each.

    Where the original triples of DBpedia were rewritten for them, the rewritten ones are what they read.
    """
    triples = " && ".join(row["modified_triple_sets"]["mtriple_set"][0]).replace("_", " ")
    texts, ratings = row["lex"]["text"], row["lex"]["comment"]
    if not texts:
        raise LeaveOut(NO_TEXT)
    for text, rating in zip(texts, ratings, strict=True):
        yield {"triples": triples, "text": text, "rating": rating}


def _not_bad(row: Row) -> str:
    if row["rating"] == "bad":
        raise LeaveOut(RATED_BAD)
    return Text("text")(row)


@dataclass(frozen=True)
class PatentArchives(Repository):
    """BIGPATENT's own archives in its repository of the hub: one for each split, with compressed JSON lines.

    Attributes:
        repo: ``owner/name``.
        version: 2.1.2 has the texts as they are; 1.0.0 in lower case, cut into words.
    """

    repo: str
    version: str

    revision: ClassVar[str] = "main"

    def __str__(self) -> str:
        return f"{self.repo} {self.version}"

    def patterns(self, split: str) -> list[str]:
        return [f"data/{self.version}/{self._theirs(split)}.zip"]

    def rows(self, split: str, fetch: Fetch) -> RowIterator:
        (path,) = self.patterns(split)
        file = self.folder(split, fetch) / path
        if not file.is_file():
            raise MuppetError(f"there is no file {file}; mirror it there")
        name = f"{self.repo}/{path}"
        yield from until_damage(name, self._members(name, file, f"{self._theirs(split)}/"))

    @staticmethod
    def _theirs(split: str) -> str:
        return {"validation": "val"}.get(split, split)

    def _members(self, name: str, file: Path, folder: str) -> RowIterator:
        with zipfile.ZipFile(file) as archive:
            for member in sorted(archive.namelist()):
                if member.startswith(folder) and not member.endswith("/"):
                    with archive.open(member) as packed, gzip.open(packed) as lines:
                        yield from json_rows(f"{name}/{member}", lines)


ENTRIES = (
    # -- pre-finetuning ---------------------------------------------------------------------------
    Entry(
        "cnn_dailymail",
        "summarization",
        Hub("abisee/cnn_dailymail", "3.0.0"),
        {"source": Text("article"), "target": Text("highlights")},
        _SPLITS,
        metric="rouge2",
        published={"train": 287_113, "valid": 13_368, "test": 11_490},
        licence="Apache-2.0",
        citation="Hermann et al. 2015, Teaching Machines to Read and Comprehend, arXiv:1506.03340; "
        "See et al. 2017, Get To The Point, arXiv:1704.04368",
        note="Names are not replaced by numbers. A summary is the article's highlights, a line each.",
    ),
    Entry(
        "billsum",
        "summarization",
        Hub("FiscalNote/billsum"),
        {"source": Text("text"), "target": Text("summary")},
        # bills come back in a later congress under the same title
        HeldOut(0.05, others={"test": "test", "ca_test": "ca_test"}),
        group="title",
        metric="rouge2",
        published={"train": 18_949, "test": 3_269, "ca_test": 1_237},
        licence="CC0 1.0",
        citation="Kornilova and Eidelman 2019, BillSum, arXiv:1910.00523",
        note="No validation set is published. ca_test is of California's bills, the others of the US Congress's.",
    ),
    Entry(
        "xsum",
        "summarization",
        Hub("EdinburghNLP/xsum"),
        {"source": Text("document"), "target": Text("summary")},
        _SPLITS,
        metric="rouge2",
        published={"train": 204_045, "valid": 11_332, "test": 11_334},
        licence=UNSTATED,
        citation="Narayan et al. 2018, Don't Give Me the Details, Just the Summary!, arXiv:1808.08745",
    ),
    Entry(
        "aeslc",
        "summarization",
        Hub("Yale-LILY/aeslc"),
        {"source": Text("email_body"), "target": Text("subject_line")},
        _SPLITS,
        metric="rouge2",
        published={"train": 14_436, "valid": 1_960, "test": 1_906},
        licence="CC BY-NC-SA 4.0",
        citation="Zhang and Tetreault 2019, This Email Could Save Your Life, arXiv:1906.03497",
        note="An email's own subject; the subjects that annotators wrote for valid and test are not on the hub.",
    ),
    Entry(
        "multi_news",
        "summarization",
        Hub("alexfabbri/multi_news"),
        {"source": _news, "target": Text("summary")},
        _SPLITS,
        metric="rouge2",
        published={"train": 44_972, "valid": 5_622, "test": 5_622},
        licence="non-commercial research and education only",
        citation="Fabbri et al. 2019, Multi-News, arXiv:1906.01749",
        note="Articles stand one after the other; what is beyond the model's length is cut off, not shared out.",
    ),
    # -- for fine-tuning --------------------------------------------------------------------------
    Entry(
        "gigaword",
        "summarization",
        Hub("Harvard/gigaword"),
        {"source": Text("document"), "target": Text("summary")},
        _SPLITS,
        metric="rouge2",
        published={"train": 3_803_957, "valid": 189_651, "test": 1_951},
        licence=UNSTATED,
        citation="Rush et al. 2015, A Neural Attention Model for Abstractive Sentence Summarization, arXiv:1509.00685; "
        "Graff et al. 2003, English Gigaword, LDC2003T05",
        note="In lower case, digits as #, rare words as UNK (in test as unk in angle brackets). The hub's card says "
        "MIT; the text is from the Linguistic Data Consortium's English Gigaword.",
    ),
    Entry(
        "reddit_tifu",
        "summarization",
        Hub("ctr4si/reddit_tifu", "long"),
        {"source": Text("documents"), "target": Text("tldr")},
        HeldOut(0.1),
        group="documents",
        metric="rouge2",
        published={"train": 42_139},
        licence="MIT",
        citation="Kim et al. 2019, Abstractive Summarization of Reddit Posts with Multi-level Memory Networks, "
        "arXiv:1811.00783",
        note="TIFU-long. No split is published, and others hold out other posts: scores do not compare.",
    ),
    Entry(
        "arxiv",
        "summarization",
        # of over 5 GB, the hub's own conversion may be a part only
        Hub("ccdv/arxiv-summarization", "document", revision="main"),
        {"source": Text("article"), "target": Text("abstract")},
        _SPLITS,
        metric="rouge2",
        published={"train": 203_037, "valid": 6_436, "test": 6_440},
        licence=UNSTATED,
        citation=_COHAN_2018,
    ),
    Entry(
        "pubmed",
        "summarization",
        Hub("ccdv/pubmed-summarization", "document", revision="main"),
        {"source": Text("article"), "target": Text("abstract")},
        _SPLITS,
        metric="rouge2",
        published={"train": 119_924, "valid": 6_633, "test": 6_658},
        licence=UNSTATED,
        citation=_COHAN_2018,
    ),
    Entry(
        "big_patent",
        "summarization",
        # of so large a repository, the hub's own conversion is a part only; a mirror may have all of it as Parquet
        FirstFound(
            PatentArchives("NortheasternUniversity/big_patent", "2.1.2"),
            Hub("NortheasternUniversity/big_patent", "all"),
        ),
        {"source": Text("description"), "target": Text("abstract")},
        _SPLITS,
        metric="rouge2",
        published={"train": 1_207_222, "valid": 67_068, "test": 67_072},
        licence="CC BY 4.0",
        citation="Sharma et al. 2019, BIGPATENT, arXiv:1906.03741",
        note="10 GB to download. All nine classes of patents; the texts as they are, where the paper has them in lower "
        "case.",
    ),
    Entry(
        "e2e_nlg",
        "summarization",
        Hub("tuetschek/e2e_nlg"),
        {"source": Text("meaning_representation"), "target": Text("human_reference")},
        _SPLITS,
        metric="rouge2",
        published={"train": 42_061, "valid": 4_672, "test": 4_693},
        licence="CC BY-SA 4.0",
        citation="Novikova et al. 2017, The E2E Dataset: New Challenges for End-to-End Generation, arXiv:1706.09254",
        note="An example for each reference, in test too: scores are averages over a source's references, lower than "
        "published ones against all of them.",
    ),
    Entry(
        "web_nlg",
        "summarization",
        Hub("webnlg-challenge/web_nlg", "release_v2"),
        {"source": Text("triples"), "target": _not_bad},
        {"train": "train", "valid": "dev", "test": "test"},
        metric="rouge2",
        published={"train": 12_876, "valid": 1_619, "test": 1_600},
        licence="CC BY-NC-SA 4.0",
        citation="Gardent et al. 2017, Creating Training Corpora for NLG Micro-Planners, ACL P17-1017",
        parts=_lexicalizations,
        note="An example for each reference, in test too: scores are averages over a source's references, lower than "
        "published ones against all of them. The published sizes count sources.",
    ),
)
