"""ROUGE-1, -2 and -L (Lin 2004) by the package ``rouge-score``, with the setting of published numbers."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rouge_score.rouge_scorer import RougeScorer

ROUGE_NAMES = ("rouge1", "rouge2", "rougeL")


@cache
def _scorer() -> RougeScorer:
    # imported here: it brings nltk along and takes seconds, which training does not need
    from rouge_score.rouge_scorer import RougeScorer
    from rouge_score.tokenizers import DefaultTokenizer

    # Porter stems, as in the original's `ROUGE-1.5.5.pl -m`: PEGASUS's evaluation and the summarization scripts of
    # transformers stem, and scores without it are lower, hence not comparable
    # (the tokenizer is given because the scorer logs a line when it makes the same one itself)
    return RougeScorer(ROUGE_NAMES, tokenizer=DefaultTokenizer(use_stemmer=True))


def rouge(prediction: str, gold: str) -> tuple[float, float, float]:
    """Return the F-measures (0 to 1) of :data:`ROUGE_NAMES`; all are 0 where either text has no word.

    A word is a run of ASCII letters and digits. ``rougeL`` takes the whole text as one sequence; what papers report
    as ROUGE-L of summaries of several sentences (CNN/DailyMail) is another measure, ``rougeLsum``.
    """
    scores = _scorer().score(target=gold, prediction=prediction)
    return tuple(float(scores[name].fmeasure) for name in ROUGE_NAMES)
