"""BART for multiple choice and for token classification, which transformers does not have.

``muppet export-hf`` puts this file beside such a head. It computes what muppet_fairseq's ``muppet_bart`` does: the
encoder and, one position later, the decoder read the same row, and the head reads the decoder's states.
"""

import torch
from torch import nn
from transformers import BartForSequenceClassification, BartModel, BartPreTrainedModel
from transformers.modeling_outputs import MultipleChoiceModelOutput, TokenClassifierOutput


class BartForMultipleChoice(BartForSequenceClassification):
    """One score a choice, from the state of its row's last ``</s>``.

    ``input_ids`` and ``attention_mask``: int64 ``[questions, choices, T]``; ``labels``: the right choices
    ``[questions]``. ``logits``: ``[questions, choices]``.
    """

    def __init__(self, config):
        config.num_labels = 1
        super().__init__(config)

    def forward(self, input_ids, attention_mask=None, labels=None, **options):
        questions, choices = input_ids.shape[:2]
        mask = None if attention_mask is None else attention_mask.flatten(0, 1)
        # its own loss and form are those of a classifier
        options["return_dict"] = True
        scores = super().forward(input_ids.flatten(0, 1), attention_mask=mask, **options).logits
        logits = scores.view(questions, choices)
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return MultipleChoiceModelOutput(loss=loss, logits=logits)


class BartForTokenClassification(BartPreTrainedModel):
    """Scores of the classes of each token.

    ``input_ids`` and ``attention_mask``: int64 ``[R, T]``; ``labels``: classes ``[R, T]``, -100 where none is asked
    for. ``logits``: ``[R, T, classes]``.
    """

    _tied_weights_keys = BartForSequenceClassification._tied_weights_keys

    def __init__(self, config):
        super().__init__(config)
        self.model = BartModel(config)
        self.dropout = nn.Dropout(config.classifier_dropout)
        self.classifier = nn.Linear(config.d_model, config.num_labels)
        self.post_init()

    def forward(self, input_ids, attention_mask=None, labels=None, **options):
        options |= {"return_dict": True, "use_cache": False}
        states = self.model(input_ids, attention_mask=attention_mask, **options).last_hidden_state
        logits = self.classifier(self.dropout(states))
        loss = None if labels is None else nn.functional.cross_entropy(logits.flatten(0, 1), torch.flatten(labels))
        return TokenClassifierOutput(loss=loss, logits=logits)
