"""A released model that answers questions about texts: ``from_pretrained`` and ``torch.hub.load``.

Texts go the very way that training and ``muppet evaluate`` take: encoded by the family, laid out by its dataset,
predicted by :class:`muppet_fairseq.trained.TrainedModel`.
"""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from muppet_fairseq.data.encoded import EncodedSplit
from muppet_fairseq.data.tokenizer import Tokenizer
from muppet_fairseq.errors import MuppetError, nearest
from muppet_fairseq.families import FAMILIES
from muppet_fairseq.families.base import FamilyDataset
from muppet_fairseq.generation import GenerationOptions, Generator
from muppet_fairseq.spec import DatasetSpec
from muppet_fairseq.trained import TrainedModel

#: longer than any text: tells what a row would be uncut
_UNLIMITED = 1 << 30


class MuppetHub(nn.Module):
    """A model of ``muppet release``.

    Every method takes one question, or lists of equal length with one entry a question, and returns one answer or a
    list of answers. What it was not trained for, and texts longer than the model (unless ``truncate``), raise a
    MuppetError: one sentence.

    Attributes:
        model: the fairseq model, in evaluation mode; ``hub.to("cuda")`` moves it.
        tokenizer: the model's.
        datasets: what the model was trained on, by name.
    """

    def __init__(self, trained: TrainedModel, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.model = trained.model
        self.trained, self.tokenizer = trained, tokenizer
        self.datasets = {spec.name: spec for spec in trained.task.specs}

    @classmethod
    def load(cls, folder: str | Path, prompts: str | Path | None = None) -> MuppetHub:
        """Load a folder that ``muppet release`` made; or one of a backbone with what was trained of it (``prompts``).

        A backbone's folder may also be one of ``muppet import-hf``. Raises MuppetError.
        """
        folder = Path(folder)
        if not (folder / "model.pt").is_file():
            made = "name a folder that 'muppet release' made (unpack a .tar.gz first)"
            raise MuppetError(f"{folder} holds no model.pt; {made}")
        tokenizer = Tokenizer.load(folder)
        prompts = None if prompts is None else Path(prompts)
        return cls(TrainedModel.load(folder / "model.pt", folder / "dict.txt", prompts), tokenizer)

    def classify(
        self,
        dataset: str,
        text: str | Sequence[str],
        second: str | Sequence[str] | None = None,
        *,
        truncate: bool = False,
    ) -> Any:
        """Classify texts, or pairs of them, as the examples of ``dataset`` are.

        Returns, for each text, ``label`` (a word) and ``probabilities`` (by label).
        """
        spec = self._dataset(dataset, "classification")
        return self._sentences(spec, text, second, spec.labels[0], truncate)

    def score(
        self,
        dataset: str,
        text: str | Sequence[str],
        second: str | Sequence[str] | None = None,
        *,
        truncate: bool = False,
    ) -> Any:
        """Return, for each text or pair, the ``value`` that the regression ``dataset`` gives it."""
        return self._sentences(self._dataset(dataset, "regression"), text, second, 0.0, truncate)

    def choose(
        self,
        context: str | Sequence[str],
        choices: Sequence[str] | Sequence[Sequence[str]],
        *,
        dataset: str | None = None,
        truncate: bool = False,
    ) -> Any:
        """Choose the best continuation or answer of each context.

        Args:
            dataset: whose head (and prompt) chooses; None: the one that commonsense datasets share.

        Returns:
            ``choice`` (from 0), its ``text``, and the choices' ``probabilities``.
        """
        spec = self._family("commonsense", dataset)
        questions, one = _questions(context=context, choices=choices)
        examples = [
            {"context": _text(context, "a context"), "choices": _choices(choices), "answer": 0}
            for context, choices in questions
        ]
        predictions = self._predict(spec, examples, truncate)
        for prediction, example in zip(predictions, examples, strict=True):
            prediction["text"] = example["choices"][prediction["choice"]]
        return predictions[0] if one else predictions

    def answer(
        self,
        question: str | Sequence[str],
        passage: str | Sequence[str],
        *,
        dataset: str | None = None,
        allow_empty: bool = False,
    ) -> Any:
        """Answer questions with a span of their passages, which may be longer than the model.

        Args:
            dataset: whose head (and prompt) answers; None: the one that reading comprehension datasets share.
            allow_empty: answer with the empty text where no span is likelier.

        Returns:
            ``text``, ``start`` and ``end`` (characters of the passage) and ``score`` (sum of two logits).
        """
        spec = replace(self._family("mrc", dataset), metric="squad_v2" if allow_empty else "squad")
        questions, one = _questions(question=question, passage=passage)
        examples = [
            {"question": _text(question, "a question"), "passage": _text(passage, "a passage"), "answers": []}
            for question, passage in questions
        ]
        for number, passage in enumerate(self.tokenizer.encode([example["passage"] for example in examples])):
            if len(passage.ids) == 0:
                raise MuppetError(f"question {number + 1} of {len(examples)} cannot be used: its passage is empty")
        predictions = self._predict(spec, examples, truncate=True)
        return predictions[0] if one else predictions

    def summarize(
        self, texts: str | Sequence[str], *, dataset: str | None = None, truncate: bool = False, **options: float
    ) -> Any:
        """Write a summary of each text (BART only).

        Args:
            dataset: whose prompt is used, if the model has prompts.
            options: those of :class:`muppet_fairseq.generation.GenerationOptions`.
        """
        spec = self._family("summarization", dataset)
        generator = Generator(GenerationOptions.of(**options), self.trained.task.dictionary, self.tokenizer.decode)
        sources, one = _questions(texts=texts)
        examples = [{"source": _text(source, "a text"), "target": "-"} for (source,) in sources]
        predictions = self._predict(spec, examples, truncate, generator)
        summaries = [prediction["text"] for prediction in predictions]
        return summaries[0] if one else summaries

    def tag(self, dataset: str, words: Sequence[str] | Sequence[Sequence[str]], *, truncate: bool = False) -> Any:
        """Tag the words of sentences as those of ``dataset`` are.

        Args:
            words: of one sentence, or of several.

        Returns:
            for each sentence ``tags``, one a word (empty for a word that is cut away), and where those make a tree,
            ``tree``: its text in brackets, in which parts of speech are unknown (``XX``).
        """
        spec = self._dataset(dataset, "tagging")
        if isinstance(words, str):
            raise MuppetError(f"the words are one text, {words[:40]!r}; give a list of words, punctuation on its own")
        one = all(isinstance(word, str) for word in words) and len(words) > 0
        sentences = [list(words)] if one else [list(sentence) for sentence in words]
        # the tags are to be found: any label does
        examples = [{"words": sentence, "tags": [spec.labels[0]] * len(sentence)} for sentence in sentences]
        predictions = self._predict(spec, examples, truncate)
        return predictions[0] if one else predictions

    @torch.inference_mode()
    def extract_features(
        self,
        text: str | Sequence[str],
        second: str | Sequence[str] | None = None,
        *,
        dataset: str | None = None,
        truncate: bool = False,
    ) -> Any:
        """Return the last layer's states of each text or pair, ``[T, D]``; of BART, the decoder's.

        Args:
            dataset: whose prompt is used, if the model has prompts.
        """
        spec = DatasetSpec("features", "classification", "accuracy", ("",), 1 if second is None else 2)
        examples, one = _sentence_examples(spec, text, second, "")
        if not examples:
            return []
        rows = self._lay_out(spec, examples, truncate)
        states = []
        for index in range(len(rows)):
            sample = rows.collate([rows[index]])
            states.append(self.model(sample["net_input"]["src_tokens"].to(self.trained.device), prompt=dataset)[0])
        return states[0] if one else states

    def _dataset(self, name: str, family: str) -> DatasetSpec:
        spec = self.datasets.get(_text(name, "a dataset's name"))
        fitting = sorted(own.name for own in self.datasets.values() if own.family == family)
        if spec is None or spec.family != family:
            there = f"it has {', '.join(fitting)}" if fitting else "it has none at all"
            what = "is of another family" if spec else "is unknown to the model"
            raise MuppetError(f"{name!r} {what}{nearest(name, fitting)}: for {family} {there}")
        return spec

    def _family(self, family: str, dataset: str | None) -> DatasetSpec:
        """The dataset of a family whose head several share; None stands for all that use the family's head.

        In a model with prompts, None stands for the family's only dataset.
        """
        if dataset is not None:
            return self._dataset(dataset, family)
        if self.model.prompts is not None:
            fitting = sorted(spec.name for spec in self.datasets.values() if spec.family == family)
            if len(fitting) == 1:
                return self.datasets[fitting[0]]
            there = f"name one of {', '.join(fitting)}, as dataset=..." if fitting else f"none is of {family}"
            raise MuppetError(f"the model has a prompt for each dataset: {there}")
        return DatasetSpec(family, family, FAMILIES[family].metric_names[0])

    def _sentences(self, spec: DatasetSpec, text: Any, second: Any, label: Any, truncate: bool) -> Any:
        examples, one = _sentence_examples(spec, text, second, label)
        predictions = self._predict(spec, examples, truncate)
        return predictions[0] if one else predictions

    def _predict(
        self, spec: DatasetSpec, examples: list[dict[str, Any]], truncate: bool, generator: Generator | None = None
    ) -> list[dict[str, Any]]:
        self.trained.head_of(spec)
        for number, example in enumerate(examples):
            fault = FAMILIES[spec.family].check(example, spec.labels)
            if fault is not None:
                raise MuppetError(f"question {number + 1} of {len(examples)} cannot be used: {fault}")
        if not examples:
            return []
        return self.trained.predict(spec, self._lay_out(spec, examples, truncate), generator=generator)

    def _lay_out(self, spec: DatasetSpec, examples: list[dict[str, Any]], truncate: bool) -> FamilyDataset:
        split = EncodedSplit(spec, examples, self.tokenizer)
        family, layout = FAMILIES[spec.family], self.trained.task.layout
        if not truncate:
            lengths = family.dataset(split, replace(layout, max_positions=_UNLIMITED), training=False).lengths
            longest = int(lengths.argmax())
            if lengths[longest] > layout.max_positions:
                raise MuppetError(
                    f"text {longest + 1} of {len(examples)} has {lengths[longest]} tokens, the model reads "
                    f"{layout.max_positions}: shorten it, or cut it with truncate=True"
                )
        return family.dataset(split, layout, training=False)


def _sentence_examples(spec: DatasetSpec, text: Any, second: Any, label: Any) -> tuple[list[dict[str, Any]], bool]:
    given = 1 if second is None else 2
    if spec.num_inputs != given:
        wanted = "a second text, too" if spec.num_inputs == 2 else "one text alone"
        raise MuppetError(f"{spec.name} has {spec.num_inputs} texts an example, {given} given: it takes {wanted}")
    questions, one = _questions(text=text) if second is None else _questions(text=text, second=second)
    return [{"inputs": [_text(part, "a text") for part in parts], "label": label} for parts in questions], one


def _questions(**parts: Any) -> tuple[list[tuple[Any, ...]], bool]:
    """The parts of each question, and whether it is one alone: then the first part is a text, not a list of them."""
    one = isinstance(next(iter(parts.values())), str)
    lists = {name: [part] if one else _list(part, f"{name!r}", "a text, or lists") for name, part in parts.items()}
    if len({len(part) for part in lists.values()}) > 1:
        counts = ", ".join(f"{len(part)} of {name!r}" for name, part in lists.items())
        raise MuppetError(f"the lists differ in length ({counts}); give one of each a question")
    return list(zip(*lists.values(), strict=True)), one


def _choices(given: Any) -> list[str]:
    return [_text(choice, "a choice") for choice in _list(given, "what a question may choose from", "a list of texts")]


def _list(given: Any, what: str, wanted: str) -> list[Any]:
    # a text would pass for the list of its letters
    if isinstance(given, str | bytes | Mapping) or not isinstance(given, Iterable):
        raise MuppetError(f"{what} is {reprlib.repr(given)}; give {wanted}")
    return list(given)


def _text(given: Any, what: str) -> str:
    if not isinstance(given, str):
        raise MuppetError(f"{what} is {reprlib.repr(given)}, which is no text; give a str")
    try:
        given.encode()
    except UnicodeEncodeError:
        raise MuppetError(f"{what} is {reprlib.repr(given)}, which holds half a character; give all of it") from None
    return given
