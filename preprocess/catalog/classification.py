"""Classification datasets: of pre-finetuning (MUPPET §A.1, lines 1 to 26), then for fine-tuning only.

Labels are named in their published order. Where a dataset is published without validation split, a part of its
training split is held out as ``valid``, and its labelled test split is ``test``. The test splits of GLUE and
SuperGLUE are published without labels and left alone, but for MRPC's.
"""

from __future__ import annotations

import html
import re

from preprocess.download import Hub, Row
from preprocess.entry import UNSTATED, BadRow, Entry, HeldOut
from preprocess.fields import Joined, Required
from preprocess.originals import glue

_WANG_2018 = "Wang et al. 2018, GLUE, arXiv:1804.07461"

_ENTAILMENT = {"0": "entailment", "1": "neutral", "2": "contradiction"}
_FALSE_TRUE = {"0": "False", "1": "True"}
_SENTIMENT = {"0": "negative", "1": "positive"}

_PREMISE_HYPOTHESIS = {"inputs": ["premise", "hypothesis"], "label": "label"}
_SENTENCES = {"inputs": ["sentence1", "sentence2"], "label": "label"}
_TEXT = {"inputs": ["text"], "label": "label"}

_TRAIN_VALID = {"train": "train", "valid": "validation"}
_TRAIN_VALID_TEST = {"train": "train", "valid": "validation", "test": "test"}
_MNLI_SPLITS = {"train": "train", "valid": "validation_matched", "valid1": "validation_mismatched"}
_MNLI_SIZES = {"train": 392_702, "valid": 9_815, "valid1": 9_832}
_MNLI_LICENCE = "OANC licence; the fiction section: CC BY-SA 3.0, CC BY 3.0 and public domain"


def _multirc_question(row: Row) -> str:
    """The paragraph's and the question's number: what the candidate answers to one question share."""
    return f"{row['idx']['paragraph']}-{row['idx']['question']}"


def _word_and_first_sentence(row: Row) -> str:
    """WiC's word, which may be inflected in the sentences, and the first of them: ``word: sentence``."""
    return f"{row['word']}: {row['sentence1']}"


def _with_marked_spans(row: Row) -> str:
    """WSC's text with ``* the noun *`` and ``# the pronoun #`` marked, as T5's own preprocessing marks them.

    A span is given by its text and the number of its first word. In a few rows the words that begin there are
    others: the subject is two names with words in between. Then the one word with that number is marked.
    """
    text = row["text"]
    words = list(re.finditer(r"\S+", text))
    marks = []
    for span, mark in (("span1", "*"), ("span2", "#")):
        number, wanted = row[f"{span}_index"], row[f"{span}_text"]
        if not 0 <= number < len(words):
            raise BadRow(f"its text has no word {number}")
        start, end = words[number].span()
        found = text.find(wanted, start, end + len(wanted) - 1)
        if wanted and found >= 0:
            start, end = found, found + len(wanted)
        marks += [(start, f"{mark} "), (end, f" {mark}")]
    for place, mark in sorted(marks, reverse=True):
        text = text[:place] + mark + text[place:]
    return text


def _premise_and_question(row: Row) -> str:
    """COPA's premise and its question in words, as COPA's authors put it."""
    questions = {"cause": "What was the cause of this?", "effect": "What happened as a result?"}
    if row["question"] not in questions:
        raise BadRow(f"its question is {row['question']!r}, neither cause nor effect")
    return f"{row['premise'].strip()} {questions[row['question']]}"


def _both_choices(row: Row) -> str:
    """COPA's alternatives in one text, named as the labels are."""
    return f"choice1: {row['choice1'].strip()} choice2: {row['choice2'].strip()}"


def _plain_article(row: Row) -> str:
    """A news article without its HTML tags and character references, on one line."""
    return " ".join(html.unescape(re.sub(r"<[^>]*>", "", row["text"])).split())


def _anli(number: int, sizes: dict[str, int]) -> Entry:
    return Entry(
        f"anli_r{number}",
        "classification",
        Hub("facebook/anli", "plain_text"),
        _PREMISE_HYPOTHESIS,
        {"train": f"train_r{number}", "valid": f"dev_r{number}", "test": f"test_r{number}"},
        group="premise",
        labels=_ENTAILMENT,
        metric="accuracy",
        published=sizes,
        licence="CC BY-NC 4.0",
        citation="Nie et al. 2020, Adversarial NLI, arXiv:1910.14599",
    )


ENTRIES = (
    # -- pre-finetuning: GLUE -------------------------------------------------------------------------
    Entry(
        "cola",
        "classification",
        glue("cola"),
        {"inputs": ["sentence"], "label": "label"},
        _TRAIN_VALID,
        labels={"0": "unacceptable", "1": "acceptable"},
        metric="matthews",
        published={"train": 8_551, "valid": 1_043},
        licence=UNSTATED,
        citation="Warstadt et al. 2019, Neural Network Acceptability Judgments, arXiv:1805.12471",
    ),
    Entry(
        "sst2",
        "classification",
        glue("sst2"),
        {"inputs": ["sentence"], "label": "label"},
        _TRAIN_VALID,
        labels=_SENTIMENT,
        metric="accuracy",
        published={"train": 67_349, "valid": 872},
        licence=UNSTATED,
        citation="Socher et al. 2013, Recursive Deep Models for Semantic Compositionality, ACL D13-1170",
        note="The training split holds phrases of its sentences, too.",
    ),
    Entry(
        "mrpc",
        "classification",
        glue("mrpc"),
        _SENTENCES,
        _TRAIN_VALID_TEST,
        labels={"0": "not_equivalent", "1": "equivalent"},
        metric="f1",
        published={"train": 3_668, "valid": 408, "test": 1_725},
        licence="Microsoft Research Shared Source licence (non-commercial use only)",
        citation="Dolan and Brockett 2005, Automatically Constructing a Corpus of Sentential Paraphrases, ACL I05-5002",
    ),
    Entry(
        "qqp",
        "classification",
        glue("qqp"),
        {"inputs": ["question1", "question2"], "label": "label"},
        _TRAIN_VALID,
        labels={"0": "not_duplicate", "1": "duplicate"},
        metric="f1",
        published={"train": 363_846, "valid": 40_430},
        licence="non-commercial use, under Quora's terms of service",
        citation="Iyer et al. 2017, First Quora Dataset Release: Question Pairs; in GLUE, arXiv:1804.07461",
    ),
    Entry(
        "mnli",
        "classification",
        glue("mnli"),
        _PREMISE_HYPOTHESIS,
        _MNLI_SPLITS,
        group="premise",
        labels=_ENTAILMENT,
        metric="accuracy",
        published=_MNLI_SIZES,
        licence=_MNLI_LICENCE,
        citation="Williams et al. 2018, MultiNLI, arXiv:1704.05426",
        note="valid is the matched, valid1 the mismatched validation set.",
    ),
    Entry(
        "qnli",
        "classification",
        glue("qnli"),
        {"inputs": ["question", "sentence"], "label": "label"},
        _TRAIN_VALID,
        labels={"0": "entailment", "1": "not_entailment"},
        metric="accuracy",
        published={"train": 104_743, "valid": 5_463},
        licence="CC BY-SA 4.0",
        citation="Rajpurkar et al. 2016, SQuAD, arXiv:1606.05250; in GLUE, arXiv:1804.07461",
    ),
    Entry(
        "rte",
        "classification",
        glue("rte"),
        _SENTENCES,
        _TRAIN_VALID,
        labels={"0": "entailment", "1": "not_entailment"},
        metric="accuracy",
        published={"train": 2_490, "valid": 277},
        licence=UNSTATED,
        citation=_WANG_2018,
    ),
    Entry(
        "wnli",
        "classification",
        glue("wnli"),
        _SENTENCES,
        _TRAIN_VALID,
        labels={"0": "not_entailment", "1": "entailment"},
        metric="accuracy",
        published={"train": 635, "valid": 71},
        licence="CC BY 4.0",
        citation="Levesque et al. 2012, The Winograd Schema Challenge, KR 2012; in GLUE, arXiv:1804.07461",
        note="Hypotheses of valid occur in train with the other label: a model that learns train by heart fails.",
    ),
    # -- SuperGLUE ------------------------------------------------------------------------------------
    Entry(
        "boolq",
        "classification",
        Hub("aps/super_glue", "boolq"),
        {"inputs": ["question", "passage"], "label": "label"},
        _TRAIN_VALID,
        group="passage",
        labels=_FALSE_TRUE,
        metric="accuracy",
        published={"train": 9_427, "valid": 3_270},
        licence="CC BY-SA 3.0",
        citation="Clark et al. 2019, BoolQ, arXiv:1905.10044",
    ),
    Entry(
        "multirc",
        "classification",
        Hub("aps/super_glue", "multirc"),
        {"inputs": ["paragraph", Joined("question", "answer")], "label": "label", "question": _multirc_question},
        _TRAIN_VALID,
        group="paragraph",
        labels=_FALSE_TRUE,
        metric="multirc",
        published={"train": 27_243, "valid": 4_848},
        licence="CogComp (University of Illinois) research and academic use licence",
        citation="Khashabi et al. 2018, Looking Beyond the Surface (MultiRC), ACL N18-1023",
        note="The question stands with the answer, so that a long paragraph does not cut it off.",
    ),
    Entry(
        "wic",
        "classification",
        Hub("aps/super_glue", "wic"),
        {"inputs": [_word_and_first_sentence, "sentence2"], "label": "label"},
        _TRAIN_VALID,
        group="word",
        labels=_FALSE_TRUE,
        metric="accuracy",
        published={"train": 5_428, "valid": 638},
        licence="CC BY-NC 4.0",
        citation="Pilehvar and Camacho-Collados 2019, WiC, arXiv:1808.09121",
    ),
    Entry(
        "wsc",
        "classification",
        Hub("aps/super_glue", "wsc.fixed"),
        {"inputs": [_with_marked_spans], "label": "label"},
        _TRAIN_VALID,
        group="text",
        labels=_FALSE_TRUE,
        metric="accuracy",
        published={"train": 554, "valid": 104},
        licence="CC BY 4.0",
        citation="Levesque et al. 2012, The Winograd Schema Challenge, KR 2012; in SuperGLUE, arXiv:1905.00537",
        note="True: the pronoun between # # means the noun between * *.",
    ),
    Entry(
        "cb",
        "classification",
        Hub("aps/super_glue", "cb"),
        _PREMISE_HYPOTHESIS,
        _TRAIN_VALID,
        group="premise",
        labels={"0": "entailment", "1": "contradiction", "2": "neutral"},
        metric="macro_f1",
        published={"train": 250, "valid": 56},
        licence=UNSTATED,
        citation="de Marneffe et al. 2019, The CommitmentBank, Sinn und Bedeutung 23",
    ),
    Entry(
        "copa",
        "classification",
        Hub("aps/super_glue", "copa"),
        {"inputs": [_premise_and_question, _both_choices], "label": "label"},
        _TRAIN_VALID,
        labels={"0": "choice1", "1": "choice2"},
        metric="accuracy",
        published={"train": 400, "valid": 100},
        licence="BSD 2-Clause",
        citation="Roemmele et al. 2011, Choice of Plausible Alternatives, AAAI Spring Symposium",
        note="Classification, a head of its own, as MUPPET counts it among SuperGLUE's; both choices are one input.",
    ),
    # -- others ---------------------------------------------------------------------------------------
    Entry(
        "ag_news",
        "classification",
        Hub("fancyzhx/ag_news"),
        _TEXT,
        HeldOut(5_000, others={"test": "test"}),
        labels={"0": "World", "1": "Sports", "2": "Business", "3": "Sci/Tech"},
        metric="accuracy",
        published={"train": 120_000, "test": 7_600},
        licence="research and other non-commercial use",
        citation="Zhang et al. 2015, Character-level Convolutional Networks for Text Classification, arXiv:1509.01626",
        note="Published without validation split: 5,000 training examples are held out as valid.",
    ),
    Entry(
        "imdb",
        "classification",
        Hub("stanfordnlp/imdb", "plain_text"),
        _TEXT,
        HeldOut(2_500, others={"test": "test"}),
        labels=_SENTIMENT,
        metric="accuracy",
        published={"train": 25_000, "test": 25_000},
        licence=UNSTATED,
        citation="Maas et al. 2011, Learning Word Vectors for Sentiment Analysis, ACL P11-1015",
        note="Published without validation split: 2,500 training reviews are held out as valid.",
    ),
    Entry(
        "multinli",
        "classification",
        Hub("nyu-mll/multi_nli"),
        _PREMISE_HYPOTHESIS,
        _MNLI_SPLITS,
        group="premise",
        labels=_ENTAILMENT,
        metric="accuracy",
        published=_MNLI_SIZES,
        licence=_MNLI_LICENCE,
        citation="Williams et al. 2018, MultiNLI, arXiv:1704.05426",
        alias="mnli",
        note="valid is the matched, valid1 the mismatched validation set.",
    ),
    Entry(
        "snli",
        "classification",
        Hub("stanfordnlp/snli", "plain_text"),
        {"inputs": ["premise", "hypothesis"], "label": Required("label", unlabelled=-1)},
        _TRAIN_VALID_TEST,
        group="premise",
        labels=_ENTAILMENT,
        metric="accuracy",
        published={"train": 550_152, "valid": 10_000, "test": 10_000},
        licence="CC BY-SA 4.0",
        citation="Bowman et al. 2015, SNLI, arXiv:1508.05326",
        note="Pairs on whose label the annotators did not agree are left out: 549,367 training pairs are labelled.",
    ),
    Entry(
        "hans",
        "classification",
        Hub("jhu-cogsci/hans", "plain_text"),
        _PREMISE_HYPOTHESIS,
        _TRAIN_VALID,
        labels={"0": "entailment", "1": "non-entailment"},
        metric="accuracy",
        published={"train": 30_000, "valid": 30_000},
        licence="MIT",
        citation="McCoy et al. 2019, Right for the Wrong Reasons, arXiv:1902.01007",
        note="valid is the published evaluation set.",
    ),
    Entry(
        "rotten_tomatoes",
        "classification",
        Hub("cornell-movie-review-data/rotten_tomatoes"),
        _TEXT,
        _TRAIN_VALID_TEST,
        labels=_SENTIMENT,
        metric="accuracy",
        published={"train": 8_530, "valid": 1_066, "test": 1_066},
        licence=UNSTATED,
        citation="Pang and Lee 2005, Seeing Stars, ACL P05-1015",
        note="The splits are the hub's, not the authors'. Many of the sentences are sst2's, in any of its splits.",
    ),
    Entry(
        "yelp_polarity",
        "classification",
        Hub("fancyzhx/yelp_polarity", "plain_text"),
        _TEXT,
        HeldOut(5_000, others={"test": "test"}),
        labels=_SENTIMENT,
        metric="accuracy",
        published={"train": 560_000, "test": 38_000},
        licence=UNSTATED,
        citation="Zhang et al. 2015, Character-level Convolutional Networks for Text Classification, arXiv:1509.01626",
        note="Published without validation split: 5,000 training reviews are held out as valid, which takes all of "
        "them into memory. The reviews are Yelp's Dataset Challenge's of 2015, under Yelp's terms.",
    ),
    Entry(
        "eraser_multi_rc",
        "classification",
        Hub("CogComp/eraser_multi_rc"),
        {"inputs": ["passage", "query_and_answer"], "label": "label"},
        _TRAIN_VALID_TEST,
        group="passage",
        labels=_FALSE_TRUE,
        metric="accuracy",
        published={"train": 24_029, "valid": 3_214, "test": 4_848},
        licence="CogComp (University of Illinois) research and academic use licence",
        citation="DeYoung et al. 2020, ERASER, arXiv:1911.03429; Khashabi et al. 2018, MultiRC, ACL N18-1023",
        note="Made of multirc: train and valid are as many examples as its training split, test as its validation "
        "split. Do not train on one and evaluate on the other.",
    ),
    Entry(
        "wiki_qa",
        "classification",
        Hub("microsoft/wiki_qa"),
        {"inputs": ["question", "answer"], "label": "label"},
        _TRAIN_VALID_TEST,
        group="question",
        labels={"0": "no_answer", "1": "answer"},
        metric="accuracy",
        published={"train": 20_360, "valid": 2_733, "test": 6_165},
        licence="Microsoft Research data licence agreement (research only)",
        citation="Yang et al. 2015, WikiQA, ACL D15-1237",
        note="Questions without any right sentence are kept. Published results are mostly MAP and MRR, not accuracy.",
    ),
    Entry(
        "trec",
        "classification",
        Hub("CogComp/trec"),
        {"inputs": ["text"], "label": "coarse_label"},
        HeldOut(500, others={"test": "test"}),
        labels={"0": "ABBR", "1": "ENTY", "2": "DESC", "3": "HUM", "4": "LOC", "5": "NUM"},
        metric="accuracy",
        published={"train": 5_452, "test": 500},
        licence=UNSTATED,
        citation="Li and Roth 2002, Learning Question Classifiers, ACL C02-1150",
        note="Published without validation split: 500 training questions are held out as valid.",
    ),
    Entry(
        "scitail",
        "classification",
        Hub("allenai/scitail", "tsv_format"),
        _PREMISE_HYPOTHESIS,
        _TRAIN_VALID_TEST,
        group="hypothesis",
        labels=("entails", "neutral"),
        metric="accuracy",
        published={"train": 23_097, "valid": 1_304, "test": 2_126},
        licence=UNSTATED,
        citation="Khot et al. 2018, SciTail, AAAI 2018",
        note="The TSV format: the SNLI format has 499 training pairs more.",
    ),
    # -- for fine-tuning only -------------------------------------------------------------------------
    _anli(1, {"train": 16_946, "valid": 1_000, "test": 1_000}),
    _anli(2, {"train": 45_460, "valid": 1_000, "test": 1_000}),
    _anli(3, {"train": 100_459, "valid": 1_200, "test": 1_200}),
    Entry(
        "fever_nli",
        "classification",
        Hub("pietrolesci/nli_fever", "data", revision="1eddac63112eee1fdf1966e0bca27a5ff248c772"),
        # the repository calls the claim premise and the evidence hypothesis
        {"inputs": ["hypothesis", "premise"], "label": "label"},
        {"train": "train", "valid": "dev"},
        labels=_ENTAILMENT,
        metric="accuracy",
        published={"train": 208_346, "valid": 19_998},
        licence="CC BY-SA 3.0 and the terms of the Wikipedia articles",
        citation="Thorne et al. 2018, FEVER, arXiv:1803.05355; paired by Nie et al. 2019, arXiv:1811.07039",
        note="Evidence and claim. The evidence of valid is retrieved, not gold; test has no labels.",
    ),
    Entry(
        "hyperpartisan",
        "classification",
        Hub("SemEvalWorkshop/hyperpartisan_news_detection", "byarticle"),
        {"inputs": [_plain_article], "label": "hyperpartisan"},
        HeldOut(65),
        labels={"False": "not_hyperpartisan", "True": "hyperpartisan"},
        metric="accuracy",
        published={"train": 645},
        licence="CC BY 4.0",
        citation="Kiesel et al. 2019, SemEval-2019 Task 4: Hyperpartisan News Detection, ACL S19-2145",
        note="Only the training articles are published: 65 are held out as valid. The title is not used.",
    ),
    Entry(
        "paws",
        "classification",
        Hub("google-research-datasets/paws", "labeled_final"),
        _SENTENCES,
        _TRAIN_VALID_TEST,
        labels={"0": "not_paraphrase", "1": "paraphrase"},
        metric="accuracy",
        published={"train": 49_401, "valid": 8_000, "test": 8_000},
        licence="free use for any purpose, acknowledging Google LLC as the source",
        citation="Zhang et al. 2019, PAWS, arXiv:1904.01130",
    ),
)
