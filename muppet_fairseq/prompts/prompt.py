"""Soft prompts: for each dataset a matrix ``[l, d]`` of vectors that a frozen model reads before its tokens.

Parameters are named after what the paper calls them, and after the dataset ``k``: ``P_k`` is a prompt of its own; a
decomposed one (MPT, Eq. 2) is ``P * outer(u_k, v_k)`` of a matrix ``P`` that all datasets share; a shared one is ``P``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from muppet_fairseq.errors import MuppetError, nearest

#: what the names of their tensors begin with in a model's state
PREFIX = "prompts."
#: the matrix that decomposed prompts share, and shared ones are
SHARED = "P"


class Prompt(nn.Module, ABC):
    """The prompts of several datasets.

    Args:
        names: of the datasets.
        length: vectors of a prompt, ``l``.
        dim: their width, ``d``.

    Attributes:
        has_own: whether a dataset has parameters that others do not use.
    """

    has_own: ClassVar[bool] = True

    def __init__(self, names: Sequence[str], length: int, dim: int) -> None:
        super().__init__()
        self.names, self.length, self.dim = tuple(names), length, dim
        for name, shape in self.shapes(names, length, dim).items():
            self.register_parameter(name, nn.Parameter(torch.empty(*shape)))

    @staticmethod
    @abstractmethod
    def shapes(names: Sequence[str], length: int, dim: int) -> dict[str, tuple[int, ...]]:
        """The parameters that a prompt of these arguments has."""

    def matrix(self, name: str) -> Tensor:
        """The prompt of a dataset, ``[l, d]``. Raises MuppetError where there is none."""
        if name not in self.names:
            raise MuppetError(
                f"there is no prompt for {name!r}{nearest(name, self.names)}; there is one for {', '.join(self.names)}"
            )
        return self._matrix(name)

    @abstractmethod
    def _matrix(self, name: str) -> Tensor:
        """The prompt of one of ``names``."""

    def fold(self) -> dict[str, Tensor]:
        """All that a model needs to predict with: each dataset's matrix ``[l, d]``, apart from the parameters."""
        with torch.no_grad():
            return {name: self._matrix(name).clone() for name in self.names}

    @abstractmethod
    def new_matrix(self) -> Tensor:
        """What a dataset without a prompt here begins with, ``[l, d]``. Raises MuppetError where that is not clear."""

    @abstractmethod
    def start_alike(self, matrix: Tensor) -> None:
        """Begin with ``matrix`` ``[l, d]`` as the prompt of every dataset."""

    @torch.no_grad()
    def start_from(self, source: Prompt) -> None:
        """Begin with the prompts that were trained for other datasets, or for some of these.

        Raises MuppetError where it is not clear which, or where they are of another length.
        """
        if (source.length, source.dim) != (self.length, self.dim):
            raise MuppetError(
                f"its prompts are {source.length} vectors of width {source.dim}, the model's {self.length} of width "
                f"{self.dim}: set --prompt-length {source.length}, and choose the same backbone"
            )
        self._start_from(source)

    @abstractmethod
    def _start_from(self, source: Prompt) -> None:
        """:meth:`start_from`, for prompts of the same size."""


class VanillaPrompt(Prompt):
    """Prompt tuning: one matrix for each dataset."""

    @staticmethod
    def shapes(names: Sequence[str], length: int, dim: int) -> dict[str, tuple[int, ...]]:
        return {f"P_{name}": (length, dim) for name in names}

    def _matrix(self, name: str) -> Tensor:
        return self.get_parameter(f"P_{name}")

    def new_matrix(self) -> Tensor:
        if len(self.names) > 1:
            raise MuppetError(
                f"there are prompts for {', '.join(self.names)}, and a new dataset could start from any of them: "
                "start it from a checkpoint of one dataset, or from decomposed prompts"
            )
        return self._matrix(self.names[0])

    @torch.no_grad()
    def start_alike(self, matrix: Tensor) -> None:
        for name in self.names:
            self._matrix(name).copy_(matrix)

    def _start_from(self, source: Prompt) -> None:
        """Each dataset's own matrix where the source has one, else its :meth:`new_matrix`."""
        for name in self.names:
            self._matrix(name).copy_(source.matrix(name) if name in source.names else source.new_matrix())


class DecomposedPrompt(Prompt):
    """Multitask prompt tuning: a matrix that all datasets share, and a matrix of rank 1 for each to multiply it with.

    Started from words it is the shared matrix for every dataset: ``u_k`` and ``v_k`` are ones.
    """

    @staticmethod
    def shapes(names: Sequence[str], length: int, dim: int) -> dict[str, tuple[int, ...]]:
        factors = ((f"{part}_{name}", size) for name in names for part, size in (("u", length), ("v", dim)))
        return {SHARED: (length, dim)} | {name: (size,) for name, size in factors}

    @property
    def shared(self) -> Tensor:
        """``P``, ``[l, d]``."""
        return self.get_parameter(SHARED)

    def factors(self, name: str) -> tuple[Tensor, Tensor]:
        """``u_k`` ``[l]`` and ``v_k`` ``[d]`` of a dataset."""
        return self.get_parameter(f"u_{name}"), self.get_parameter(f"v_{name}")

    def _matrix(self, name: str) -> Tensor:
        return self.shared * torch.outer(*self.factors(name))

    def mean_factors(self) -> tuple[Tensor, Tensor]:
        """The means of all datasets' ``u_k`` and ``v_k``."""
        u, v = zip(*map(self.factors, self.names), strict=True)
        return torch.stack(u).mean(dim=0), torch.stack(v).mean(dim=0)

    def new_matrix(self) -> Tensor:
        return self.shared * torch.outer(*self.mean_factors())

    def _start_from(self, source: Prompt) -> None:
        """The source's shared matrix with each dataset's own factors where it has them, else their means; of a source
        that is not decomposed, the one matrix that it has."""
        if not isinstance(source, DecomposedPrompt):
            self.start_alike(source.new_matrix())
            return
        self.shared.copy_(source.shared)
        for name in self.names:
            given = source.factors(name) if name in source.names else source.mean_factors()
            for own, value in zip(self.factors(name), given, strict=True):
                own.copy_(value)

    @torch.no_grad()
    def start_alike(self, matrix: Tensor) -> None:
        self.shared.copy_(matrix)
        for name in self.names:
            for factor in self.factors(name):
                factor.fill_(1)


class SharedPrompt(Prompt):
    """One matrix for all datasets: MPT's ablation without the decomposition."""

    has_own = False

    @staticmethod
    def shapes(names: Sequence[str], length: int, dim: int) -> dict[str, tuple[int, ...]]:
        return {SHARED: (length, dim)}

    @property
    def shared(self) -> Tensor:
        """``P``, ``[l, d]``."""
        return self.get_parameter(SHARED)

    def _matrix(self, name: str) -> Tensor:
        return self.shared

    def new_matrix(self) -> Tensor:
        return self.shared

    @torch.no_grad()
    def start_alike(self, matrix: Tensor) -> None:
        self.shared.copy_(matrix)

    def _start_from(self, source: Prompt) -> None:
        """What a new dataset would begin with: of decomposed prompts the product with the mean factors, as ``P`` alone
        is no prompt that was trained."""
        self.start_alike(source.new_matrix())


def drawn_words(length: int, vocabulary: int, first: int, seed: int) -> Tensor:
    """Random words that a prompt begins with (Lester et al. 2021), with replacement: their numbers, int64 ``[length]``.

    They depend on nothing else that is drawn, so that all prompts of a seed begin alike: what is compared later (SPoT)
    is what they have learnt.

    Args:
        vocabulary: the dictionary's length.
        first: the number of the first word; special symbols are before it.
    """
    return torch.randint(first, vocabulary, (length,), generator=torch.Generator().manual_seed(seed))


PROMPT_TYPES: dict[str, type[Prompt]] = {
    "vanilla": VanillaPrompt,
    "decomposed": DecomposedPrompt,
    "shared": SharedPrompt,
}


def prompt_of(state: Mapping[str, Tensor], sharing: Sequence[str] = ()) -> Prompt:
    """The prompts that a ``state_dict`` is of, in its tensors.

    Args:
        state: with a matrix ``P`` they are decomposed or, where there is nothing else, shared.
        sharing: the datasets of shared ones, which ``state`` does not name.

    Raises:
        MuppetError: it is no such thing.
    """
    kind = "vanilla" if SHARED not in state else "shared" if len(state) == 1 else "decomposed"
    start = {"vanilla": "P_", "decomposed": "u_"}.get(kind)
    names = [key.removeprefix(start) for key in state if key.startswith(start)] if start else list(sharing)
    first = state.get(f"P_{next(iter(names), '')}" if kind == "vanilla" else SHARED)
    try:
        if first is None or (start and not names):
            raise ValueError("there are none")
        with torch.device("meta"):
            prompt = PROMPT_TYPES[kind](names, *first.shape)
        prompt.load_state_dict(dict(state), assign=True)
    except (RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise MuppetError(f"its prompts are not whole ({reason}): copy the checkpoint again") from None
    return prompt
