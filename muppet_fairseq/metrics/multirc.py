"""SuperGLUE's metric of MultiRC by question; the other one, F1a, is :func:`muppet_fairseq.metrics.confusion.f1`
over all answers."""

from __future__ import annotations

from collections.abc import Sequence


def question_exact_match(questions: Sequence[str], right: Sequence[bool]) -> float:
    """Share of questions all of whose answers are judged right (EM of Wang et al. 2019).

    Args:
        questions: ``[n]``: for each answer, what identifies its question: not its text alone, since several passages
            may have the same question. A question's answers need not be neighbours.
        right: ``[n]``: whether the answer's predicted label is its gold label.

    Returns:
        0 to 1; 0 where there are no answers.
    """
    all_right: dict[str, bool] = {}
    for question, is_right in zip(questions, right, strict=True):
        all_right[question] = bool(is_right) and all_right.get(question, True)
    return sum(all_right.values()) / len(all_right) if all_right else 0.0
