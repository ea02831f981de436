"""``examples/serving``: what it answers is what the hub answers."""

from __future__ import annotations

import json
import random
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from muppet_fairseq.hub import MuppetHub
from tests.test_export_hf import Pair, passages, texts, write_pair

SERVING = Path(__file__).parents[1] / "examples" / "serving"


@pytest.fixture(scope="module", params=["bert"])
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return write_pair(request.param, tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="module")
def serve() -> dict[str, Any]:
    return runpy.run_path(str(SERVING / "serve.py"))


def test_classify(served: Pair, serve: dict[str, Any]) -> None:
    hub, rng = MuppetHub.load(served.release), random.Random(1)
    for _ in range(4):
        first, second = texts(rng, 2)
        ours = hub.classify("stances", first, second, truncate=True)
        theirs = serve["classify"](str(served.head("stances")), first, second)
        assert theirs["label"] == ours["label"]
        assert theirs["score"] == pytest.approx(ours["probabilities"][ours["label"]], abs=1e-4)
    text = passages()[0]
    theirs = serve["classify"](str(served.head("tones")), text)
    assert theirs["label"] == hub.classify("tones", text, truncate=True)["label"]


def test_a_number(served: Pair, serve: dict[str, Any]) -> None:
    hub, (first, second) = MuppetHub.load(served.release), texts(random.Random(2), 2)
    value = hub.score("likeness", first, second, truncate=True)["value"]
    assert serve["classify"](str(served.head("likeness")), first, second)["score"] == pytest.approx(value, abs=1e-4)


@pytest.mark.parametrize("served", ["bert", "bart"], indirect=True)
def test_choose(served: Pair, serve: dict[str, Any]) -> None:
    hub, rng = MuppetHub.load(served.release), random.Random(3)
    for _ in range(4):
        context, *choices = texts(rng, 4, 30)
        ours = hub.choose(context, choices, truncate=True)
        theirs = serve["choose"](str(served.head("commonsense")), context, *choices)
        assert theirs["choice"] == ours["text"]
        assert theirs["probabilities"] == pytest.approx(ours["probabilities"], abs=1e-4)


def test_answer(served: Pair, serve: dict[str, Any]) -> None:
    """In passages of one window: the example's overlap is not that of this model's training."""
    hub, rng = MuppetHub.load(served.release), random.Random(4)
    for question, passage in zip(texts(rng, 5, 6), texts(rng, 5, 15), strict=True):
        ours = hub.answer(question, passage)
        theirs = serve["answer"](str(served.head("mrc")), question, passage)
        assert theirs["score"] == pytest.approx(ours["score"], abs=1e-3)
        assert theirs["answer"] == ours["text"].strip()
    long = serve["answer"](str(served.head("mrc")), "what is it", passages()[1])
    assert long["answer"] in passages()[1]


@pytest.mark.parametrize("served", ["bart"], indirect=True)
def test_summarize(served: Pair, serve: dict[str, Any]) -> None:
    text = passages()[2]
    summary = serve["summarize"](str(served.exported), text)["summary"]
    assert summary.strip() == MuppetHub.load(served.release).summarize(text, truncate=True)


def test_the_command(served: Pair) -> None:
    """In a process of its own, which has nothing of ours."""
    arguments = [str(SERVING / "serve.py"), "choose", str(served.head("commonsense")), "a", "b", "c"]
    # torchaudio: see conftest.py
    code = """
import runpy, sys
sys.modules["torchaudio"] = None
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
assert not {"muppet_fairseq", "fairseq"} & {*sys.modules}
"""
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["choice"] in ("b", "c")


def test_wrong_folders_are_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    for script, more in (("serve.py", ["summarize", str(tmp_path), "a"]), ("to_onnx.py", [str(tmp_path), "out"])):
        monkeypatch.setattr(sys, "argv", [script, *more])
        with pytest.raises(SystemExit):
            runpy.run_path(str(SERVING / script), run_name="__main__")
        assert f"error: {tmp_path} holds no config.json; name a " in capsys.readouterr().err


def test_onnx(served: Pair, tmp_path: Path) -> None:
    to_onnx = runpy.run_path(str(SERVING / "to_onnx.py"))
    assert to_onnx["write_onnx"](str(served.head("stances")), str(tmp_path / "head.onnx")) < 1e-4
    assert (tmp_path / "head.onnx").stat().st_size > 100_000
