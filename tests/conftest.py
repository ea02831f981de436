"""Shared by all tests."""

import re
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings
from xdist.scheduler import LoadFileScheduling

from tests.faults.ledger import Fault, Ledger

# transformers imports torchaudio wherever it is installed (fairseq asks for it), and PyPI's cannot be loaded
# beside a CPU-only torch
sys.modules.setdefault("torchaudio", None)

# machines are shared: no property test has a deadline
settings.register_profile("muppet", deadline=None, print_blob=True)
settings.load_profile("muppet")


#: files whose tests share models that take long to train
_TOGETHER = ("test_evaluate.py", "test_hub.py", "test_model_cards.py", "test_release.py")


#: files that take minutes come first: what is short fills up the other processes at the end
_LONG = ("test_examples.py", "test_training.py", "test_bart.py", *_TOGETHER, "test_study.py", "test_r3f.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: _LONG.index(item.path.name) if item.path.name in _LONG else len(_LONG))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """What a test draws does not depend on those that ran before it; nor what fixtures do that are made for it."""
    torch.manual_seed(0)


class ByFile(LoadFileScheduling):
    """A file's tests run in one process, which makes its fixtures once (``--dist loadfile``).

    ``--dist loadgroup`` would say the same with marks; pytest-xdist 3.8 does not see them under pytest 9.2.
    """

    def _split_scope(self, nodeid: str) -> str:
        file = super()._split_scope(nodeid)
        return "toy models" if Path(file).name in _TOGETHER else file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByFile | None:
    return ByFile(config, log) if config.getoption("dist") == "loadfile" else None


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--faults", metavar="FOLDER", help="try every fault as often as it takes; the table goes there")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[Ledger.KEY] = Ledger()


def pytest_sessionfinish(session: pytest.Session) -> None:
    if hasattr(session.config, "workeroutput"):  # one of pytest-xdist's processes
        session.config.workeroutput["faults"] = [asdict(row) for row in session.config.stash[Ledger.KEY].rows]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    for row in getattr(node, "workeroutput", {}).get("faults", []):
        node.config.stash[Ledger.KEY].add(Fault(**row))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    folder = config.getoption("--faults")
    if folder:
        ledger = config.stash[Ledger.KEY]
        terminalreporter.write("\n" + ledger.table() + "\n")
        ledger.write(Path(folder))


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy data-bin; tests that change it do so to a copy."""
    from tests.toy_suite import write_data_bin

    return write_data_bin(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="session")
def gpt2_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tokenizer folder of the published GPT-2 vocabulary."""
    from tests.real_data import write_gpt2_tokenizer

    return write_gpt2_tokenizer(tmp_path_factory.mktemp("gpt2"))


@pytest.fixture(scope="session")
def gpt2(gpt2_folder: Path):
    from muppet_fairseq.data.tokenizer import Tokenizer

    return Tokenizer.load(gpt2_folder)


@pytest.fixture(scope="session")
def sentences() -> list[str]:
    """Odd texts, and real ones of many kinds."""
    from tests.real_data import ODD_TEXTS, real_texts

    return [*ODD_TEXTS, *real_texts()]


@pytest.fixture(scope="session")
def short(sentences: list[str]) -> list[str]:
    """More than 10,000 different sentences of the same texts."""
    from tests.real_data import ODD_TEXTS

    parts = [part for text in sentences[len(ODD_TEXTS) :] for part in re.split(r"(?<=[.!?]) +", text)]
    return [*ODD_TEXTS, *dict.fromkeys(parts)][:12_000]
