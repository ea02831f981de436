"""MUPPET for fairseq: pre-finetuning on many supervised datasets at once (``--user-dir muppet_fairseq``)."""

from muppet_fairseq import compat, errors

compat.apply()
errors.report_without_traceback()

# registers the criterions
from muppet_fairseq import trainer as _trainer  # noqa: E402
from muppet_fairseq.criterions import muppet_r3f as _criterions  # noqa: E402, F401

_trainer.install()
