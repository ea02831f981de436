"""Beam search with fairseq's generator: its options, and the way from a source row to a text.

It differs from fairseq's in three points. Repeated n-grams are forbidden (:class:`NoRepeatedNgrams`), a text does not
depend on its batch, and tokens that are forced cost nothing (:class:`FreeWhereForced`). So transformers' ``generate``
writes the same texts (:mod:`muppet_fairseq.hf.generation_config`).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from fairseq.data import Dictionary
from fairseq.sequence_generator import SequenceGenerator
from torch import Tensor, nn

from muppet_fairseq.errors import MuppetError, nearest


@dataclass(frozen=True)
class GenerationOptions:
    """fairseq's options of the same names; lengths in tokens, ``<s>`` and ``</s>`` not counted.

    A summary has at most ``max_len_a`` * source + ``max_len_b`` tokens and never more than the model's positions;
    ``lenpen`` above 1 favours longer ones. No n-gram of ``no_repeat_ngram_size`` comes twice (0: all may).
    """

    beam: int = 5
    lenpen: float = 1.0
    no_repeat_ngram_size: int = 0
    min_len: int = 1
    max_len_a: float = 0.0
    max_len_b: int = 200

    def __post_init__(self) -> None:
        least = {"beam": 1, "no_repeat_ngram_size": 0, "min_len": 0, "max_len_a": 0, "max_len_b": 1}
        for name, value in least.items():
            if getattr(self, name) < value:
                raise MuppetError(f"the generation option {name} is {getattr(self, name)}; give at least {value}")
        if self.max_len_a == 0 and self.min_len > self.max_len_b:
            raise MuppetError(
                f"the generation option min_len ({self.min_len}) is above max_len_b ({self.max_len_b}); lower it"
            )

    def last_step(self, source: int, positions: int) -> int:
        """Return the step of the search that forces ``</s>``; step 0 forces ``<s>``, the text lies between.

        Args:
            source: width of the source rows, in tokens.
            positions: the model's.

        Raises:
            MuppetError: ``min_len`` does not fit.
        """
        # fairseq's own expression with its max_len_b: another rounds otherwise
        last = min(int(self.max_len_a * source + (self.max_len_b + 1)), positions - 1)
        if self.min_len > last - 1:
            raise MuppetError(
                f"the generation option min_len is {self.min_len}, but a text may have {last - 1} tokens here "
                f"(max_len_a, max_len_b and the model's {positions} positions); lower it"
            )
        return last

    @classmethod
    def of(cls, **values: object) -> GenerationOptions:
        """Check the names and kinds of options that a user gave. Raises MuppetError."""
        kinds = {field.name: type(field.default) for field in fields(cls)}
        for name, value in values.items():
            if name not in kinds:
                raise MuppetError(
                    f"there is no generation option {name!r}{nearest(name, kinds)}; there are {', '.join(kinds)}"
                )
            if isinstance(value, bool) or not isinstance(value, int | kinds[name]):
                kind = "a whole number" if kinds[name] is int else "a number"
                raise MuppetError(f"the generation option {name} takes {kind}, not {value!r}")
        return cls(**values)

    @classmethod
    def of_arguments(cls, args: argparse.Namespace) -> GenerationOptions:
        """Take the arguments of :func:`add_arguments`. Raises MuppetError."""
        return cls.of(**{field.name: getattr(args, field.name) for field in fields(cls)})

    @classmethod
    def from_json(cls, text: str) -> GenerationOptions:
        """Read options from a JSON object. Raises MuppetError."""
        try:
            values = json.loads(text)
        except ValueError as error:
            raise MuppetError(f"generation options {text!r} are no JSON ({error})") from None
        if not isinstance(values, dict):
            raise MuppetError(f'generation options {text!r} are no JSON object; write {{"beam": 4}}')
        return cls.of(**values)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add an argument for each of :class:`GenerationOptions`."""
    search = parser.add_argument_group("generation (family summarization), options as in fairseq's generator")
    for field in fields(GenerationOptions):
        option = f"--{field.name.replace('_', '-')}"
        search.add_argument(option, type=type(field.default), default=field.default, help="default: %(default)s")


class NoRepeatedNgrams(nn.Module):
    """Forbids tokens that would end an n-gram which a hypothesis has already.

    It stands in for fairseq's ``NGramRepeatBlock``, which in ve-fairseq 0.12.3 forbids nothing without its CUDA
    extension: it compares with the end of the buffer, which is not written yet (fairseq issue 5206).
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, tokens: Tensor, lprobs: Tensor, bsz: int, beam_size: int, step: int) -> Tensor:
        """Return ``lprobs`` ``[R, words]``, -inf where forbidden; ``tokens`` ``[R, U]`` are written up to ``step``."""
        written = tokens[:, 1 : step + 1]  # without the </s> that the decoder begins with
        if written.shape[1] < self.size:
            return lprobs
        ngrams = written.unfold(1, self.size, 1)
        begun = written[:, written.shape[1] - self.size + 1 :]
        repeated = (ngrams[:, :, :-1] == begun[:, None]).all(dim=2)
        last = ngrams[:, :, -1]
        return lprobs.scatter_reduce(1, last, lprobs.gather(1, last).masked_fill(repeated, -torch.inf), "amin")


class FreeWhereForced(nn.Module):
    """Lets a token that is forced cost nothing: ``<s>`` at step 0 and ``</s>`` at the ``last``.

    Nothing is chosen there. fairseq counts what the model thinks of these tokens: a text would pay for an end that the
    limit gave it, and divided by the length, a long one would pay less for ``<s>`` than a short one.

    It has the place of fairseq's block on n-grams, which is called when all but the forced token are forbidden, and
    calls ``ngrams`` at the other steps.
    """

    def __init__(self, last: int, ngrams: NoRepeatedNgrams | None) -> None:
        super().__init__()
        self.last, self.ngrams = last, ngrams

    def forward(self, tokens: Tensor, lprobs: Tensor, bsz: int, beam_size: int, step: int) -> Tensor:
        """Return ``lprobs`` ``[R, words]``, with 0 for a forced token."""
        if step in (0, self.last):
            return lprobs.masked_fill(lprobs > -torch.inf, 0.0)
        return lprobs if self.ngrams is None else self.ngrams(tokens, lprobs, bsz, beam_size, step)


class Generator:
    """Writes texts.

    Args:
        options: of the beam search.
        dictionary: the model's.
        decode: turns dictionary indices, special ones left out, into a text.
    """

    def __init__(self, options: GenerationOptions, dictionary: Dictionary, decode: Callable[[list[int]], str]) -> None:
        self.options, self.dictionary, self.decode = options, dictionary, decode

    def __call__(self, model: nn.Module, src_tokens: Tensor, prompt: str | None = None) -> list[str]:
        """Return the best text for each row of ``src_tokens`` ``[B, T]``; the model is left in its mode.

        Args:
            prompt: the dataset whose prompt the rows begin with, of a model that has prompts.

        Raises MuppetError where ``min_len`` does not fit into the model's positions.
        """
        # what workers share is wrapped, by fairseq even twice: the search calls the encoder and the decoder itself
        while hasattr(model, "module"):
            model = model.module
        if self.options.max_len_a == 0:
            return self._search(model, src_tokens, prompt)
        # fairseq takes the padded length for that of each source: a text would depend on its batch
        texts = [""] * len(src_tokens)
        lengths = (src_tokens != self.dictionary.pad()).sum(dim=1).tolist()
        for length in set(lengths):
            rows = [row for row, own in enumerate(lengths) if own == length]
            for row, text in zip(rows, self._search(model, src_tokens[rows, :length], prompt), strict=True):
                texts[row] = text
        return texts

    def _search(self, model: nn.Module, src_tokens: Tensor, prompt: str | None) -> list[str]:
        options, was_training = self.options, model.training
        last = options.last_step(src_tokens.shape[1], model.max_decoder_positions())
        try:
            # fairseq counts the <s> that the text begins with
            search = SequenceGenerator(
                [model],
                self.dictionary,
                beam_size=options.beam,
                len_penalty=options.lenpen,
                min_len=options.min_len + 1,
                max_len_a=options.max_len_a,
                max_len_b=options.max_len_b + 1,
            )
            size = options.no_repeat_ngram_size
            search.repeat_ngram_blocker = FreeWhereForced(last, NoRepeatedNgrams(size) if size else None)
            begin = src_tokens.new_full((len(src_tokens), 1), self.dictionary.bos())
            # all of it goes to the encoder
            rows = {"src_tokens": src_tokens}
            if prompt is not None:
                rows["prompt"] = model.prompt(prompt)
            hypotheses = search.generate([model], {"net_input": rows}, prefix_tokens=begin)
        finally:
            model.set_beam_size(1)
            model.train(was_training)
        return [self.decode(self._ordinary(best[0]["tokens"])) for best in hypotheses]

    def _ordinary(self, tokens: Tensor) -> list[int]:
        mask = self.dictionary.index("<mask>")
        return [token for token in tokens.tolist() if token >= self.dictionary.nspecial and token != mask]
