"""MUPPET for fairseq: pre-finetuning on many supervised datasets at once (``--user-dir muppet_fairseq``)."""

from muppet_fairseq import compat, errors

compat.apply()
errors.report_without_traceback()

from muppet_fairseq.criterions import muppet as _criterion  # noqa: E402, F401 - registers the criterion
