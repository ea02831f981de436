"""Reading comprehension: pre-finetuning's datasets (MUPPET §A.1, lines 42 to 47), and two that MPT evaluates on.

Where a question has several gold spans, an answer that equals any of them is right.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from muppet_fairseq.metrics.squad import normalized
from preprocess.download import Hub, Row
from preprocess.entry import UNSTATED, BadRow, Entry, LeaveOut
from preprocess.fields import NO_SPAN, MarkedSpans, Spans
from preprocess.originals import FirstFound, Original, mrqa_lines, squad_json

YES_OR_NO = "the answer is yes or no"
NO_SHORT_ANSWER = "the answer is a whole paragraph"
NO_ANSWER = "the question has no answer"
NO_EVIDENCE = "no document has the answer"

_SPLITS = {"train": "train", "valid": "validation"}
#: for entries whose ``parts`` make the example
_MADE = {"question": "question", "passage": "passage", "answers": "answers"}


def _natural_question(row: Row) -> Iterator[Row]:
    """The long answer's words, tags left out, with a space between them; its short answers are the gold spans.

    Training questions have one annotator, validation questions five. As in the authors' own scoring, two of five
    must have found an answer; the passage is the long answer that most of those with a short answer chose.
    """
    annotations = row["annotations"]
    needed = 1 if len(annotations["long_answer"]) == 1 else 2
    longs = [(answer["start_token"], answer["end_token"]) for answer in annotations["long_answer"]]
    shorts = [list(zip(a["start_token"], a["end_token"], strict=True)) for a in annotations["short_answers"]]
    if sum(map(bool, shorts)) < needed:
        if sum(answer >= 0 for answer in annotations["yes_no_answer"]) >= needed:
            raise LeaveOut(YES_OR_NO)
        raise LeaveOut(NO_SHORT_ANSWER if sum(start >= 0 for start, _ in longs) >= needed else NO_ANSWER)
    chosen = Counter(long for long, short in zip(longs, shorts, strict=True) if short)
    (begin, end), _ = chosen.most_common(1)[0]
    passage, places = _words(row["document"]["tokens"], begin, end)
    answers: dict[tuple[int, int], None] = {}
    for first, last in (span for short in shorts for span in short):
        inside = [places[token] for token in range(first, last) if token in places]
        if inside and begin <= first and last <= end:
            answers[inside[0][0], inside[-1][1]] = None
    if not answers:
        raise BadRow("its long answer does not have its short answer")
    spans = [{"text": passage[start:stop], "start": start} for start, stop in sorted(answers)]
    yield {"question": row["question"]["text"], "passage": passage, "answers": spans}


def _words(tokens: dict[str, list[Any]], begin: int, end: int) -> tuple[str, dict[int, tuple[int, int]]]:
    """The text of the tokens that are no tags, and each one's place in it (start, end)."""
    words, places, length = [], {}, 0
    for token in range(begin, end):
        if not tokens["is_html"][token]:
            words.append(tokens["token"][token])
            places[token] = (length, length + len(words[-1]))
            length += len(words[-1]) + 1
    return " ".join(words), places


def _drop_answers(row: Row) -> list[dict[str, Any]]:
    """The answers that are spans; numbers, which are counted or computed, and dates are none."""
    answers = list(zip(row["answers_spans"]["types"], row["answers_spans"]["spans"], strict=True))
    spans = [text for kind, text in answers if kind == "span"]
    if not spans:
        raise LeaveOut(f"the answer is a {answers[0][0]}" if answers else NO_ANSWER)
    return Spans("spans")({"spans": spans, "passage": row["passage"]})


def _record_entities(row: Row) -> list[dict[str, Any]]:
    mentions = set(zip(row["entity_spans"]["start"], row["entity_spans"]["text"], strict=True))
    return [{"text": text, "start": start} for start, text in sorted(mentions)]


def _record_answers(row: Row) -> list[dict[str, Any]]:
    """All mentions of the entities that are answers."""
    mentions = [entity for entity in _record_entities(row) if entity["text"] in row["answers"]]
    if not mentions:
        raise BadRow("its answer is none of its entities")
    return mentions


def _hotpot_question(row: Row) -> Iterator[Row]:
    """The paragraphs one after the other, each after its title; gold is the answer wherever the supporting ones have
    it, or wherever the others do if those don't."""
    if row["answer"] in ("yes", "no"):
        raise LeaveOut(YES_OR_NO)
    supporting = set(row["supporting_facts"]["title"])
    word = re.compile(rf"(?<!\w){re.escape(row['answer'])}(?!\w)")
    passage, found = "", {True: [], False: []}
    for title, sentences in zip(row["context"]["title"], row["context"]["sentences"], strict=True):
        paragraph = f"{title}\n{' '.join(sentence.strip() for sentence in sentences)}\n"
        found[title in supporting] += [len(passage) + match.start() for match in word.finditer(paragraph)]
        passage += paragraph
    answers = [{"text": row["answer"], "start": start} for start in found[True] or found[False]]
    if not answers:
        raise LeaveOut(NO_SPAN)
    yield {"question": row["question"], "passage": passage.rstrip("\n"), "answers": answers}


def _trivia_question(row: Row) -> Iterator[Row]:
    """The first document that has an alias of the answer, encyclopedia pages before search results; the span is the
    first alias in it, in whatever capitals, and every alias is a gold text."""
    golds = list(dict.fromkeys([row["answer"]["value"], *row["answer"]["aliases"]]))
    golds = [gold for gold in golds if gold.strip()]
    # where two aliases begin at the same place, the longer one
    aliases = "|".join(re.escape(gold) for gold in sorted(golds, key=len, reverse=True))
    alias = re.compile(rf"(?<!\w)(?:{aliases})(?!\w)", re.IGNORECASE)
    for document in [*row["entity_pages"]["wiki_context"], *row["search_results"]["search_context"]]:
        match = alias.search(document) if golds else None
        if match:
            answers = [{"text": match[0], "start": match.start()}]
            yield {"question": row["question"], "passage": document, "answers": answers, "golds": golds}
            return
    raise LeaveOut(NO_EVIDENCE)


@dataclass(frozen=True)
class _Subset:
    """The rows of one of the datasets that the MRQA release joins."""

    name: str

    def __call__(self, row: Row) -> Iterator[Row]:
        if row["subset"] == self.name:
            yield row


def _mrqa_answers(row: Row) -> list[dict[str, Any]]:
    """Every place of every detected answer; the ends that the release gives are inclusive.

    Its answer's text may differ from the passage's in what scoring disregards, and in spaces.
    """
    passage, detected = row["context"], row["detected_answers"]
    spans: dict[tuple[int, str], None] = {}
    for answer, places in zip(detected["text"], detected["char_spans"], strict=True):
        for start, end in zip(places["start"], places["end"], strict=True):
            text = passage[start : end + 1]
            if normalized(text).replace(" ", "") != normalized(answer).replace(" ", ""):
                raise BadRow(f"its passage does not have the answer {answer[:40]!r} at character {start}")
            spans[start, text] = None
    return [{"text": text, "start": start} for start, text in spans]


def _mrqa(name: str, subset: str, train: int, valid: int, **stated: str) -> Entry:
    original = Original(f"MRQA/{{split}}/{subset}.jsonl", mrqa_lines, {"validation": "dev"})
    return Entry(
        name,
        "mrc",
        FirstFound(original, Hub("mrqa-workshop/mrqa", "plain_text")),
        {"question": "question", "passage": "context", "answers": _mrqa_answers, "golds": "answers"},
        _SPLITS,
        group="context",
        metric="squad",
        published={"train": train, "valid": valid},
        parts=_Subset(subset),
        **stated,
    )


ENTRIES = (
    Entry(
        "squad",
        "mrc",
        FirstFound(
            Hub("rajpurkar/squad", "plain_text"),
            Original("SQuAD/{split}-v1.1.json", squad_json, {"validation": "dev"}),
        ),
        {"question": "question", "passage": "context", "answers": MarkedSpans()},
        _SPLITS,
        group="context",
        metric="squad",
        published={"train": 87_599, "valid": 10_570},
        licence="CC BY-SA 4.0",
        citation="Rajpurkar et al. 2016, SQuAD: 100,000+ Questions for Machine Comprehension of Text, arXiv:1606.05250",
    ),
    Entry(
        "nq",
        "mrc",
        # 143 GB: of so large a repository, the hub's own conversion may be a part only
        Hub("google-research-datasets/natural_questions", revision="main"),
        _MADE,
        _SPLITS,
        metric="squad",
        published={"train": 307_373, "valid": 7_830},
        licence="CC BY-SA 3.0",
        citation="Kwiatkowski et al. 2019, Natural Questions: a Benchmark for Question Answering Research, TACL 7",
        parts=_natural_question,
        note="57 GB to download. Short answers within the long answer that holds them, which may be a table: easier "
        "than the published task, whose scores do not compare.",
    ),
    Entry(
        "drop",
        "mrc",
        Hub("ucinlp/drop"),
        {"question": "question", "passage": "passage", "answers": _drop_answers},
        _SPLITS,
        group="passage",
        metric="squad",
        published={"train": 77_400, "valid": 9_535},
        licence="CC BY-SA 4.0",
        citation="Dua et al. 2019, DROP: A Reading Comprehension Benchmark Requiring Discrete Reasoning Over "
        "Paragraphs, arXiv:1903.00161",
        note="Only questions with a span as answer. The hub's rows do not tell an answer of several spans from several "
        "annotators' answers: any of the spans is right. Published scores do not compare.",
    ),
    Entry(
        "record",
        "mrc",
        Hub("aps/super_glue", "record"),
        {"question": "query", "passage": "passage", "answers": _record_answers, "entities": _record_entities},
        _SPLITS,
        group="passage",
        metric="record",
        published={"train": 100_730, "valid": 10_000},
        licence="Apache-2.0 for what is from CNN and Daily Mail, the Internet Archive's terms of use for the rest",
        citation="Zhang et al. 2018, ReCoRD, arXiv:1810.12885; in SuperGLUE, arXiv:1905.00537",
    ),
    Entry(
        "hotpot_qa",
        "mrc",
        Hub("hotpotqa/hotpot_qa", "distractor"),
        _MADE,
        _SPLITS,
        metric="squad",
        published={"train": 90_447, "valid": 7_405},
        licence="CC BY-SA 4.0",
        citation="Yang et al. 2018, HotpotQA: A Dataset for Diverse, Explainable Multi-hop Question Answering, "
        "arXiv:1809.09600",
        parts=_hotpot_question,
        note="Without the questions whose answer is yes or no: published scores do not compare.",
    ),
    Entry(
        "trivia_qa",
        "mrc",
        Hub("mandarjoshi/trivia_qa", "rc"),
        {**_MADE, "golds": "golds"},
        _SPLITS,
        metric="squad",
        published={"train": 138_384, "valid": 17_944},
        licence=UNSTATED,
        citation="Joshi et al. 2017, TriviaQA: A Large Scale Distantly Supervised Challenge Dataset for Reading "
        "Comprehension, arXiv:1705.03551",
        parts=_trivia_question,
        note="Of each question's documents, only the first that has the answer. Its authors do not own the copyright "
        "of the questions and documents.",
    ),
    _mrqa(
        "newsqa",
        "NewsQA",
        74_160,
        4_212,
        licence="MIT; CNN owns the articles",
        citation="Trischler et al. 2017, NewsQA, arXiv:1611.09830; in MRQA 2019 (Fisch et al. 2019), arXiv:1910.09753",
        note="As the MRQA 2019 shared task released it.",
    ),
    _mrqa(
        "searchqa",
        "SearchQA",
        117_384,
        16_980,
        licence=UNSTATED,
        citation="Dunn et al. 2017, SearchQA, arXiv:1704.05179; in MRQA 2019 (Fisch et al. 2019), arXiv:1910.09753",
        note="As the MRQA 2019 shared task released it: search results cut to 800 tokens.",
    ),
)
