"""``muppet report`` on made-up runs: its numbers are numpy's, and what is missing is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from muppet_fairseq import cli
from muppet_fairseq.errors import MuppetError

#: score of each seed by dataset and start; accuracies, but for ``quotes``
SCORES = {
    "riddles": {"base": {1: 0.5, 2: 0.52, 3: 0.45}, "pre_finetuned": {1: 0.61, 2: 0.58, 3: 0.7}},
    "quotes": {"base": {1: 0.3, 2: 0.35, 3: 0.31}, "pre_finetuned": {1: 0.29, 2: 0.3, 3: 0.3}},
    "fables": {"base": {1: 0.8, 2: 0.81, 3: 0.82}, "pre_finetuned": {1: 0.81, 2: 0.8, 3: 0.83}},
}
SEEN = {"riddles": False, "quotes": False, "fables": True}
METRIC = {"riddles": "accuracy", "quotes": "macro_f1", "fables": "accuracy"}
EXAMPLES = {"riddles": 400, "quotes": 150, "fables": 60}


def valid_line(name: str, score: float, epoch: int = 3) -> str:
    """A line as fairseq logs it: the family's keys, the metrics, the loss; the other numbers are no score."""
    values: dict[str, Any] = {"epoch": epoch, "valid_loss": "0.97", "valid_score": str(score)}
    values |= {f"valid_{METRIC[name]}": str(score), f"valid_{name}_loss": str(score)}
    values |= {f"valid_{name}_{METRIC[name]}": str(score), f"valid_{name}_other": "0.01"}
    values["valid_examples"] = str(EXAMPLES[name])
    return f"2026-01-02 03:04:05 | INFO | valid | {json.dumps(values)}\n"


def write_run(runs: Path, name: str, start: str, seed: int, score: float, *, finished: bool = True) -> Path:
    folder = runs / "fine_tuning" / name / start / str(seed)
    folder.mkdir(parents=True)
    log = "2026-01-02 03:04:05 | INFO | fairseq_cli.train | begin\n" + valid_line(name, 0.123, epoch=1)
    (folder / "train.log").write_text(log + (valid_line(name, score) if finished else ""))
    if finished:
        described = {"dataset": name, "seen": SEEN[name], "examples": 100, "start": start, "seed": seed}
        (folder / "run.json").write_text(json.dumps(described))
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    for name, starts in SCORES.items():
        for start, seeds in starts.items():
            for seed, score in seeds.items():
                write_run(tmp_path, name, start, seed, score)
    return tmp_path


def reported(runs: Path, capsys: pytest.CaptureFixture[str]) -> tuple[dict[str, Any], str]:
    """``muppet report``: what it wrote as JSON, and its page."""
    cli.main(["report", str(runs)])
    page = (runs / "report.md").read_text()
    assert page in capsys.readouterr().out
    return json.loads((runs / "report.json").read_text()), page


def of(name: str, start: str, *seeds: int) -> np.ndarray:
    return 100 * np.array([SCORES[name][start][seed] for seed in seeds or (1, 2, 3)])


def gain_of(name: str, *seeds: int) -> float:
    return float(of(name, "pre_finetuned", *seeds).mean() - of(name, "base", *seeds).mean())


def cells(page: str) -> dict[str, list[str]]:
    """Rows of the table by dataset, in their order."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if line.startswith("|")]
    return {row[0]: row[1:] for row in rows[2:]}


def test_means_gains_and_spreads_are_numpys(runs, capsys):
    described, page = reported(runs, capsys)
    assert list(described["datasets"]) == ["quotes", "riddles", "fables"]  # kept out, then seen
    for name, values in described["datasets"].items():
        assert values["base"] == pytest.approx(of(name, "base"))
        assert values["pre_finetuned"] == pytest.approx(of(name, "pre_finetuned"))
        assert values["gain"] == pytest.approx(gain_of(name), abs=5e-4)
        assert (values["seen"], values["metric"], values["seeds"]) == (SEEN[name], METRIC[name], [1, 2, 3])
        assert values["test_examples"] == EXAMPLES[name]
    assert described["mean_gain"] == pytest.approx(np.mean([gain_of(name) for name in SCORES]), abs=5e-4)
    assert described["mean_gain_seen"] == pytest.approx(gain_of("fables"), abs=5e-4)
    assert described["mean_gain_kept_out"] == pytest.approx((gain_of("quotes") + gain_of("riddles")) / 2, abs=5e-4)
    assert described["missing"] == []
    assert described["pre_finetuning"] is None

    table = cells(page)
    assert list(table) == ["quotes", "riddles", "fables"]
    for name, (seen, metric, base, tuned, gain, allows) in table.items():
        assert (seen, metric) == ("seen" if SEEN[name] else "kept out", METRIC[name])
        for start, shown in (("base", base), ("pre_finetuned", tuned)):
            assert shown == f"{of(name, start).mean():.1f} ± {of(name, start).std(ddof=1):.1f}"
        assert gain == f"{gain_of(name):+.1f}"
        share = of(name, "base").mean() / 100
        assert allows == f"± {196 * np.sqrt(share * (1 - share) / EXAMPLES[name]):.1f}"


def test_the_words_name_what_was_lost_and_what_is_within_the_noise(runs, capsys):
    _, page = reported(runs, capsys)
    mean = np.mean([gain_of(name) for name in SCORES])
    assert f"gained {mean:+.1f} points on the average of 3 datasets; it gained on 2 of them." in page
    assert f"It lost on quotes ({gain_of('quotes'):+.1f})." in page
    assert "Too small for these test sets to tell from nothing: quotes, fables." in page
    assert "Mean and standard deviation over 3 seeds" in page
    assert "Missing" not in page


def test_the_plot_is_written(runs, capsys):
    reported(runs, capsys)
    plot = (runs / "gains.png").read_bytes()
    assert plot.startswith(b"\x89PNG\r\n")
    assert len(plot) > 5000
    assert sorted(path.name for path in runs.iterdir()) == ["fine_tuning", "gains.png", "report.json", "report.md"]


def test_runs_that_are_missing_are_left_out_and_named(runs, capsys):
    """A seed from one start only, a run that did not finish, a dataset from one start only: none is averaged."""
    (runs / "fine_tuning/riddles/pre_finetuned/3/run.json").unlink()
    write_run(runs, "fables", "base", 10, 0.99)
    write_run(runs, "fables", "pre_finetuned", 10, 0.01, finished=False)
    write_run(runs, "quotes", "pre_finetuned", 10, 0.01)
    for seed in (1, 2, 3):
        (runs / f"fine_tuning/quotes/base/{seed}/run.json").unlink()
    (runs / "fine_tuning/riddles/base/notes").mkdir()
    described, page = reported(runs, capsys)
    assert described["missing"] == [
        "fables/pre_finetuned/10",
        *(f"quotes/base/{seed}" for seed in (1, 2, 3, 10)),
        *("riddles/base/10", "riddles/pre_finetuned/3", "riddles/pre_finetuned/10"),
    ]
    assert f"Missing, so that no mean of the dataset has the seed: {', '.join(described['missing'])}." in page
    assert list(described["datasets"]) == ["riddles", "fables"]
    fables, riddles = described["datasets"]["fables"], described["datasets"]["riddles"]
    assert (fables["seeds"], riddles["seeds"]) == ([1, 2, 3], [1, 2])
    assert fables["base"] == pytest.approx(of("fables", "base"))
    assert riddles["base"] == pytest.approx(of("riddles", "base", 1, 2))
    assert riddles["gain"] == pytest.approx(gain_of("riddles", 1, 2), abs=5e-4)
    assert described["mean_gain"] == pytest.approx((gain_of("fables") + gain_of("riddles", 1, 2)) / 2, abs=5e-4)
    spread = of("riddles", "base", 1, 2).std(ddof=1)
    assert cells(page)["riddles"][2] == f"{of('riddles', 'base', 1, 2).mean():.1f} ± {spread:.1f}"
    assert "over 2 or 3 seeds" in page


def test_one_seed_has_no_spread(tmp_path, capsys):
    for start in ("base", "pre_finetuned"):
        write_run(tmp_path, "riddles", start, 7, SCORES["riddles"][start][1])
    described, page = reported(tmp_path, capsys)
    assert cells(page)["riddles"][2] == "50.0 ± 0.0"
    assert "mean_gain_seen" not in described


def test_pre_finetuning_is_described(runs, capsys):
    folder = runs / "pre_finetuning"
    folder.mkdir()
    line = '2026-01-02 03:04:05 | INFO | train | {"epoch": 1, "train_loss": "0.8125", "train_num_updates": "138"}\n'
    folder.joinpath("train.log").write_text(
        f"{line}2026-01-02 | INFO | fairseq_cli.train | done training in 321.5 seconds\n"
    )
    described, page = reported(runs, capsys)
    assert described["pre_finetuning"] == {"updates": 138, "final_loss": 0.8125, "seconds": 321.5}
    assert "Pre-finetuning: 138 updates in 32" in page


def sentence(runs: Path) -> str:
    with pytest.raises(MuppetError) as caught:
        cli.main(["report", str(runs)])
    assert not (runs / "report.json").exists()
    return str(caught.value)


CURE = "delete its folder and run it again"


def test_a_finished_run_without_a_result(runs):
    log = runs / "fine_tuning/riddles/base/2/train.log"
    log.write_text("2026-01-02 03:04:05 | INFO | train | {}\n")
    assert sentence(runs) == f"{log} has no line of 'valid': the run did not get there; {CURE}"
    log.unlink()
    assert sentence(runs) == f"{log} has no line of 'valid': the run did not get there; {CURE}"
    log.write_text(valid_line("quotes", 0.5))
    assert sentence(runs) == f"{log} has no score of riddles; {CURE}"
    log.write_text('x | valid | {"epoch": 3}\n')
    assert sentence(runs) == f"{log} has no score of riddles; {CURE}"


@pytest.mark.parametrize("content", ["", "{", "[]", "{}"])
def test_a_run_that_does_not_say_what_it_was(runs, content):
    path = runs / "fine_tuning/riddles/base/1/run.json"
    path.write_text(content)
    assert sentence(runs) == f"{path} does not say what was run; {CURE}"


def test_nothing_to_compare(tmp_path):
    said = f"{tmp_path} has no dataset that was fine-tuned from both starts; run the fine-tunings first"
    assert sentence(tmp_path) == said
    write_run(tmp_path, "riddles", "base", 1, 0.5)
    write_run(tmp_path, "riddles", "pre_finetuned", 2, 0.5)
    assert sentence(tmp_path) == said
