"""A head as a model of transformers: which class, how its parameters are called there, what ``config.json`` says.

All of them compute what ours do, from the same position: the class of each family and architecture is the one with
the same layers (a BERT's and a RoBERTa's ``dense`` may be called a pooler there). BART has no class for choices and
for words: :mod:`muppet_fairseq.hf.modeling_bart` goes with such a head.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from muppet_fairseq.spec import DatasetSpec

#: family -> the ending of the class that predicts as it does
ENDINGS = {
    "classification": "ForSequenceClassification",
    "regression": "ForSequenceClassification",
    "commonsense": "ForMultipleChoice",
    "mrc": "ForQuestionAnswering",
    "tagging": "ForTokenClassification",
}
#: model type -> the beginning of its classes
BEGINNINGS = {"bert": "Bert", "roberta": "Roberta", "xlm-roberta": "XLMRoberta", "bart": "Bart"}
#: the classes that are not in transformers but in :data:`MODELING_FILE`
OWN_CLASSES = ("BartForMultipleChoice", "BartForTokenClassification")
MODELING_FILE = "modeling_bart.py"

#: class -> what it calls our ``dense`` (if the head has one) and ``out_proj``
_MODULES = {
    "BertForSequenceClassification": {"dense": "bert.pooler.dense", "out_proj": "classifier"},
    "BertForMultipleChoice": {"dense": "bert.pooler.dense", "out_proj": "classifier"},
    "BertForTokenClassification": {"out_proj": "classifier"},
    "BertForQuestionAnswering": {"out_proj": "qa_outputs"},
    "RobertaForSequenceClassification": {"dense": "classifier.dense", "out_proj": "classifier.out_proj"},
    "RobertaForMultipleChoice": {"dense": "roberta.pooler.dense", "out_proj": "classifier"},
    "RobertaForTokenClassification": {"out_proj": "classifier"},
    "RobertaForQuestionAnswering": {"out_proj": "qa_outputs"},
    "BartForSequenceClassification": {
        "dense": "classification_head.dense",
        "out_proj": "classification_head.out_proj",
    },
    "BartForMultipleChoice": {"dense": "classification_head.dense", "out_proj": "classification_head.out_proj"},
    "BartForTokenClassification": {"out_proj": "classifier"},
    "BartForQuestionAnswering": {"out_proj": "qa_outputs"},
}


@dataclass(frozen=True)
class ExportedHead:
    """What makes a model without a head one of ``class_name``: more of ``config.json``, and more ``tensors``."""

    class_name: str
    config: dict[str, Any]
    tensors: dict[str, Tensor]

    @property
    def auto_class(self) -> str:
        """What a user loads it with."""
        return f"AutoModel{self.class_name[self.class_name.index('For') :]}"

    @property
    def needs_code(self) -> bool:
        """Whether the class is not one of transformers."""
        return self.class_name in OWN_CLASSES


def export_head(spec: DatasetSpec, head: nn.Module, model_type: str) -> ExportedHead:
    """Name the parameters of ``head``, which predicts ``spec``, as the class of ``model_type`` does."""
    class_name = BEGINNINGS[model_type] + ENDINGS[spec.family]
    tensors = {}
    for ours, theirs in _MODULES[class_name.replace("XLMRoberta", "Roberta")].items():
        module = getattr(head, ours)
        # of a spectrally normalised projection (R4F) this is the weight that it multiplies with
        tensors[f"{theirs}.weight"], tensors[f"{theirs}.bias"] = module.weight.detach(), module.bias.detach()
    exported = ExportedHead(class_name, {"architectures": [class_name], **_labels(spec)}, tensors)
    if exported.needs_code:
        module, _ = MODELING_FILE.split(".")
        exported.config["auto_map"] = {exported.auto_class: f"{module}.{class_name}"}
    return exported


def _labels(spec: DatasetSpec) -> dict[str, Any]:
    names = {"classification": spec.labels, "tagging": spec.labels, "regression": ("value",)}.get(spec.family)
    if names is None:
        return {}
    labels: dict[str, Any] = {"id2label": {str(number): name for number, name in enumerate(names)}}
    labels["label2id"] = {name: number for number, name in enumerate(names)}
    if spec.family != "tagging":
        labels["problem_type"] = "regression" if spec.family == "regression" else "single_label_classification"
    return labels
