"""Learning rates of parts of a model, as factors of ``--lr`` (``--lr-factors``)."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from fairseq.optim import FairseqOptimizer, FP16Optimizer
from torch import nn

from muppet_fairseq.errors import MuppetError, nearest

#: the parts, and the names of their parameters
PARTS = {
    "P": r"prompts\.P(_.*)?",  # one for all datasets, or each dataset's own
    "u": r"prompts\.u_.*",
    "v": r"prompts\.v_.*",
    "heads": r"heads\..*",
}
#: all other parameters, whose factor is 1
REST = ""


def parse(text: str) -> dict[str, float]:
    """Read ``P=1,u=2``: the factor of each part that is named. Raises MuppetError."""
    factors: dict[str, float] = {}
    for words in text.split(",") if text else ():
        part, _, value = (word.strip() for word in words.partition("="))
        if part not in PARTS:
            raise MuppetError(
                f"--lr-factors {text}: there is no part {part!r}{nearest(part, PARTS)}; there are {', '.join(PARTS)}"
            )
        if part in factors:
            raise MuppetError(f"--lr-factors {text}: {part!r} is there twice; leave one out")
        try:
            factors[part] = float(value)
        except ValueError:
            factors[part] = math.nan
        if not 0 <= factors[part] < math.inf:
            raise MuppetError(
                f"--lr-factors {text}: the factor of {part!r} is {value!r}; give a number from 0 on, as {part}=2"
            )
    return factors


def check(factors: Mapping[str, float], common: Any, distributed: Any) -> None:
    """Raise MuppetError where the optimizer would not have each parameter as it is.

    Args:
        common, distributed: the sections ``common`` and ``distributed_training`` of fairseq's configuration.
    """
    if not factors:
        return
    for wrong, sentence in (
        (
            distributed.ddp_backend == "fully_sharded",
            "does not go with --ddp-backend fully_sharded: choose legacy_ddp or pytorch_ddp",
        ),
        (distributed.zero_sharding != "none", "does not go with --zero-sharding: leave that out"),
        (
            common.fp16 and not (common.memory_efficient_fp16 or common.fp16_no_flatten_grads),
            "with --fp16, which makes one tensor of all parameters, needs --fp16-no-flatten-grads: add that",
        ),
    ):
        if wrong:
            raise MuppetError(f"--lr-factors {sentence}")


def freeze(factors: Mapping[str, float], model: nn.Module) -> set[str]:
    """Take the parts whose factor is 0 out of the training: they stay as they are, whatever the optimizer.

    Returns:
        the parts of which something is trained.

    Raises:
        MuppetError: the model has nothing to train of a part that is named.
    """
    trained = {part for part, parameter in _parts(model) if parameter.requires_grad}
    for part in factors:
        if part not in trained:
            raise MuppetError(
                f"--lr-factors names {part!r}, of which this model trains nothing: leave that out, or see --tune and "
                "--prompt-type"
            )
    frozen = {part for part, factor in factors.items() if factor == 0}
    for part, parameter in _parts(model):
        if part in frozen:
            parameter.requires_grad_(False)
    return trained - frozen


def split(factors: Mapping[str, float], optimizer: FairseqOptimizer, model: nn.Module) -> None:
    """Make groups of an optimizer's parameters, one for each part, and let ``set_lr`` give each its rate.

    The rest is the first group, though it may be empty: its rate is the one that fairseq logs, and schedules go on
    from. All parts have a group, named or not, so that a run can go on with other factors.
    """
    # what fairseq's optimizer of half precision changes are copies
    halves = optimizer.fp16_params if isinstance(optimizer, FP16Optimizer) else []
    copies = {id(half): full for half, full in zip(halves, optimizer.fp32_params, strict=True)} if halves else {}
    part_of = {id(copies.get(id(parameter), parameter)): part for part, parameter in _parts(model)}
    groups = []
    for part in (REST, *PARTS):
        for group in optimizer.param_groups:
            own = [parameter for parameter in group["params"] if part_of.get(id(parameter), REST) == part]
            if own or part == REST:
                groups.append(group | {"params": own, "part": part})
    optimizer.param_groups[:] = groups
    load = optimizer.load_state_dict

    def set_lr(lr: float) -> None:
        for group in optimizer.param_groups:
            group["lr"] = lr * factors.get(group["part"], 1)

    def load_state_dict(state: dict[str, Any], *arguments: Any) -> None:
        own, saved = (
            [(group.get("part"), len(group["params"])) for group in groups]
            for groups in (optimizer.param_groups, state["param_groups"])
        )
        if own != saved:
            raise MuppetError(
                "the checkpoint's run trained other parts of the model: go on with its --lr-factors, or begin the "
                "optimizer's state anew with --reset-optimizer"
            )
        load(state, *arguments)

    optimizer.set_lr, optimizer.load_state_dict = set_lr, load_state_dict


def _parts(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    for name, parameter in model.named_parameters():
        yield next((part for part, names in PARTS.items() if re.fullmatch(names, name)), REST), parameter
