"""SQuAD's exact match and F1 over normalised words, the best over all gold answers (Rajpurkar et al. 2016, §6.1).

The rules are those of the official scripts, 1.1 (``evaluate-v1.1.py``) and 2.0 (``evaluate-v2.0.py``), which
differ only where normalisation leaves nothing of an answer.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalized(text: str) -> str:
    """Lower case, without ASCII punctuation and English articles, white space folded."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def _f1(prediction: str, gold: str) -> float:
    predicted_words, gold_words = prediction.split(), gold.split()
    common = (Counter(predicted_words) & Counter(gold_words)).total()
    return 2 * common / (len(predicted_words) + len(gold_words)) if common else 0.0


def exact_match_and_f1(prediction: str, golds: Sequence[str], *, unanswerable: bool = False) -> tuple[float, float]:
    """Return the best exact match and the best F1 (0 to 1) of ``prediction`` over ``golds``.

    Args:
        prediction: the answer's text; empty where the model gives none.
        golds: the gold answers' texts.
        unanswerable: whether a question may have no answer. True is the rule of SQuAD 2.0: golds of which
            normalisation leaves nothing do not count, and where none is left, both scores are 1 for a
            prediction of which it leaves nothing either, else 0. False is the rule of 1.1: golds count as they
            are, and F1 is 0 where no word is shared, even if both are empty. The script of 1.1 fails on a
            question without golds; here both scores are 0, as for any question it does not find answered.
    """
    prediction, golds = normalized(prediction), [normalized(gold) for gold in golds]
    if unanswerable:
        golds = [gold for gold in golds if gold]
        if not golds:
            return float(not prediction), float(not prediction)
    exact = max((float(prediction == gold) for gold in golds), default=0.0)
    return exact, max((_f1(prediction, gold) for gold in golds), default=0.0)
