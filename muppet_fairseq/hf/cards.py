"""Model cards of exports: what a model is, how it is loaded, of which data it was made and how good it is."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from muppet_fairseq.card import datasets_section, training_section
from muppet_fairseq.errors import MuppetError
from muppet_fairseq.files import read_up_to
from muppet_fairseq.tasks.muppet import MuppetTask

if TYPE_CHECKING:
    from muppet_fairseq.hf.export import Exported

#: bytes; an evaluation with the scores of a million examples has some 20 MB
_LARGEST = 1 << 28

CITATION = """```bibtex
@inproceedings{aghajanyan-etal-2021-muppet,
  title = "Muppet: Massive Multi-task Representations with Pre-Finetuning",
  author = "Aghajanyan, Armen and Gupta, Anchit and Shrivastava, Akshat and Chen, Xilun and Zettlemoyer, Luke and
    Gupta, Sonal",
  booktitle = "Proceedings of the 2021 Conference on Empirical Methods in Natural Language Processing",
  year = "2021"
}
```"""

#: family -> what one has to know to use such a head
USAGE = {
    "classification": "A text or a pair of texts goes in as the tokenizer lays it out; the class is the highest logit.",
    "regression": "A text or a pair of texts goes in as the tokenizer lays it out; the one logit is the number.",
    "commonsense": "Each choice is a row `(context, choice)`; rows go in as `[questions, choices, tokens]`.",
    "mrc": "Rows are `(question, passage)`. An answer begins and ends at tokens of the passage; where the first token "
    "scores higher than all of them, a window has no answer. Longer passages are read in windows that overlap, whose "
    "logits are compared as they are (pipelines compare probabilities within a window instead).",
    "tagging": "A word has the class of its first token; words are joined by one blank.",
}


def _rows(bos: str, eos: str) -> str:
    """How texts are laid out."""
    return (
        f"Rows are those of training: `{bos} text {eos}` and `{bos} text {eos} {eos} second text {eos}`, without "
        "segments. The tokenizer here lays them out so."
    )


@dataclass(frozen=True)
class Imported:
    """The card of an import that nobody has trained.

    Attributes:
        record: content of the import's ``source.json``.
    """

    name: str
    record: Mapping[str, Any]

    def of_model(self, exported: Exported) -> str:
        lines = [*_front(), f"# {self.name}", ""]
        lines.append(
            f"A `{exported.config['architectures'][0]}`, imported into muppet_fairseq and exported again, unchanged. "
            "It was made of"
        )
        files = self.record.get("files")
        lines += [
            "",
            *(f"- `{file}`, SHA-256 {sha256}" for file, sha256 in dict(files or {}).items()),
            "",
            _rows(*exported.tokens),
        ]
        return "\n".join(lines) + "\n"


@dataclass(frozen=True)
class Trained:
    """Cards of a trained model and its heads.

    Attributes:
        options: the model's.
        data: the data-bin, which knows licences and citations, or None.
        scores: rows of :func:`read_evaluation`.
    """

    name: str
    task: MuppetTask
    options: Mapping[str, Any]
    data: Path | None
    scores: Sequence[tuple[str, str, int, dict[str, float]]]

    def of_model(self, exported: Exported) -> str:
        parameters = sum(tensor.numel() for tensor in exported.tensors.values())
        class_name = exported.config["architectures"][0]
        lines = [*_front(), f"# {self.name}", ""]
        lines.append(
            f"A `{class_name}` of {parameters:,} parameters, trained with muppet_fairseq (MUPPET: massive multi-task "
            f"representations with pre-finetuning) on {len(self.task.specs)} datasets, in Hugging Face layout."
        )
        auto = "AutoModelForSeq2SeqLM" if exported.generation is not None else "AutoModel"
        lines += ["", *_loading(auto, self.name), "", _rows(*exported.tokens)]
        if exported.generation is None:
            lines += ["", "The model has no pooler: `AutoModel` makes one of random numbers, which says nothing."]
        if exported.heads:
            lines += ["", "## Heads", "", "| head | class | load with |", "| --- | --- | --- |"]
            lines += [
                f"| `heads/{name}` | `{head.class_name}` | `{head.auto_class}`"
                + (", `trust_remote_code=True` |" if head.needs_code else " |")
                for name, head in exported.heads.items()
            ]
            lines += ["", "The encoder's file is the same in every folder (a hard link, unless it was copied since)."]
        return self._closing(lines, None)

    def of_head(self, name: str, exported: Exported) -> str:
        head = exported.heads[name]
        specs = [spec for spec, own in zip(self.task.specs, self.task.heads, strict=True) if own == name]
        lines = [*_front(), f"# {self.name}, head {name}", ""]
        lines.append(
            f"A `{head.class_name}`: the head `{name}` of a model trained with muppet_fairseq (MUPPET: massive "
            f"multi-task representations with pre-finetuning) on {len(self.task.specs)} datasets."
        )
        lines += ["", *_loading(head.auto_class, name, code=head.needs_code), "", USAGE[specs[0].family]]
        lines += ["", _rows(*exported.tokens)]
        return self._closing(lines, name)

    def _closing(self, lines: list[str], head: str | None) -> str:
        """What both kinds end with; ``head``: only what concerns it."""
        own = [head] if head is not None else None
        lines = [*lines, "", *datasets_section(self.task, self.data, own)]
        names = {spec.name for spec, name in zip(self.task.specs, self.task.heads, strict=True) if head in (None, name)}
        rows = [row for row in self.scores if head is None or row[0] in names]
        if rows:
            lines += ["", "## Evaluation", "", "By `muppet evaluate`, x 100.", ""]
            lines += ["| dataset | split | examples | metrics |", "| --- | --- | --- | --- |"]
            for dataset, split, examples, metrics in rows:
                values = ", ".join(f"{metric} {100 * value:.2f}" for metric, value in metrics.items())
                lines.append(f"| {dataset} | {split} | {examples:,} | {values} |")
        lines += ["", *training_section(self.options, self.task), "", "## Citation", "", CITATION]
        return "\n".join(lines) + "\n"


def read_evaluation(path: Path, checkpoint: Path) -> list[tuple[str, str, int, dict[str, float]]]:
    """Read what ``muppet evaluate --json`` printed: dataset, split, number of examples and metrics.

    Raises MuppetError where the file is none of ``checkpoint``.
    """
    try:
        content = json.loads(read_up_to(path, _LARGEST).decode())
        rows = [
            (
                str(result["dataset"]),
                str(content["split"]),
                int(result["examples"]),
                {str(metric): float(value) for metric, value in result["metrics"].items()},
            )
            for result in content["results"]
        ]
        judged = Path(content["checkpoint"])
    except OSError as error:
        raise MuppetError(f"the evaluation {path} cannot be read ({error.strerror}); name another file") from None
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError):
        raise MuppetError(
            f"{path} holds no evaluation; write one with 'muppet evaluate CKPT DATA --json > FILE'"
        ) from None
    if judged.resolve() != checkpoint.resolve():
        raise MuppetError(f"{path} is an evaluation of {judged}, not of {checkpoint}; evaluate what is exported")
    return rows


def _front() -> list[str]:
    """What the hub reads of a card."""
    return ["---", "library_name: transformers", "tags:", "- muppet", "- multi-task", "---", ""]


def _loading(auto_class: str, name: str, *, code: bool = False) -> list[str]:
    more = ", trust_remote_code=True" if code else ""
    return [
        "```python",
        f"from transformers import AutoTokenizer, {auto_class}",
        "",
        f'tokenizer = AutoTokenizer.from_pretrained("{name}")',
        f'model = {auto_class}.from_pretrained("{name}"{more})',
        "```",
    ]
