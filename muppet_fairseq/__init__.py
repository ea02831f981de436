"""MUPPET for fairseq: pre-finetuning on many supervised datasets at once (``--user-dir muppet_fairseq``)."""

import warnings

# fairscale 0.4.13, which fairseq imports where it is installed, uses these by their old names
warnings.filterwarnings("ignore", message=r".*torch\.cuda\.amp\.custom_(fwd|bwd).*", category=FutureWarning)

from muppet_fairseq import compat, errors  # noqa: E402

compat.apply()
errors.report_without_traceback()

# registers the criterions
from muppet_fairseq import trainer as _trainer  # noqa: E402
from muppet_fairseq.criterions import muppet_distill as _distill  # noqa: E402, F401
from muppet_fairseq.criterions import muppet_r3f as _r3f  # noqa: E402, F401

_trainer.install()
