"""Shared by all tests."""

import sys

from hypothesis import settings

# transformers imports torchaudio wherever it is installed (fairseq asks for it), and PyPI's cannot be loaded
# beside a CPU-only torch
sys.modules.setdefault("torchaudio", None)

# machines are shared: no property test has a deadline
settings.register_profile("muppet", deadline=None, print_blob=True)
settings.load_profile("muppet")
