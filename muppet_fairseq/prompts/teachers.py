"""Teachers of prompt distillation (MPT §3.1): prompts that were tuned for single datasets on the student's backbone.

The backbone is frozen, so that teachers and student have it in common: a teacher is its prompt and its head, and none
of them needs a model of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor, nn

from muppet_fairseq.errors import MuppetError
from muppet_fairseq.families import FAMILIES
from muppet_fairseq.models.base import Part, WithHeads
from muppet_fairseq.models.checkpoint import DICTIONARY_KEY, check_dictionary, fit_normalization
from muppet_fairseq.prompts.backbone import BACKBONE_KEY, check_backbone
from muppet_fairseq.spec import DatasetSpec
from muppet_fairseq.trained import other_version, read_prompts


def load_teachers(
    paths: Sequence[Path], specs: Sequence[DatasetSpec], heads: Sequence[str | None], student: WithHeads
) -> list[Part]:
    """Read the teacher of each dataset, on the CPU and without gradients.

    Args:
        paths: checkpoints of runs with ``--tune prompts``; what they hold of other datasets is left out.
        specs: the suite's datasets.
        heads: the name of the student's head for each of them.
        student: a model with prompts.

    Returns:
        the teachers in the order of ``specs``; their prompts may have another length than the student's.

    Raises:
        MuppetError: a dataset has no teacher or two, or a file is no such checkpoint, or of another backbone,
            dictionary, or classes.
    """
    names = [spec.name for spec in specs]
    teachers: dict[str, tuple[Path, Part]] = {}
    known: list[str] = []
    for path in paths:
        state, prompts = read_prompts(path)
        tensors = state["model"]
        try:
            check_backbone(student.get_buffer(BACKBONE_KEY), tensors[BACKBONE_KEY])
            check_dictionary({DICTIONARY_KEY: student.get_buffer(DICTIONARY_KEY)}, tensors)
            trained_on = {spec.name: spec for spec in map(DatasetSpec.from_dict, state["task_state"]["specs"])}
            matrices = {name: (trained_on[name], matrix) for name, matrix in prompts.fold().items()}
        except MuppetError as error:
            raise MuppetError(f"{path}: {error}") from None
        except (AttributeError, KeyError, TypeError):
            raise other_version(path) from None
        known += matrices
        for spec, head in zip(specs, heads, strict=True):
            if spec.name not in matrices:
                continue
            if spec.name in teachers:
                raise MuppetError(
                    f"the dataset {spec.name} has two teachers, {teachers[spec.name][0]} and {path}: leave one out of "
                    "--teachers"
                )
            theirs, matrix = matrices[spec.name]
            own = None if head is None else student.heads[head]
            teachers[spec.name] = path, Part(matrix, _head(path, tensors, theirs, spec, own))
    for name in names:
        if name not in teachers:
            raise MuppetError(
                f"the dataset {name} has no teacher (there is one for {', '.join(known) or 'none'}): name a checkpoint "
                "of a run on it with --tune prompts in --teachers"
            )
    return [teachers[name][1] for name in names]


def _head(
    path: Path, tensors: dict[str, Tensor], theirs: DatasetSpec, spec: DatasetSpec, own: nn.Module | None
) -> nn.Module | None:
    """The head that predicted ``theirs`` in a checkpoint, without dropout; ``own`` is the student's for ``spec``.

    Raises MuppetError where the two predict different things.
    """
    if (theirs.family, theirs.labels) != (spec.family, spec.labels):
        raise MuppetError(
            f"{path} was trained on another {spec.name} ({theirs.family}: {', '.join(theirs.labels) or 'no classes'}) "
            f"than the suite's ({spec.family}: {', '.join(spec.labels) or 'no classes'}): train the teacher on the "
            "same data"
        )
    if own is None:
        return None
    name, head = FAMILIES[spec.family].head(theirs, own.out_proj.in_features, 0.0)
    start = f"heads.{name}."
    expected = {f"{start}{key}": value for key, value in head.state_dict().items()}
    state = {key: value for key, value in tensors.items() if key.startswith(start)}
    fit_normalization(expected, state)
    if {key: value.shape for key, value in state.items()} != {key: value.shape for key, value in expected.items()}:
        raise MuppetError(
            f"{path} holds no head of the model's shape for {spec.name}: train the teacher with the model's --arch and "
            "this version"
        )
    head.load_state_dict({key.removeprefix(start): value for key, value in state.items()})
    return head.requires_grad_(False)
