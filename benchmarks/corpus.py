"""Lengths of the 46 datasets that MUPPET pre-finetunes on, for benchmarks of planning and of padding.

The sizes are the published ones (the catalog's). The lengths are drawn, not counted: every stored text has a log-normal
number of tokens, with a median and a sigma that approximate what the datasets' papers and cards publish (words or
tokens of a text), in tokens of RoBERTa's vocabulary. They are of the right size, family by family, but no measurement.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from muppet_fairseq.data.schedule import Sizes
from muppet_fairseq.families.base import Layout
from muppet_fairseq.families.mrc import MAX_QUESTION
from preprocess.catalog import CATALOG


@dataclass(frozen=True)
class Text:
    """The tokens of one text of an example: log-normal, ``sigma`` is that of the logarithm."""

    median: float
    sigma: float

    def draw(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """Sizes as they are stored, with ``</s>``, int32 ``[count]``."""
        drawn = np.exp(rng.normal(np.log(self.median), self.sigma, count))
        return 1 + np.clip(np.rint(drawn), 1, 20_000).astype(np.int32)


@dataclass(frozen=True)
class Form:
    """What an example of a dataset consists of.

    Attributes:
        texts: one or two: sentences, context and choice, question and passage, source and target.
        choices: how many an example has, each as likely (commonsense).
        questions: how many follow each other on one passage, on average (mrc).
    """

    texts: tuple[Text, ...]
    choices: tuple[int, ...] = ()
    questions: float = 1.0


def _form(*texts: tuple[float, float], choices: tuple[int, ...] = (), questions: float = 1.0) -> Form:
    return Form(tuple(Text(*text) for text in texts), choices, questions)


#: in the order of the paper's list, which is that of ``examples/suites/paper.yaml``
FORMS = {
    "cola": _form((9, 0.4)),
    "sst2": _form((9, 0.8)),
    "mrpc": _form((26, 0.3), (26, 0.3)),
    "qqp": _form((12, 0.4), (12, 0.4)),
    "mnli": _form((21, 0.6), (12, 0.4)),
    "qnli": _form((13, 0.35), (34, 0.5)),
    "rte": _form((52, 0.6), (11, 0.4)),
    "wnli": _form((20, 0.4), (10, 0.35)),
    "boolq": _form((9, 0.2), (125, 0.55)),
    "multirc": _form((320, 0.3), (18, 0.4)),
    "wic": _form((11, 0.45), (9, 0.45)),
    "wsc": _form((25, 0.5)),
    "cb": _form((65, 0.5), (8, 0.4)),
    "copa": _form((14, 0.25), (16, 0.25)),
    "ag_news": _form((48, 0.3)),
    "imdb": _form((240, 0.6)),
    "multinli": _form((21, 0.6), (12, 0.4)),
    "snli": _form((15, 0.4), (9, 0.35)),
    "hans": _form((10, 0.2), (7, 0.25)),
    "rotten_tomatoes": _form((25, 0.45)),
    "yelp_polarity": _form((125, 0.8)),
    "eraser_multi_rc": _form((320, 0.3), (18, 0.4)),
    "wiki_qa": _form((8, 0.3), (28, 0.5)),
    "trec": _form((12, 0.35)),
    "scitail": _form((19, 0.4), (13, 0.3)),
    "cnn_dailymail": _form((830, 0.45), (65, 0.35)),
    "billsum": _form((1600, 0.45), (215, 0.5)),
    "xsum": _form((400, 0.75), (26, 0.25)),
    "aeslc": _form((95, 0.8), (5, 0.5)),
    "multi_news": _form((1900, 0.75), (270, 0.3)),
    "math_qa": _form((46, 0.5), (4, 0.35), choices=(5,)),
    "openbookqa": _form((12, 0.5), (4, 0.6), choices=(4,)),
    "swag": _form((18, 0.4), (10, 0.35), choices=(4,)),
    "hellaswag": _form((45, 0.7), (25, 0.5), choices=(4,)),
    "race": _form((340, 0.35), (9, 0.55), choices=(4,)),
    "commonsense_qa": _form((15, 0.35), (2.5, 0.35), choices=(5,)),
    "cosmos_qa": _form((95, 0.25), (11, 0.4), choices=(4,)),
    "arc_easy": _form((22, 0.5), (4, 0.7), choices=(3, 4, 4, 4, 4, 4, 4, 4, 5)),
    "arc_challenge": _form((25, 0.5), (5, 0.7), choices=(3, 4, 4, 4, 4, 4, 4, 4, 5)),
    "sciq": _form((90, 0.7), (2.5, 0.5), choices=(4,)),
    "squad": _form((12, 0.3), (145, 0.4), questions=4.6),
    "nq": _form((10, 0.25), (120, 0.6)),
    "drop": _form((13, 0.35), (270, 0.35), questions=14.0),
    "record": _form((30, 0.3), (235, 0.45), questions=1.5),
    "hotpot_qa": _form((20, 0.4), (1250, 0.2)),
    "trivia_qa": _form((17, 0.4), (1500, 1.0)),
}


@dataclass(frozen=True)
class DatasetLengths:
    """The stored sizes of one dataset, ``</s>`` included, int32.

    Attributes:
        name, family: as in the catalog.
        first: ``[examples]``: ``input0``, or ``source``.
        second: ``input1`` or ``target``; None where there is one text. ``[examples]``, but of commonsense
            ``[choices of all examples]`` and of mrc ``[passages]``.
        choices: of commonsense, ``[examples]``.
        new_passage: of mrc, ``[examples]``: 1 where an example is the first on its passage, else 0.
    """

    name: str
    family: str
    first: np.ndarray
    second: np.ndarray | None = None
    choices: np.ndarray | None = None
    new_passage: np.ndarray | None = None


@dataclass(frozen=True)
class LaidOut:
    """A dataset as training sees it.

    Attributes:
        sizes: for the schedule.
        encoder: tokens in all rows of an item, without padding, int64 ``[items]``.
    """

    sizes: Sizes
    encoder: np.ndarray


def corpus(scale: float = 1.0, seed: int = 1) -> Iterator[DatasetLengths]:
    """The 46 datasets, one after the other; ``scale`` times as many examples as published (at least 1)."""
    for number, (name, form) in enumerate(FORMS.items()):
        entry = CATALOG[name]
        rng = np.random.default_rng([seed, number])
        examples = max(1, round(entry.published["train"] * scale))
        first, second, choices, new_passage = form.texts[0].draw(examples, rng), None, None, None
        of_second = examples
        if entry.family == "commonsense":
            choices = rng.choice(np.array(form.choices, dtype=np.int32), examples)
            of_second = int(choices.sum())
        elif entry.family == "mrc":
            of_second = max(1, round(examples / form.questions))
            passage_of = np.arange(examples, dtype=np.int64) * of_second // examples
            new_passage = np.diff(passage_of, prepend=-1).astype(np.int32)
        if len(form.texts) > 1:
            second = form.texts[1].draw(of_second, rng)
        yield DatasetLengths(name, entry.family, first, second, choices, new_passage)


def laid_out(dataset: DatasetLengths, max_positions: int = 512, window_overlap: int = 128) -> LaidOut:
    """What the family's dataset makes of stored sizes for training: rows, their lengths, windows."""
    layout = Layout(bos=0, pad=1, eos=2, vocabulary=3, max_positions=max_positions, window_overlap=window_overlap)
    if dataset.family == "mrc":
        return _windows(dataset, layout)
    if dataset.family == "commonsense":
        return _choices(dataset, layout)
    sides = [dataset.first] if dataset.second is None else [dataset.first, dataset.second]
    if dataset.family == "summarization":
        source, target = (np.minimum(1 + side, layout.max_positions).astype(np.int32) for side in sides)
        sizes = Sizes(dataset.name, np.maximum(source, target), np.broadcast_to(np.int32(1), len(source)), target)
        return LaidOut(sizes, source.astype(np.int64))
    lengths = _joined(sides, layout)
    return LaidOut(_one_row(dataset.name, lengths), lengths.astype(np.int64))


def _joined(parts: Sequence[np.ndarray], layout: Layout) -> np.ndarray:
    return np.minimum(sum(parts) + len(parts), layout.max_positions).astype(np.int32)


def _one_row(name: str, lengths: np.ndarray) -> Sizes:
    return Sizes(name, lengths, np.broadcast_to(np.int32(1), len(lengths)))


def _choices(dataset: DatasetLengths, layout: Layout) -> LaidOut:
    begins = np.cumsum(dataset.choices, dtype=np.int64) - dataset.choices
    rows = _joined([np.repeat(dataset.first, dataset.choices), dataset.second], layout)
    sizes = Sizes(dataset.name, np.maximum.reduceat(rows, begins), dataset.choices)
    return LaidOut(sizes, np.add.reduceat(rows.astype(np.int64), begins))


def _windows(dataset: DatasetLengths, layout: Layout) -> LaidOut:
    question = np.minimum(dataset.first - 1, min(MAX_QUESTION, (layout.max_positions - 4) // 2))
    passage = (dataset.second - 1)[np.cumsum(dataset.new_passage) - 1]
    room = layout.max_positions - 4 - question
    step = room - np.minimum(layout.window_overlap, room // 2)
    windows = 1 + -(-np.maximum(passage - room, 0) // step)
    example_of = np.repeat(np.arange(len(question), dtype=np.int32), windows)
    window = np.arange(len(example_of)) - (np.cumsum(windows) - windows)[example_of]
    width = np.minimum(passage[example_of] - window * step[example_of], room[example_of])
    lengths = (4 + question[example_of] + width).astype(np.int32)
    return LaidOut(_one_row(dataset.name, lengths), lengths.astype(np.int64))
