"""Checkpoints from strangers: on every way in, one sentence and nothing run, looked up or filled up."""

from __future__ import annotations

import io
import os
import pickle
import shutil
import sys
import tarfile
import zipfile
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from muppet_fairseq import checkpoint_file, cli
from muppet_fairseq.errors import MuppetError
from muppet_fairseq.hf import importing
from muppet_fairseq.hub import MuppetHub
from muppet_fairseq.models.roberta import MuppetRobertaModel
from muppet_fairseq.release import release
from tests.runs import Run, equal, finished, parameters
from tests.toy_suite import ROOT, options

#: what a single test may add to this process's memory, and a training run to what it had
MEMORY = 2 << 30


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four updates, and in ``release`` what was released of it."""
    place = tmp_path_factory.mktemp("stranger")
    finished(options(data, place / "run", *SHORT, "--save-interval-updates", "2"), place / "out")
    release(place / "run" / "checkpoint_last.pt", place / "release")
    return place


SHORT = ("--disable-validation", "--max-update", "4", "--dropout", "0.1")


class Payload:
    """Unpickled, it calls ``function``."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.reduced = function, arguments

    def __reduce__(self) -> tuple:
        return self.reduced


# -- files: each makes something of a good checkpoint, or of nothing -------------------------------------


def _saved(path: Path, state: Any, **how: Any) -> None:
    torch.save(state, path, **how)


def _code(*reduced: Any, **how: Any) -> Callable[[Path, dict], None]:
    return lambda path, state: _saved(path, state | {"extra": Payload(*reduced)}, **how)


def _touch(mark: str) -> str:
    return f"touch {mark}"


MARK = "executed"


def _tar(path: Path, state: dict) -> None:
    """PyTorch's oldest format, and what ``from_pretrained`` of others would unpack."""
    with tarfile.open(path, "w") as archive:
        for name in ("storages", "tensors", "pickle", "../outside"):
            content = pickle.dumps(Payload(os.system, _touch(MARK)))
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def _other_protocol(path: Path, state: dict) -> None:
    torch.save(state | {"extra": Payload(os.system, _touch(MARK))}, path, pickle_protocol=4)


def _indirect(path: Path, state: dict) -> None:
    """``getattr(os, "system")`` by hand, through allowed names."""
    _rewritten(path, state, b"\x80\x02cargparse\nNamespace\ncbuiltins\ngetattr\ncos\nsystem\n.")


def _inst(path: Path, state: dict) -> None:
    """The opcode INST of protocol 0 calls without REDUCE."""
    _rewritten(path, state, b"(S'touch " + MARK.encode() + b"'\nios\nsystem\n.")


def _forged_dtype(path: Path, state: dict) -> None:
    """A number's type with flags and fields of its own, which numpy would read as pointers."""
    forged = (
        b"\x80\x02cnumpy._core.multiarray\nscalar\ncnumpy\ndtype\nU\x02V8\x89\x88\x87R"
        b"(K\x03U\x01|NU\x01at}U\x01acnumpy\ndtype\nU\x01O\x89\x88\x87RK\x00\x86stK\x08K\x01K\x00tb"
        b"U\x08AAAAAAAA\x86R."
    )
    _rewritten(path, state, forged)


def _rewritten(path: Path, state: dict, pickled: bytes) -> None:
    """A good file whose ``data.pkl`` is another one, its checksum included."""
    torch.save(state, path)
    _changed_zip(path, lambda name, content: pickled if name.endswith("data.pkl") else content)


def _changed_zip(path: Path, change: Callable[[str, bytes], bytes], how: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path) as archive:
        parts = {part.filename: archive.read(part) for part in archive.infolist()}
    with zipfile.ZipFile(path, "w", how) as archive:
        for name, content in parts.items():
            archive.writestr(name, change(name, content))


def _bomb(path: Path, state: dict) -> None:
    """A tensor of 64 MB of zeros in 64 kB."""
    torch.save(state | {"extra": torch.zeros(1)}, path)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        name = archive.namelist()[0].split("/")[0]
        with archive.open(f"{name}/data/bomb", "w", force_zip64=True) as member:
            for _ in range(4):
                member.write(bytes(1 << 24))


def _expanded(path: Path, state: dict) -> None:
    """Each of its tensors claims a terabyte of one number."""
    model = {name: torch.zeros(1).expand(1 << 28, 1 << 10) for name in state["model"]}
    _saved(path, state | {"model": model})


def _lists_of_lists(path: Path, state: dict) -> None:
    content: Any = []
    for _ in range(40):
        content = [content] * 10
    _saved(path, state | {"cfg": content})


def _itself(path: Path, state: dict) -> None:
    content: list = []
    content.append(content)
    _saved(path, state | {"cfg": {"task": content, "model": content}})


def _module(path: Path, state: dict) -> None:
    torch.jit.script(torch.nn.Linear(1, 1)).save(str(path))


def _replaced(make: Callable[[Path], Any]) -> Callable[[Path, dict], None]:
    return lambda path, state: make(path)


CODE = {
    "os.system": _code(os.system, _touch(MARK)),
    "os.system, legacy": _code(os.system, _touch(MARK), _use_new_zipfile_serialization=False),
    "os.system, protocol 4": _other_protocol,
    "exec": _code(exec, f"open({MARK!r}, 'w')"),
    "getattr": _code(getattr, Namespace(a=1), "a"),
    "import": _code(__import__, "antigravity"),
    "by name": _indirect,
    "INST": _inst,
    "a forged dtype": _forged_dtype,
    "TorchScript": _module,
    "tar": _tar,
}
FILES = {
    "bomb": _bomb,
    "expanded tensors": _expanded,
    "lists of lists": _lists_of_lists,
    "a list in itself": _itself,
    "a pipe": _replaced(os.mkfifo),
    "a folder": _replaced(Path.mkdir),
    "a link to nothing": _replaced(lambda path: path.symlink_to("nothing")),
    "a link to a device": _replaced(lambda path: path.symlink_to("/dev/zero")),
    "nothing in it": _replaced(Path.touch),
    "a web page": _replaced(lambda path: path.write_text("<html>" * 100)),
    "a list": lambda path, state: _saved(path, [state]),
    "no model": lambda path, state: _saved(path, {key: state[key] for key in state if key != "model"}),
    "a list for model": lambda path, state: _saved(path, state | {"model": [1, 2]}),
    "words for tensors": lambda path, state: _saved(path, state | {"model": dict.fromkeys(state["model"], "a")}),
    "sparse tensors": lambda path, state: _saved(
        path, state | {"model": {name: value.to_sparse() for name, value in state["model"].items()}}
    ),
    "tensors without numbers": lambda path, state: _saved(
        path, state | {"model": {name: value.to("meta") for name, value in state["model"].items()}}
    ),
    "other shapes": lambda path, state: _saved(
        path, state | {"model": {name: torch.zeros(3, 5, 7) for name in state["model"]}}
    ),
    "cut off": lambda path, state: (_saved(path, state), os.truncate(path, path.stat().st_size * 2 // 3)),
    "a bit flipped": lambda path, state: (_saved(path, state), _flip(path)),
    "looked up in the environment": lambda path, state: _saved(path, _with(state, "task", suite="${oc.env:HOME}")),
}


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        largest = max(archive.infolist(), key=lambda part: part.file_size)
    content[largest.header_offset + largest.file_size // 2] ^= 0x40
    path.write_bytes(content)


def _with(state: dict, part: str, **changes: Any) -> dict:
    options = state["cfg"][part]
    options = vars(options) if isinstance(options, Namespace) else options
    return state | {"cfg": state["cfg"] | {part: {**options, **changes}}}


# -- ways in ----------------------------------------------------------------------------------------------


def _said(call: Callable[[], Any]) -> list[str]:
    """The sentence that ``call`` raises, as one list with those of a process; nothing if it raises none."""
    try:
        call()
    except MuppetError as error:
        return [str(error)]
    return []


def _evaluated(checkpoint: Path, data: Path) -> Any:
    return cli.main(["evaluate", str(checkpoint), str(data), "--device", "cpu"])


def _in_process(way: str, file: Path, folder: Path, data: Path) -> list[str]:
    """Ways that need no training; ``folder`` is a release that the file is the model of."""
    calls: dict[str, Callable[[], Any]] = {
        "evaluate": lambda: _evaluated(file, data),
        "release": lambda: release(file, folder / "out", data),
        "from_pretrained": lambda: MuppetRobertaModel.from_pretrained(folder),
        "torch.hub": lambda: torch.hub.load(str(ROOT), "muppet", source="local", checkpoint=str(folder)),
        "import-hf": lambda: importing._read_weights(file),
    }
    return _said(calls[way])


WAYS = ("evaluate", "release", "from_pretrained", "torch.hub", "import-hf")


def _peak() -> int:
    """Bytes of memory that this process has had at once."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) << 10


@pytest.fixture
def state(trained: Path) -> dict[str, Any]:
    return torch.load(trained / "run" / "checkpoint_last.pt", weights_only=True)


def _release_with(trained: Path, folder: Path, make: Callable[[Path, dict], None], state: dict) -> Path:
    """A release in ``folder`` whose model is what ``make`` makes."""
    shutil.copytree(trained / "release", folder)
    (folder / "model.pt").unlink()
    make(folder / "model.pt", state)
    return folder / "model.pt"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "forced"), [*((name, True) for name in CODE), *((name, False) for name in (*CODE, *FILES))]
)
def test_what_a_file_holds_is_refused_wherever_it_is_read(
    data, trained, state, tmp_path, monkeypatch, ledger, tries, name, forced
):
    """Also where the environment asks PyTorch to run it."""
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1" if forced else "0")
    monkeypatch.chdir(tmp_path)
    make = (CODE | FILES)[name]
    file = _release_with(trained, tmp_path / "release", make, state)
    before, left = _peak(), sorted(tmp_path.rglob("*"))
    for way in WAYS[: None if name in CODE else tries(2, len(WAYS))]:
        # a run's own checkpoint is mapped for use: a flipped bit may be one that nobody reads
        if way == "import-hf" or name != "a bit flipped":
            said = _in_process(way, file, tmp_path / "release", data)
        else:
            said = _said(lambda: checkpoint_file.read(file))
        good = len(said) == 1 and "\n" not in said[0] and "weights_only" not in said[0]
        good = good and str(file.parent) in said[0] and not (tmp_path / MARK).exists()
        kind = "malicious pickle" if name in CODE else "forged or damaged checkpoint"
        ledger.note(f"{kind}, {way}", survived=good)
        assert good, (way, said)
    assert sorted(tmp_path.rglob("*")) == left, "something was written"
    assert _peak() - before < MEMORY


def test_the_forbidden_name_is_said(trained, state, tmp_path):
    CODE["os.system"](tmp_path / "x.pt", state)
    with pytest.raises(MuppetError) as caught:
        checkpoint_file.read(tmp_path / "x.pt")
    assert str(caught.value) == (
        f"{tmp_path / 'x.pt'} holds code besides tensors and plain values (posix.system), which is never run; "
        "take another one"
    )
    torch.load(tmp_path / "x.pt", weights_only=False)  # it would have
    Path(MARK).unlink()


@pytest.mark.parametrize("way", ["--restore-file", "--finetune-from-model", "resume"])
def test_training_from_it_is_refused(data, state, tmp_path, monkeypatch, ledger, tries, way):
    """With the environment's word for running it; in a fork, its memory bounded."""
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    monkeypatch.chdir(tmp_path)
    failed = {}
    for number, (name, make) in enumerate((CODE | FILES).items()):
        if (number + len(way)) % tries(16, 1):
            continue
        save_dir = tmp_path / str(number)
        save_dir.mkdir()
        file = save_dir / ("checkpoint_last.pt" if way == "resume" else "stranger.pt")
        make(file, state)
        more = () if way == "resume" else (way, str(file))
        run = Run(options(data, save_dir, *SHORT, "--max-update", "5", *more), save_dir / "out", memory=MEMORY)
        good = run.wait() == [1] and len(run.sentences()) == 1 and str(file) in run.sentences()[0]
        good = good and "Traceback" not in run.errors() and not (tmp_path / MARK).exists()
        ledger.note(f"{'malicious pickle' if name in CODE else 'forged or damaged checkpoint'}, {way}", survived=good)
        if not good:
            failed[name] = run.errors()[-2000:]
    assert not failed


# -- plain values that mean harm --------------------------------------------------------------------------


EVIL = f"__import__('os').system('touch {MARK}')"

#: of the options and the task's state, what no run has written
CONTENT: dict[str, Callable[[dict[str, Any]], Any]] = {
    "an option that fairseq evaluates": lambda state: _with(state, "model", adaptive_softmax_cutoff=EVIL),
    "a file of embeddings": lambda state: _with(state, "model", encoder_embed_path="/dev/zero"),
    "layers without end": lambda state: _with(state, "model", encoder_layers=10**9),
    "a width of a terabyte": lambda state: _with(state, "model", encoder_embed_dim=10**6),
    "a width below zero": lambda state: _with(state, "model", encoder_ffn_embed_dim=-1),
    "positions without end": lambda state: _with(state, "task", max_positions=10**10),
    "positions in words": lambda state: _with(state, "task", max_positions="many"),
    "an unknown architecture": lambda state: _with(state, "model", arch="os.system"),
    "an architecture that is a list": lambda state: _with(state, "model", arch=["a"]),
    "an unknown activation": lambda state: _with(state, "model", activation_fn="system"),
    "no options": lambda state: state | {"cfg": None},
    "options that are a list": lambda state: state | {"cfg": {"task": [1], "model": [2]}},
    "looked up in the environment": lambda state: _with(state, "model", arch="${oc.env:HOME}"),
    "a resolver": lambda state: _with(state, "task", data="${oc.create:${oc.env:HOME}}"),
    "a dataset with a path": lambda state: _datasets(state, name="../../elsewhere"),
    "a dataset that is a suite file": lambda state: _datasets(state, name="/etc/passwd.yaml"),
    "a head with a path": lambda state: _datasets(state, head="../x"),
    "an unknown family": lambda state: _datasets(state, family="os"),
    "classes without end": lambda state: _datasets(state, labels=["a"] * 20_000),
    "classes that are numbers": lambda state: _datasets(state, labels=[1, 2]),
    "datasets that are words": lambda state: state | {"task_state": {"specs": "abc"}},
    "datasets that are none": lambda state: state | {"task_state": {"specs": None}},
}


def _datasets(state: dict, **changes: Any) -> dict:
    first, *rest = state["task_state"]["specs"]
    return state | {"task_state": state["task_state"] | {"specs": [first | changes, *rest]}}


@pytest.fixture(scope="module")
def bart(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("bart")
    arguments = options(data, place / "run", *SHORT[:-2], "--arch", "muppet_bart_tiny", suite="animals,choices")
    finished(arguments, place / "out")
    return place


@pytest.mark.parametrize("name", CONTENT)
def test_options_of_a_stranger_are_not_followed(data, bart, tmp_path, monkeypatch, ledger, tries, name):
    """Of a BART, whose options fairseq reads with ``eval`` and opens as files."""
    tries(list(CONTENT).index(name) % 3 == 0, 1)
    monkeypatch.chdir(tmp_path)
    before = torch.load(bart / "run" / "checkpoint_last.pt", weights_only=True)
    file = tmp_path / "stranger.pt"
    torch.save(CONTENT[name](before), file)
    memory = _peak()
    for call in (lambda: _evaluated(file, data), lambda: release(file, tmp_path / "out", data)):
        said = _said(call)
        # what the architecture has no name for is left out: the model is as it was
        left_out = not said and name in ("a file of embeddings",)
        good = (left_out or (len(said) == 1 and str(file) in said[0] and "\n" not in said[0])) and not Path(
            MARK
        ).exists()
        ledger.note("plain values that mean harm, evaluate and release", survived=good)
        assert good, said
    assert _peak() - memory < MEMORY


def _history(state: dict, **changes: Any) -> dict:
    return state | {"optimizer_history": [state["optimizer_history"][-1] | changes]}


def _extra(state: dict, **changes: Any) -> dict:
    return state | {"extra_state": state["extra_state"] | changes}


def _moments(state: dict, **changes: Any) -> dict:
    optimizer = state["last_optimizer_state"]
    return state | {
        "last_optimizer_state": optimizer | {"state": {n: v | changes for n, v in optimizer["state"].items()}}
    }


def _iterator(state: dict, **changes: Any) -> dict:
    return _extra(state, train_iterator=state["extra_state"]["train_iterator"] | changes)


#: of a run's own state, what it could stumble over when it goes on
STATE: dict[str, Callable[[dict[str, Any]], Any]] = {
    "moments of another shape": lambda state: _moments(state, exp_avg=torch.zeros(3)),
    "moments of another shape that broadcasts": lambda state: _moments(state, exp_avg_sq=torch.zeros(())),
    "moments in words": lambda state: _moments(state, exp_avg="a"),
    "steps in words": lambda state: _moments(state, step="a"),
    "no moments": lambda state: _moments(state, exp_avg=None),
    "an optimizer that is a list": lambda state: state | {"last_optimizer_state": [1]},
    "fewer parameters": lambda state: state | {"last_optimizer_state": {"state": {}, "param_groups": []}},
    "no history": lambda state: state | {"optimizer_history": []},
    "a history in words": lambda state: state | {"optimizer_history": "abc"},
    "updates in words": lambda state: _history(state, num_updates="4"),
    "another optimizer": lambda state: _history(state, optimizer_name="FairseqNAG"),
    "a learning rate in words": lambda state: _history(state, lr_scheduler_state={"best": None, "lr": EVIL}),
    "no state": lambda state: {key: state[key] for key in state if key != "extra_state"},
    "state in words": lambda state: state | {"extra_state": "abc"},
    "meters in words": lambda state: _extra(state, metrics={"train": [[1, "loss", "AverageMeter", {"sum": "a"}]]}),
    "a meter that is none": lambda state: _extra(state, metrics={"train": [[1, "loss", "type_as", {}]]}),
    "an epoch in words": lambda state: _iterator(state, epoch="1"),
    "an epoch without end": lambda state: _iterator(state, epoch=10**30),
    "an epoch below zero": lambda state: _iterator(state, epoch=-5),
    "sub-batches without end": lambda state: _iterator(state, sub_batches_done=10**15),
    "sub-batches in words": lambda state: _iterator(state, sub_batches_done="a"),
}


@pytest.mark.parametrize("part", range(3))
def test_state_of_a_stranger_does_not_stop_a_run_midway(data, state, tmp_path, tries, ledger, part):
    failed = {}
    for number, (name, change) in enumerate(STATE.items()):
        if number % 3 != part or number % tries(10, 1):
            continue
        save_dir = tmp_path / str(number)
        save_dir.mkdir()
        file = save_dir / "checkpoint_last.pt"
        torch.save(change(state), file)
        run = Run(options(data, save_dir, *SHORT, "--max-update", "5"), save_dir / "out", memory=MEMORY)
        good = run.wait() == [1] and len(run.sentences()) == 1 and str(file) in run.sentences()[0]
        good = good and "Traceback" not in run.errors()
        ledger.note("plain values that mean harm, resume", survived=good)
        if not good:
            failed[name] = run.errors()[-1500:]
    assert not failed


def test_averaged_parameters_of_another_shape(data, state, tmp_path, tries):
    """Of ``--store-ema``."""
    tries(0, 1)
    (tmp_path / "run").mkdir()
    file = tmp_path / "run" / "checkpoint_last.pt"
    torch.save(_extra(state, ema={name: torch.zeros(3, 5, 7) for name in state["model"]}), file)
    run = Run(options(data, tmp_path / "run", *SHORT, "--max-update", "5", "--store-ema"), tmp_path / "out")
    assert run.wait() == [1]
    assert len(run.sentences()) == 1, run.errors()


def test_what_a_checkpoint_names_is_neither_imported_nor_read(data, trained, state, tmp_path, monkeypatch, ledger):
    """It may name anything: training, evaluation and the hub do as if it did not."""
    monkeypatch.chdir(tmp_path)
    package = tmp_path / "theirs"
    (package / "tasks").mkdir(parents=True)
    for place in (package, package / "tasks"):
        (place / "__init__.py").write_text(f"open({str(tmp_path / MARK)!r}, 'w')\n")
    os.mkfifo(tmp_path / "pipe.yaml")  # reading it would wait for ever
    named = dict.fromkeys(("data", "suite", "save_dir", "restore_file"), str(tmp_path / "pipe.yaml"))
    changed = _with(_with(state, "task", **named), "common", user_dir=str(package), tensorboard_logdir="/proc/nothing")
    changed = _with(changed, "model", user_dir=str(package), **named)
    file = _release_with(trained, tmp_path / "release", lambda path, state: torch.save(state, path), changed)
    _evaluated(file, data)
    assert MuppetHub.load(tmp_path / "release").classify("animals", "dog")["label"] in "01"
    save_dir = tmp_path / "run"
    more = ("--finetune-from-model", str(file), "--reuse-heads")
    finished(options(data, save_dir, *SHORT, "--max-update", "1", *more), tmp_path / "out")
    ledger.note("paths and modules named in a checkpoint", survived=not (tmp_path / MARK).exists())
    assert not (tmp_path / MARK).exists()
    assert not any("theirs" in name for name in sys.modules)


@pytest.mark.parametrize("name", ["os.system", "cut off"])
def test_two_workers_say_it_and_end(data, state, tmp_path, monkeypatch, ledger, tries, name):
    """The one that does not read the file would wait for it."""
    if name == "cut off":
        tries(0, 1)
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "stranger.pt"
    (CODE | FILES)[name](file, state)
    arguments = options(data, tmp_path / "run", *SHORT, "--update-freq", "2", "--finetune-from-model", str(file))
    run = Run(arguments, tmp_path / "out", workers=2)
    statuses = run.wait(60)
    said = [run.sentences(rank) for rank in range(2)]
    good = statuses == [1, 1] and said[0] == said[1] and len(said[0]) == 1 and str(file) in said[0][0]
    ledger.note("refused with two workers", survived=good)
    assert good, (statuses, said, run.errors(1)[-2000:])


def test_beside_a_torn_last_checkpoint_another_one_is_named(data, trained, tmp_path, ledger):
    """The newest that is whole; with the option that is named, the run ends where it would have."""
    save_dir = Path(shutil.copytree(trained / "run", tmp_path / "run"))
    os.truncate(save_dir / "checkpoint_last.pt", 100_000)
    _flip(save_dir / "checkpoint_1_4.pt")
    arguments = options(data, save_dir, *SHORT)
    run = Run(arguments, tmp_path / "out")
    assert run.wait() == [1]
    other = save_dir / "checkpoint_1_2.pt"
    (sentence,) = run.sentences()
    survived = f"; {other} (of update 2) is whole: go on from it with --restore-file {other}" in sentence
    ledger.note("torn checkpoint_last.pt", survived=survived)
    assert survived, sentence
    finished([*arguments, "--restore-file", str(other)], tmp_path / "out")
    assert equal(parameters(save_dir), parameters(trained / "run"))
