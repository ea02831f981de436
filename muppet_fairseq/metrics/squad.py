"""SQuAD's exact match and F1: over normalised words, the best over all gold answers.

Rajpurkar et al. 2016 (§6.1) define both for an answer text; for an unanswerable question (SQuAD 2.0) both are
1 for the empty prediction and 0 for any other.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

_ARTICLES = re.compile(r"\b(a|an|the)\b", re.UNICODE)
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalized(text: str) -> str:
    """Lower case, without ASCII punctuation and English articles, white space folded."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def _exact_match(prediction: str, gold: str) -> float:
    return float(normalized(prediction) == normalized(gold))


def _f1(prediction: str, gold: str) -> float:
    predicted_words, gold_words = normalized(prediction).split(), normalized(gold).split()
    if not predicted_words or not gold_words:
        return float(predicted_words == gold_words)
    common = (Counter(predicted_words) & Counter(gold_words)).total()
    return 2 * common / (len(predicted_words) + len(gold_words))


def exact_match_and_f1(prediction: str, golds: Sequence[str]) -> tuple[float, float]:
    """Return the best exact match and the best F1 over ``golds``; no golds means unanswerable."""
    # the official 2.0 script leaves out golds of which normalisation leaves nothing
    golds = [gold for gold in golds if normalized(gold)] or [""]
    return max(_exact_match(prediction, gold) for gold in golds), max(_f1(prediction, gold) for gold in golds)
