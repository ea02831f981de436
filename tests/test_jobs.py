"""Worker processes and threads: order, what is killed, what is left behind."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from muppet_fairseq.data.tokenizer import Tokenizer
from muppet_fairseq.errors import MuppetError
from preprocess import convert as convert_module
from preprocess.__main__ import prepare
from preprocess.download import Fetch
from preprocess.jobs import Workers, in_threads
from tests.toy_data import nli_entry, nli_rows, write_bert_tokenizer, write_wheel

ROOT = Path(__file__).parent.parent

KILLED = """
import time
from preprocess.jobs import Workers
if __name__ == "__main__":
    with Workers(2) as workers:
        for pid in workers.map(eval, ["__import__('os').getpid()"] * 20):
            print(pid, flush=True)
        print("all", flush=True)
        time.sleep(60)
"""


@pytest.fixture(scope="module")
def workers() -> Iterator[Workers]:
    with Workers(2) as workers:
        yield workers


class TestWorkers:
    def test_results_are_in_order(self, workers: Workers) -> None:
        assert list(workers.map(str, range(50))) == [str(number) for number in range(50)]

    def test_items_are_asked_for_when_they_are_needed(self, workers: Workers) -> None:
        asked = []
        results = workers.map(str, (asked.append(number) or number for number in range(50)))
        next(results)
        assert len(asked) <= 3 * workers.jobs + 1
        results.close()
        # what was given up holds nothing back
        assert list(workers.map(str, range(20))) == [str(number) for number in range(20)]

    def test_many_at_a_time_wait_for_one_another(self, workers: Workers) -> None:
        def consume(number: int) -> list[str]:
            return list(workers.map(str, range(number, number + 30)))

        expected = [[str(i) for i in range(number, number + 30)] for number in range(8)]
        assert list(in_threads(consume, range(8), 8)) == expected

    def test_what_a_function_raises_is_raised(self, workers: Workers) -> None:
        with pytest.raises(ValueError, match="invalid literal"):
            list(workers.map(int, ["1", "x", "3"]))
        assert list(workers.map(int, ["1"])) == [1]

    def test_a_killed_process_is_said(self) -> None:
        with (
            Workers(2) as workers,
            pytest.raises(MuppetError, match="a process was killed, perhaps for want of memory"),
        ):
            list(workers.map(os._exit, [9]))

    def test_a_killed_parent_leaves_no_processes(self, tmp_path: Path) -> None:
        script = tmp_path / "script.py"
        script.write_text(KILLED)
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        parent = subprocess.Popen([sys.executable, script], env=environment, stdout=subprocess.PIPE, text=True)
        pids = {int(line) for line in iter(parent.stdout.readline, "all\n")}
        assert pids
        parent.kill()
        parent.wait()
        parent.stdout.close()
        for _ in range(100):
            if not any(Path(f"/proc/{pid}").exists() for pid in pids):
                return
            time.sleep(0.1)
        pytest.fail(f"still there: {pids}")


class TestThreads:
    def test_as_many_as_wanted_at_a_time(self) -> None:
        together = threading.Barrier(3)
        assert list(in_threads(lambda _: together.wait(10) >= 0, range(6), 3)) == [True] * 6

    def test_the_first_exception_is_raised(self) -> None:
        results = in_threads(lambda number: 6 // (2 - number), range(4), 2)
        assert next(results) == 3
        assert next(results) == 6
        with pytest.raises(ZeroDivisionError):
            next(results)


def test_processes_make_no_difference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convert_module, "CHUNK_ITEMS", 20)
    rows = nli_rows(120)
    # a bad row of each chunk but the last
    for number in range(10, 100, 20):
        rows[number]["label"] = "perhaps"
    source = write_wheel(tmp_path, {"train.jsonl": rows})
    divided = nli_entry(source, name="divided")
    whole = nli_entry(source, name="whole", splits={"train": "train", "valid": "train"})
    tokenizer = Tokenizer.load(write_bert_tokenizer(tmp_path / "tokenizer"))
    made = []
    for jobs in (1, 2):
        out = tmp_path / f"out{jobs}"
        metas, failures = prepare([divided, whole], tokenizer, out, Fetch(tmp_path, tmp_path), 0.05, jobs=jobs)
        assert failures == []
        assert [meta["splits"]["train"]["dropped"] for meta in metas] == [{"bad row": 5}] * 2
        files = [path for path in sorted(out.rglob("*")) if path.is_file()]
        made.append({path.relative_to(out): path.read_bytes() for path in files})
    assert made[0] == made[1]
