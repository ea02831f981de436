"""Commonsense datasets: pre-finetuning's (MUPPET §A.1, lines 32 to 41), then one that MPT evaluates on."""

from __future__ import annotations

import re

from preprocess.download import Hub, Row
from preprocess.entry import UNSTATED, BadRow, Entry
from preprocess.fields import (
    Joined,
    Labelled,
    LabelledAnswer,
    NumberedAnswer,
    Shuffled,
    ShuffledAnswer,
)

_LABELLED = {"choices": Labelled(), "answer": LabelledAnswer()}
_SCIQ = ("correct_answer", ("distractor1", "distractor2", "distractor3"))

_SPLITS = {"train": "train", "valid": "validation"}
_ALL_SPLITS = {**_SPLITS, "test": "test"}

_CLARK_2018 = "Clark et al. 2018, Think you have Solved Question Answering? Try ARC, arXiv:1803.05457"


def _math_options(row: Row) -> list[str]:
    """Five choices in one text: ``a ) 38 , b ) 27 , ...``, in some rows ``['a ) 38', 'b ) 27', ...]``.

    A comma may stand in a choice: only one before the next letter and its bracket ends it.
    """
    options = row["options"].strip()
    if options.startswith("["):
        quote = "['\"]"
        pattern = rf"\[\s*{quote}\s*" + rf"{quote}\s*,\s*{quote}\s*".join(rf"{c}\s?\)(.*?)" for c in "abcde")
        pattern += rf"{quote}\s*\]"
    else:
        pattern = r",\s*".join(rf"{c}\s?\)(.*?)" for c in "abcde")
    match = re.fullmatch(pattern, options, re.DOTALL)
    if not match:
        raise BadRow(f"its options {options[:60]!r} are not five")
    return [text.strip() for text in match.groups()]


def _math_answer(row: Row) -> int:
    return "abcde".index(row["correct"])


def _race_article(row: Row) -> str:
    return " ".join(row["article"].split())


def _race_choices(row: Row) -> list[str]:
    """As fairseq's ``preprocess_RACE.py``: a choice fills the question's blank, or follows the question.

    A passage that is too long is cut at its end; with the choices, the question is never cut off.
    """
    question = row["question"]
    filled = [question.replace("_", option) if "_" in question else f"{question} {option}" for option in row["options"]]
    return [" ".join(text.split()) for text in filled]


def _race_answer(row: Row) -> int:
    return "ABCD".index(row["answer"])


def _support_and_question(row: Row) -> str:
    """Some questions have no paragraph of support."""
    return Joined("support", "question")(row).strip()


def _before_blank(row: Row) -> str:
    if row["sentence"].count("_") != 1:
        raise BadRow("its sentence does not have one blank")
    return row["sentence"].partition("_")[0].strip()


def _options_and_rest(row: Row) -> list[str]:
    """Each option with what follows the blank: the choices go on where the context stops."""
    rest = row["sentence"].partition("_")[2]
    return [f"{row[option]}{rest}".strip() for option in ("option1", "option2")]


ENTRIES = (
    # -- pre-finetuning ---------------------------------------------------------------------------
    Entry(
        "math_qa",
        "commonsense",
        Hub("allenai/math_qa"),
        {"context": Joined("Problem"), "choices": _math_options, "answer": _math_answer},
        _ALL_SPLITS,
        metric="accuracy",
        published={"train": 29_837, "valid": 4_475, "test": 2_985},
        licence="Apache-2.0",
        citation="Amini et al. 2019, MathQA: Towards Interpretable Math Word Problem Solving, arXiv:1905.13319",
    ),
    Entry(
        "openbookqa",
        "commonsense",
        Hub("allenai/openbookqa", "main"),
        {"context": Joined("question_stem"), **_LABELLED},
        _ALL_SPLITS,
        metric="accuracy",
        published={"train": 4_957, "valid": 500, "test": 500},
        licence=UNSTATED,
        citation="Mihaylov et al. 2018, Can a Suit of Armor Conduct Electricity?, arXiv:1809.02789",
        note="Without the book: a question comes without the science fact that it was written from.",
    ),
    Entry(
        "swag",
        "commonsense",
        Hub("allenai/swag", "regular"),
        {"context": Joined("startphrase"), "choices": ["ending0", "ending1", "ending2", "ending3"], "answer": "label"},
        _SPLITS,
        metric="accuracy",
        published={"train": 73_546, "valid": 20_006},
        licence="MIT",
        citation="Zellers et al. 2018, SWAG, arXiv:1808.05326",
    ),
    Entry(
        "hellaswag",
        "commonsense",
        Hub("Rowan/hellaswag"),
        {"context": Joined("ctx"), "choices": "endings", "answer": NumberedAnswer("label")},
        _SPLITS,
        metric="accuracy",
        published={"train": 39_905, "valid": 10_042},
        licence="MIT",
        citation="Zellers et al. 2019, HellaSwag: Can a Machine Really Finish Your Sentence?, arXiv:1905.07830",
    ),
    Entry(
        "race",
        "commonsense",
        Hub("ehovy/race", "all"),
        {"context": _race_article, "choices": _race_choices, "answer": _race_answer},
        _ALL_SPLITS,
        group="article",
        metric="accuracy",
        published={"train": 87_866, "valid": 4_887, "test": 4_934},
        licence="non-commercial research only",
        citation="Lai et al. 2017, RACE: Large-scale ReAding Comprehension Dataset From Examinations, arXiv:1704.04683",
        note="Middle and high school together. The passages are from the Internet; its authors do not own them.",
    ),
    Entry(
        "commonsense_qa",
        "commonsense",
        Hub("tau/commonsense_qa"),
        {"context": Joined("question"), **_LABELLED},
        _SPLITS,
        metric="accuracy",
        published={"train": 9_741, "valid": 1_221},
        licence="MIT",
        citation="Talmor et al. 2019, CommonsenseQA, arXiv:1811.00937",
    ),
    Entry(
        "cosmos_qa",
        "commonsense",
        Hub("allenai/cosmos_qa"),
        {
            "context": Joined("context", "question"),
            "choices": ["answer0", "answer1", "answer2", "answer3"],
            "answer": "label",
        },
        _SPLITS,
        group="context",
        metric="accuracy",
        published={"train": 25_262, "valid": 2_985},
        licence="CC BY 4.0",
        citation="Huang et al. 2019, Cosmos QA, arXiv:1909.00277",
    ),
    Entry(
        "arc_easy",
        "commonsense",
        Hub("allenai/ai2_arc", "ARC-Easy"),
        {"context": Joined("question"), **_LABELLED},
        _ALL_SPLITS,
        metric="accuracy",
        published={"train": 2_251, "valid": 570, "test": 2_376},
        licence="CC BY-SA 4.0",
        citation=_CLARK_2018,
    ),
    Entry(
        "arc_challenge",
        "commonsense",
        Hub("allenai/ai2_arc", "ARC-Challenge"),
        {"context": Joined("question"), **_LABELLED},
        _ALL_SPLITS,
        metric="accuracy",
        published={"train": 1_119, "valid": 299, "test": 1_172},
        licence="CC BY-SA 4.0",
        citation=_CLARK_2018,
    ),
    Entry(
        "sciq",
        "commonsense",
        Hub("allenai/sciq"),
        {"context": _support_and_question, "choices": Shuffled(*_SCIQ), "answer": ShuffledAnswer(*_SCIQ)},
        _ALL_SPLITS,
        metric="accuracy",
        published={"train": 11_679, "valid": 1_000, "test": 1_000},
        licence="CC BY-NC 3.0",
        citation="Welbl et al. 2017, Crowdsourcing Multiple Choice Science Questions, arXiv:1707.06209",
        note="With the paragraph that supports the answer, where there is one.",
    ),
    # -- for fine-tuning --------------------------------------------------------------------------
    Entry(
        "winogrande",
        "commonsense",
        Hub("allenai/winogrande", "winogrande_xl"),
        {"context": _before_blank, "choices": _options_and_rest, "answer": NumberedAnswer("answer", first=1)},
        _SPLITS,
        metric="accuracy",
        published={"train": 40_398, "valid": 1_267},
        licence="CC BY",
        citation="Sakaguchi et al. 2019, WinoGrande, arXiv:1907.10641",
        note="The largest of its training sets.",
    ),
)
