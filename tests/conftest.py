"""Shared by all tests."""

import sys
from pathlib import Path

import pytest
from hypothesis import settings

# transformers imports torchaudio wherever it is installed (fairseq asks for it), and PyPI's cannot be loaded
# beside a CPU-only torch
sys.modules.setdefault("torchaudio", None)

# machines are shared: no property test has a deadline
settings.register_profile("muppet", deadline=None, print_blob=True)
settings.load_profile("muppet")


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy data-bin; tests that change it do so to a copy."""
    from tests.toy_suite import write_data_bin

    return write_data_bin(tmp_path_factory.mktemp("toy"))
