"""Every way of fairseq's to share an update among workers gives the same parameters; what it cannot do it says.

The faults: datasets that miss from an update, updates that the workers share unevenly, workers with nothing to do.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.options import get_training_parser, parse_args_and_arch

from muppet_fairseq import compat
from muppet_fairseq.errors import MuppetError
from tests.faults import sharded_on_cpu
from tests.faults.ledger import Ledger
from tests.runs import Run, finished, parameters
from tests.toy_suite import NAMES, options, trained

FAIRSCALE = importlib.util.find_spec("fairscale") is not None
needs_fairscale = pytest.mark.skipif(not FAIRSCALE, reason="fairscale is not installed")


class Backend(NamedTuple):
    """A way to share: its words, and what must be injected for them to work here."""

    words: tuple[str, ...]
    inject: Callable[[int], Any] | None = None


SHARDED = ("--ddp-backend", "fully_sharded")
#: the first is what the others are compared with
BACKENDS = {
    "legacy_ddp": Backend(("--ddp-backend", "legacy_ddp")),
    "pytorch_ddp": Backend(("--ddp-backend", "pytorch_ddp")),
    "c10d": Backend(("--ddp-backend", "c10d")),
    "no_c10d": Backend(("--ddp-backend", "no_c10d")),
    "os": Backend(("--ddp-backend", "pytorch_ddp", "--zero-sharding", "os")),
    "fully_sharded": Backend(SHARDED, sharded_on_cpu.allow),
    "fully_sharded, layer by layer": Backend((*SHARDED, "--min-params-to-wrap", "1000"), sharded_on_cpu.allow),
}
NEED_FAIRSCALE = ("os", "fully_sharded", "fully_sharded, layer by layer")
THREE = ("pytorch_ddp", "os", "fully_sharded")
SGD = ("--optimizer", "sgd", "--lr", "0.1")
#: an eps far above rounding: Adam would blow that up where a gradient is 0, as a ranking head's last bias
ADAM = ("--optimizer", "adam", "--lr", "0.001", "--adam-eps", "1e-3")
#: one worker draws another noise; this small it leaves no trace, and all else of R3F is the same
CRITERIONS = {"muppet": ("--criterion", "muppet"), "muppet_r3f": ("--criterion", "muppet_r3f", "--eps", "1e-7")}
STILL = ("--dropout", "0", "--attention-dropout", "0", "--max-epoch", "1", "--disable-validation")


class Case(NamedTuple):
    """A run: its suite's lines, and what is special.

    ``update_freq`` is that of each of two workers, ``alone`` that of one worker which does the same updates.
    """

    suite: tuple[str, ...]
    update_freq: str
    alone: str
    words: tuple[str, ...] = ()


SMALL = tuple(f"name: {name}, examples: 40" for name in NAMES)
CASES = {
    "two epochs of other --update-freq": Case(SMALL, "4,1", "8,2", ("--max-epoch", "2")),
    "updates that workers share unevenly": Case(SMALL, "2", "3", ("--sub-batches", "3")),
    "a worker with nothing to do": Case(("name: pairs, examples: 5",), "4", "8", ("--max-epoch", "3")),
    "a worker with nothing to do, many heads": Case(
        tuple(f"name: {name}, examples: 2" for name in NAMES), "4", "8", ("--max-epoch", "2")
    ),
    "datasets that share a head": Case(
        (*SMALL, "name: counts, examples: 40, head: commonsense"), "1", "2", ("--spectral-norm-heads",)
    ),
    "spectrally normalised heads": Case(SMALL, "2", "4", (*CRITERIONS["muppet_r3f"], "--spectral-norm-heads")),
    "a decoder with heads": Case((*SMALL, "name: summaries, examples: 40"), "2", "4", ("--arch", "muppet_bart_tiny")),
    "one head": Case(("name: choices, examples: 60",), "2", "4"),
    "no head": Case(("name: summaries, examples: 60",), "2", "4", ("--arch", "muppet_bart_tiny")),
}


@cache
def trained_parameters(data: Path, folder: Path, case: Case, backend: str, *words: str) -> dict[str, torch.Tensor]:
    """What a run on two workers leaves; on one if ``backend`` is "one"."""
    folder = folder / str(len(list(folder.iterdir())))
    arguments = words_of(data, folder, case, *words)
    if backend == "one":
        finished([*arguments, "--update-freq", case.alone], folder)
    else:
        more = ("--update-freq", case.update_freq, *BACKENDS[backend].words)
        finished([*arguments, *more], folder, workers=2, inject=BACKENDS[backend].inject)
    return parameters(folder / "save")


def words_of(data: Path, folder: Path, case: Case, *words: str) -> list[str]:
    folder.mkdir(parents=True)
    suite = folder / "suite.yaml"
    suite.write_text("".join(f"- {{{line}}}\n" for line in case.suite))
    return options(data, folder / "save", *STILL, *SGD, *words, *case.words, suite=str(suite))


def furthest(ours: dict[str, torch.Tensor], reference: dict[str, torch.Tensor]) -> float:
    """The largest difference of a value of two runs' parameters and optimizer states."""
    assert ours.keys() == reference.keys()
    differences = [(ours[key].double() - reference[key].double()).abs() for key in reference]
    return max(float(difference.max()) for difference in differences if difference.numel())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ddp")


@pytest.fixture
def the_same(data: Path, folder: Path, ledger: Ledger) -> Callable[..., None]:
    """Check that a case ends alike with all these backends as with the first; note each as ``fault``."""

    def check(fault: str, case: Case, backends: tuple[str, ...], *words: str) -> None:
        reference = trained_parameters(data, folder, case, "legacy_ddp", *words)
        for backend in backends:
            if backend in NEED_FAIRSCALE and not FAIRSCALE:
                continue
            difference = furthest(trained_parameters(data, folder, case, backend, *words), reference)
            ledger.note(fault, survived=difference <= 1e-6)
            assert difference <= 1e-6, (backend, *words)

    return check


def test_in_short(the_same, tries):
    """What ``make test`` has time for: the case that is most unlike, the two backends that all have."""
    tries(1, 0)
    case = CASES["a worker with nothing to do, many heads"]
    the_same("every DDP flavour", case, ("pytorch_ddp",), *CRITERIONS["muppet_r3f"])


@pytest.mark.parametrize("criterion", CRITERIONS)
@pytest.mark.parametrize("update_freq", [1, 4])
def test_every_backend_gives_the_same_parameters(the_same, tries, update_freq, criterion):
    """And so does one worker: to 1e-6."""
    tries(0, 1)
    case = Case(SMALL, str(update_freq), str(2 * update_freq))
    others = tuple(BACKENDS)[1:] if (update_freq, criterion) == (1, "muppet") else THREE
    the_same(
        f"every DDP flavour: --update-freq {update_freq}, {criterion}", case, (*others, "one"), *CRITERIONS[criterion]
    )


def test_the_state_of_adam_is_the_same(the_same, tries):
    tries(0, 1)
    case = Case(SMALL, "1", "2", ADAM)
    the_same("every DDP flavour: Adam's state", case, (*THREE, "one"))


@pytest.mark.parametrize("name", CASES)
def test_uneven_work(the_same, tries, name):
    tries(0, 1)
    the_same(f"every DDP flavour: {name}", CASES[name], ("pytorch_ddp", "fully_sharded", "one"))


def test_noise_of_r3f(the_same, tries):
    """Noise of a size that matters: drawn by each worker, so the same whatever unites their gradients."""
    tries(0, 1)
    words = ("--criterion", "muppet_r3f", "--eps", "0.1", "--noise-type", "normal")
    the_same("every DDP flavour: noise of each worker's own", Case(SMALL, "1", "2"), THREE, *words)


@needs_fairscale
def test_a_sharded_run_goes_on_and_starts_from_a_checkpoint(data, folder, tries, ledger):
    """Where it was stopped, with Adam's state; and from another run's parameters, some of its heads and fresh ones."""
    tries(0, 1)
    case = Case(SMALL, "1", "2", ADAM)
    save = folder / "stopped"
    stopped = words_of(data, save, case, *SHARDED, "--update-freq", "1")
    for more in (("--max-update", "5"), ()):
        finished([*stopped, *more], save, workers=2, inject=sharded_on_cpu.allow)
    difference = furthest(parameters(save / "save"), trained_parameters(data, folder, case, "legacy_ddp"))
    ledger.note("every DDP flavour: a sharded run stopped and resumed", survived=difference <= 1e-6)
    assert difference <= 1e-6

    checkpoint = str(save / "save" / "checkpoint_last.pt")
    start = ("--finetune-from-model", checkpoint, "--reuse-heads")
    fine = Case(tuple(f"name: {name}, examples: 40" for name in ("choices", "pairs", "counts")), "1", "2", start)
    ours = trained_parameters(data, folder, fine, "fully_sharded, layer by layer")
    difference = furthest(ours, trained_parameters(data, folder, fine, "legacy_ddp"))
    ledger.note("every DDP flavour: a sharded run from a checkpoint with other heads", survived=difference <= 1e-6)
    assert difference <= 1e-6

    wrong = words_of(data, folder / "wrong", fine, *SHARDED, "--encoder-embed-dim", "32")
    run = Run(wrong, folder / "wrong", workers=2, inject=sharded_on_cpu.allow)
    assert run.wait() == [1, 1]
    assert all("muppet: the checkpoint's encoder" in run.errors(rank) for rank in (0, 1))


#: options, whether fairscale is there, and what is said of them on a CPU
CANNOT = (
    (SHARDED, True, "--ddp-backend fully_sharded needs GPUs: choose --ddp-backend pytorch_ddp or legacy_ddp"),
    (("--ddp-backend", "slowmo"), False, "--ddp-backend slowmo needs GPUs: choose"),
    (("--fp16",), False, "--fp16 needs a GPU: train without it, or with --bf16"),
    (("--zero-sharding", "os"), False, "--zero-sharding os needs the package fairscale: pip install fairscale==0.4.13"),
)
#: what is said on a machine with GPUs
CANNOT_ON_GPUS = (
    ((*SHARDED, "--bf16"), True, "--ddp-backend fully_sharded does not go with --bf16"),
    ((*SHARDED, "--zero-sharding", "os"), True, "shards the optimizer, too: leave --zero-sharding out"),
    ((*SHARDED, "--not-fsdp-flatten-parameters"), True, "--not-fsdp-flatten-parameters needs a gradient for each"),
    (("--zero-sharding", "os", "--fp16"), True, "--zero-sharding os with --fp16 needs --fp16-no-flatten-grads"),
    (("--ddp-backend", "slowmo"), False, "--ddp-backend slowmo needs the package fairscale"),
    (SHARDED, False, "--ddp-backend fully_sharded needs the package fairscale"),
)


def configured(data: Path, *words: str) -> Any:
    """fairseq's configuration for two workers."""
    parser = get_training_parser()
    words = (*options(data, data / "no_run", *words), "--distributed-world-size", "2")
    words += ("--distributed-init-method", "env://")
    return convert_namespace_to_omegaconf(parse_args_and_arch(parser, list(words)))


@pytest.mark.parametrize(("words", "installed", "sentence"), CANNOT)
def test_what_cannot_work_on_a_cpu_is_said(data, monkeypatch, words, installed, sentence):
    monkeypatch.setattr(compat, "_installed", lambda package: installed)
    cfg = configured(data, *words)
    with pytest.raises(MuppetError, match=re.escape(sentence)):
        compat.check_parallel(cfg.common, cfg.distributed_training)


@pytest.mark.parametrize(("words", "installed", "sentence"), CANNOT_ON_GPUS)
def test_what_cannot_work_on_gpus_is_said(data, monkeypatch, words, installed, sentence):
    monkeypatch.setattr(compat, "_installed", lambda package: installed)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    cfg = configured(data, *words)
    cfg.common.cpu = False
    with pytest.raises(MuppetError, match=re.escape(sentence)):
        compat.check_parallel(cfg.common, cfg.distributed_training)


def test_what_is_to_be_shared_needs_workers(data, monkeypatch):
    monkeypatch.setattr(compat, "_installed", lambda package: True)
    cfg = configured(data, "--zero-sharding", "os")
    compat.check_parallel(cfg.common, cfg.distributed_training)
    cfg.distributed_training.distributed_init_method = None
    with pytest.raises(MuppetError, match="this run has only one"):
        compat.check_parallel(cfg.common, cfg.distributed_training)


def test_bf16_is_no_tpu_and_fp16_one_sentence(data, tmp_path, tries):
    """Real processes: fairseq reads --bf16 before it knows of this package."""
    tries(0, 1)
    trained(options(data, tmp_path / "bf16", "--bf16", "--max-update", "2", "--disable-validation", "--no-save"))
    run = Run(options(data, tmp_path / "fp16", "--fp16"), tmp_path)
    assert run.wait() == [1]
    assert run.errors().splitlines() == ["muppet: --fp16 needs a GPU: train without it, or with --bf16"]


def test_unused_parameters_are_looked_for_where_some_are(data, tmp_path, monkeypatch):
    """Not in fine-tuning on one dataset, where PyTorch would look through all of them in vain."""
    asked = tmp_path / "asked"
    data_parallel = compat.DistributedDataParallel

    def asks(**words: Any) -> torch.nn.Module:
        asked.write_text(str(words["find_unused_parameters"]))
        return data_parallel(**words)

    monkeypatch.setattr(compat, "DistributedDataParallel", asks)
    words = ("--ddp-backend", "pytorch_ddp", "--max-update", "1", "--disable-validation", "--no-save")
    for suite, wanted in (("pairs", False), ("pairs,choices", True)):
        finished(options(data, tmp_path / suite, *words, suite=suite), tmp_path / suite, workers=2)
        assert asked.read_text() == str(wanted)
