"""``muppet report`` on made-up studies: its numbers are numpy's and scipy's, and what is missing is said."""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from muppet_fairseq import cli
from muppet_fairseq.errors import MuppetError
from muppet_fairseq.report.compare import Comparison, Differences, holm, paired
from muppet_fairseq.report.describe import describe
from muppet_fairseq.report.page import html_page, page
from muppet_fairseq.report.read import read_studies
from muppet_fairseq.report.section import Section, sections
from muppet_fairseq.report.tables import comparison_table, pre_finetuning_table, scores_tables
from tests.study_runs import accuracy, column, fixed, start, write_run, write_study

GAIN = {"base": 0.0, "batch_homogeneous": 0.02, "batch_heterogeneous": 0.15}


def skill(name: str, variant: str | None, dataset: str, point: dict[str, Any], seed: int) -> float:
    share = float(variant.rstrip("%")) / 400 if variant and variant.endswith("%") else 0
    return 0.4 + GAIN.get(name, 0.1) + share + 0.03 * fixed(name, dataset, seed).standard_normal()


def section_of(*folders: Path) -> Section:
    (only,) = sections(read_studies(folders))
    return only


def rows_of(table: str) -> list[list[str]]:
    """Cells of a Markdown table, the line below its header left out."""
    rows = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in table.splitlines()]
    assert all(re.fullmatch("---:?", cell) for cell in rows[1])
    return [rows[0], *rows[2:]]


def run_json(runs: Path, tuning: dict[str, Any]) -> dict[str, Any]:
    return json.loads((runs / tuning["run"] / "run.json").read_text())


def tunings(study: dict[str, Any], begin: str, dataset: str) -> list[dict[str, Any]]:
    return [t for t in study["fine_tunings"] if t["start"] == begin and dataset in t["datasets"]]


def scores_of(runs: Path, study: dict[str, Any], begin: str, dataset: str) -> list[float]:
    """Percent, by seed."""
    found = [run_json(runs, t)["results"][dataset]["metrics"]["accuracy"] for t in tunings(study, begin, dataset)]
    return [100 * score for score in found]


def examples_of(runs: Path, study: dict[str, Any], begin: str, dataset: str) -> np.ndarray:
    """Percent ``[seeds, examples]``."""
    found = [run_json(runs, t)["results"][dataset]["example_scores"] for t in tunings(study, begin, dataset)]
    return 100 * np.array(found)


def comparison(section: Section, begin: str, column: str) -> Comparison:
    (found,) = [c for c in section.comparisons if (c.start.name, c.column) == (begin, column)]
    return found


def fail(runs: Path, tuning: dict[str, Any], reason: str = "out of memory") -> None:
    write_run(runs, tuning["run"], state="failed", reason=reason, training=None, results=None)


# numbers

BOTH_REFERENCES = pytest.mark.parametrize("reference", ["base", "batch_heterogeneous"])


@BOTH_REFERENCES
def test_the_table_has_means_spreads_and_differences(tmp_path, reference):
    study = write_study(tmp_path, skill, compared_with=reference)
    header, *rows = rows_of(scores_tables(section_of(tmp_path))[0])
    assert header == ["batching strategy", "Commonsense<br>PIQA", "SP<br>BoolQ", "mean"]
    scores = {begin: [scores_of(tmp_path, study, begin, d) for d in ("piqa", "boolq")] for begin in GAIN}
    for by_dataset in scores.values():
        by_dataset.append([statistics.mean(pair) for pair in zip(*by_dataset, strict=True)])
    plain_rows = [[re.sub("</?u>", "", cell) for cell in row] for row in rows]
    means = {begin: [statistics.mean(seeds) for seeds in scores[begin]] for begin in GAIN}
    expected = []
    for begin in GAIN:
        cells = [f"{statistics.mean(seeds):.1f} ± {statistics.stdev(seeds):.1f}" for seeds in scores[begin]]
        expected.append([begin.replace("_", " "), *cells])
        if begin != reference:
            gains = [a - b for a, b in zip(means[begin], means[reference], strict=True)]
            expected.append(["*difference*", *(f"{gain:+.1f}" for gain in gains)])
    assert plain_rows == expected
    (best,) = [row for row in rows if "<u>" in "".join(row)]
    assert best[0] == "batch heterogeneous"
    assert all(cell.startswith("<u>") for cell in best[1:])


@BOTH_REFERENCES
def test_comparisons_are_scipys(tmp_path, reference):
    study = write_study(tmp_path, skill, compared_with=reference)
    others = [begin for begin in GAIN if begin != reference]
    section = section_of(tmp_path)
    assert [(c.start.name, c.column) for c in section.comparisons] == [
        (begin, label) for begin in others for label in ("PIQA", "BoolQ", "mean")
    ]
    for begin in others:
        for label in ("PIQA", "BoolQ"):
            found = comparison(section, begin, label)
            ours, theirs = (np.array(scores_of(tmp_path, study, name, label.lower())) for name in (begin, reference))
            names = (begin, reference)
            by_example = [examples_of(tmp_path, study, name, label.lower()).mean(axis=0) for name in names]
            for test, differences in (
                (found.over_seeds, ours - theirs),
                (found.over_examples, by_example[0] - by_example[1]),
            ):
                assert (test.low, test.high) == pytest.approx(
                    stats.t.interval(0.95, len(differences) - 1, differences.mean(), stats.sem(differences))
                )
                assert test.p == pytest.approx(stats.ttest_1samp(differences, 0).pvalue)
                assert (test.pairs, test.difference) == (len(differences), pytest.approx(differences.mean()))
            assert found.difference == pytest.approx((ours - theirs).mean())
        gains = [
            np.subtract(*(examples_of(tmp_path, study, name, dataset).mean(axis=0) for name in (begin, reference)))
            for dataset in ("piqa", "boolq")
        ]
        welch = stats.ttest_ind(gains[0], -gains[1], equal_var=False)
        assert comparison(section, begin, "mean").over_examples.p == pytest.approx(welch.pvalue)
        both = [
            np.mean([scores_of(tmp_path, study, n, d) for d in ("piqa", "boolq")], axis=0) for n in (begin, reference)
        ]
        assert comparison(section, begin, "mean").over_seeds.p == pytest.approx(stats.ttest_rel(*both).pvalue)
    for kind in ("over_seeds", "over_examples"):
        tests = [test for c in section.comparisons if (test := getattr(c, kind))]
        assert [test.holm for test in tests] == holm([test.p for test in tests])


SCORES = st.lists(st.tuples(st.integers(0, 100), st.integers(0, 100)), min_size=2, max_size=30)


@given(SCORES)
def test_paired_is_students_test(pairs):
    values, base = np.array(pairs, dtype=float).T
    differences = values - base
    found = paired(Differences(differences))
    if len(set(differences)) == 1:
        assert found is None
        return
    n = len(differences)
    t = differences.mean() / (differences.std(ddof=1) / np.sqrt(n))
    assert found.p == pytest.approx(2 * stats.t.sf(abs(t), n - 1))
    half = stats.t.ppf(0.975, n - 1) * differences.std(ddof=1) / np.sqrt(n)
    assert found.low == pytest.approx(differences.mean() - half, abs=1e-9)
    assert found.high == pytest.approx(differences.mean() + half, abs=1e-9)


@given(SCORES, SCORES)
def test_the_mean_of_two_columns_is_welchs_test(one, two):
    first, second = (np.array(pairs, dtype=float) @ (1, -1) for pairs in (one, two))
    found = paired(Differences(first), Differences(second))
    if max(np.ptp(first), np.ptp(second)) == 0:
        assert found is None
        return
    assert found.pairs == found.groups == len(first) + len(second)
    assert found.difference == pytest.approx((first.mean() + second.mean()) / 2)
    # that the sum of two means is 0 is that the one equals the other's negative
    welch = stats.ttest_ind(first, -second, equal_var=False)
    interval = welch.confidence_interval(0.95)
    assert found.p == pytest.approx(welch.pvalue, abs=1e-12)
    assert (found.low, found.high) == pytest.approx((interval.low / 2, interval.high / 2), abs=1e-9)


def test_a_column_of_one_example_has_no_test():
    assert paired(Differences(np.array([1.0, 2.0, 4.0])), Differences(np.array([1.0]))) is None


@given(SCORES, st.integers(1, 4), st.randoms(use_true_random=False))
def test_pairs_about_the_same_thing_count_once(pairs, size, random):
    """Groups of the same size: the test is Student's of their means, whatever their order."""
    differences = (np.array(pairs, dtype=float) @ (1, -1))[: len(pairs) // size * size]
    groups = np.repeat(random.sample(range(100), len(differences) // size), size)
    order = np.array(random.sample(range(len(differences)), len(differences)), dtype=int)
    found = paired(Differences(differences[order], groups[order]))
    means = differences.reshape(-1, size).mean(axis=1)
    if len(means) < 2 or np.ptp(means) == 0:
        assert found is None
        return
    assert (found.pairs, found.groups) == (len(differences), len(means))
    assert found.p == pytest.approx(stats.ttest_1samp(means, 0).pvalue, abs=1e-12)
    interval = stats.t.interval(0.95, len(means) - 1, means.mean(), stats.sem(means))
    assert (found.low, found.high) == pytest.approx(interval, abs=1e-9)


def test_clusters_of_different_sizes():
    """statsmodels 0.15.0: ``OLS(values, ones).fit(cov_type="cluster", cov_kwds={"groups": groups}, use_t=True)``."""
    values, groups = np.array([3.0, 1, -2, 4, 0, 5, 2, 7]), np.array([0, 0, 0, 1, 2, 2, 3, 1])
    found = paired(Differences(values, groups))
    assert (found.pairs, found.groups, found.difference) == (8, 4, 2.5)
    assert (found.low, found.high, found.p) == pytest.approx((-1.24585781875551, 6.24585781875551, 0.123715067011958))


def test_runs_of_which_some_know_no_groups(tmp_path):
    study = write_study(tmp_path, skill, columns=[column("ANLI", "anli_r1", "anli_r2")], seeds=(1, 2), examples=60)
    assert comparison(section_of(tmp_path), "batch_homogeneous", "ANLI").over_examples.groups == 120
    for tuning in study["fine_tunings"]:
        if (tuning["start"], tuning["seed"]) == ("base", 2):
            results = run_json(tmp_path, tuning)["results"]
            results["anli_r2"]["example_groups"] = [number // 3 for number in range(60)]
            write_run(tmp_path, tuning["run"], results=results)
    section = section_of(tmp_path)
    test = comparison(section, "batch_homogeneous", "ANLI").over_examples
    assert (test.pairs, test.groups) == (120, 60 + 20)
    ours, base = (
        np.hstack([examples_of(tmp_path, study, name, dataset).mean(axis=0) for dataset in ("anli_r1", "anli_r2")])
        for name in ("batch_homogeneous", "base")
    )
    groups = np.concatenate([np.arange(60), 60 + np.arange(60) // 3])
    assert test == replace(paired(Differences(ours - base, groups)), holm=test.holm)
    other = comparison(section, "batch_heterogeneous", "ANLI").over_examples
    assert other.groups == 80  # of the base's again
    assert "clustered by that, where the runs know of it" in page([section])


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.5]) == [1, 1]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), max_size=12), st.floats(0.001, 0.999))
def test_holm_rejects_what_the_steps_down_reject(p, level):
    """Holm's procedure: go up the sorted p-values while p <= level / (number left)."""
    rejected, left = set(), sorted(range(len(p)), key=lambda place: p[place])
    while left and p[left[0]] * len(left) <= level:
        rejected.add(left.pop(0))
    assert {place for place, corrected in enumerate(holm(p)) if corrected <= level} == rejected


def test_pooled_columns_weigh_by_test_examples(tmp_path):
    columns = [column("ANLI", "anli_r1", "anli_r2")]
    study = write_study(tmp_path, skill, columns=columns, seeds=(1, 2))
    sizes = {"anli_r1": 30, "anli_r2": 70}
    expected = {}
    for tuning in study["fine_tunings"]:
        right = {name: (fixed(tuning["run"], name).random(size) < 0.6).astype(float) for name, size in sizes.items()}
        write_run(tmp_path, tuning["run"], results={name: accuracy(scores) for name, scores in right.items()})
        expected[tuning["start"], tuning["seed"]] = np.concatenate(list(right.values()))
    section = section_of(tmp_path)
    cell = section.models[0].cells["base", None, "ANLI"]
    assert cell.values([1, 2]) == pytest.approx([100 * expected["base", seed].mean() for seed in (1, 2)])
    found = comparison(section, "batch_homogeneous", "ANLI")
    ours, base = (
        np.mean([expected[begin, seed] for seed in (1, 2)], axis=0) for begin in ("batch_homogeneous", "base")
    )
    assert found.over_examples.p == pytest.approx(stats.ttest_rel(ours, base).pvalue)
    assert "mean" not in rows_of(scores_tables(section)[0])[0]  # of one column


def test_metrics_that_cannot_be_pooled(tmp_path):
    study = write_study(tmp_path, skill, columns=[column("both", "piqa", "squad")])
    first = study["fine_tunings"][0]
    results = run_json(tmp_path, first)["results"]
    results["squad"]["metrics"] = {"f1": 0.5}
    write_run(tmp_path, first["run"], results=results)
    with pytest.raises(MuppetError, match=r"column 'both' pools piqa, squad, whose metrics differ \(accuracy, f1\)"):
        _ = section_of(tmp_path).comparisons


def test_metrics_that_papers_join(tmp_path):
    study = write_study(tmp_path, skill, columns=[column("SQuAD"), column("XSum"), column("MRPC")], seeds=(1, 2))
    metrics = {
        "squad": [{"f1": 0.8, "em": 0.7}, {"f1": 0.9, "em": 0.74}],
        "xsum": [{"rouge2": 0.1, "rouge1": 0.3, "rougeL": 0.2}, {"rouge2": 0.2, "rouge1": 0.4, "rougeL": 0.3}],
        "mrpc": [{"f1": 0.8, "accuracy": 0.7}, {"f1": 0.8, "accuracy": 0.7}],
    }
    for tuning in study["fine_tunings"]:
        results = run_json(tmp_path, tuning)["results"]
        (name,) = results
        results[name]["metrics"] = metrics[name][tuning["seed"] - 1]
        write_run(tmp_path, tuning["run"], results=results)
    section = section_of(tmp_path)
    shown = rows_of(scores_tables(section)[0])
    sds = {name: statistics.stdev(100 * next(iter(m.values())) for m in both) for name, both in metrics.items()}
    # ties are all underlined
    for row in (shown[1], shown[2], shown[4]):
        assert row[1:4] == [
            f"<u>72.0/85.0</u> ± {sds['squad']:.1f}",
            f"<u>35.0/15.0/25.0</u> ± {sds['xsum']:.1f}",
            "<u>80.0</u> ± 0.0",
        ]
    text = page([section])
    assert "Metrics: em/f1 (SQuAD); rouge1/rouge2/rougeL (XSum); f1 (MRPC)." in text
    assert "Of several, f1 and rouge2 counts" in text
    assert comparison(section, "batch_homogeneous", "MRPC").over_seeds is None  # no spread


# what is not there


def test_missing_failed_and_unfinished_runs_are_said(tmp_path):
    study = write_study(tmp_path, skill)
    missing = tunings(study, "batch_homogeneous", "boolq")[2]
    (tmp_path / missing["run"] / "run.json").unlink()
    for tuning in tunings(study, "batch_heterogeneous", "boolq"):
        fail(tmp_path, tuning)
    unfinished = tunings(study, "base", "piqa")[0]
    write_run(tmp_path, unfinished["run"], state="running", training=None, results=None)
    section = section_of(tmp_path)
    text = page([section])
    assert "20 runs: 15 finished, 3 failed, 1 unfinished, 1 not started." in text
    paths = ", ".join(tuning["run"] for tuning in tunings(study, "batch_heterogeneous", "boolq"))
    assert f"- failed: out of memory: {paths}\n" in text
    rows = {row[0]: row[1:] for row in rows_of(scores_tables(section)[0]) if row[0] != "*difference*"}
    piqa = scores_of_finished(tmp_path, study, "base", "piqa", (2, 3))
    assert rows["base"][0] == f"{np.mean(piqa):.1f} ± {np.std(piqa, ddof=1):.1f} (2 of 3 seeds)"
    assert rows["base"][2].endswith(" (2 of 3 seeds)")
    assert rows["batch homogeneous"][1].endswith(" (2 of 3 seeds)")
    assert rows["batch heterogeneous"][1:] == ["failed", "failed"]

    # compared over common seeds only
    assert comparison(section, "batch_homogeneous", "PIQA").seeds == (2, 3)
    assert comparison(section, "batch_homogeneous", "mean").seeds == (2,)
    assert comparison(section, "batch_homogeneous", "mean").over_seeds is None
    assert comparison(section, "batch_heterogeneous", "BoolQ").difference is None
    ours = scores_of_finished(tmp_path, study, "batch_homogeneous", "piqa", (2, 3))
    differences = np.array(ours) - piqa
    assert comparison(section, "batch_homogeneous", "PIQA").over_seeds.p == pytest.approx(
        stats.ttest_1samp(differences, 0).pvalue
    )
    compared = rows_of(comparison_table(section))
    assert ["batch heterogeneous", "BoolQ", "no common seed", "", "", "", ""] in compared


def scores_of_finished(
    runs: Path, study: dict[str, Any], begin: str, dataset: str, seeds: Sequence[int]
) -> list[float]:
    chosen = [t for t in tunings(study, begin, dataset) if t["seed"] in seeds]
    return [100 * run_json(runs, t)["results"][dataset]["metrics"]["accuracy"] for t in chosen]


def test_nothing_has_started(tmp_path, capsys):
    study = write_study(tmp_path, skill)
    for path in [t["run"] for t in study["fine_tunings"]] + [path for s in study["starts"] for path in s["runs"]]:
        (tmp_path / path / "run.json").unlink()
    cli.main(["report", str(tmp_path)])
    assert "20 runs: 20 not started." in capsys.readouterr().out
    text = (tmp_path / "report.md").read_text()
    assert text.count("| missing | missing | missing |") == 3
    assert "![" not in text
    assert not (tmp_path / "figures").exists()


def test_one_seed_has_no_spread_and_no_test_over_seeds(tmp_path):
    write_study(tmp_path, skill, seeds=(7,))
    section = section_of(tmp_path)
    text = page([section])
    assert "±" not in text
    assert text.count("One seed") == 1
    assert all(c.over_seeds is None for c in section.comparisons)
    assert all(c.over_examples for c in section.comparisons)


def test_different_numbers_of_test_examples(tmp_path):
    study = write_study(tmp_path, skill)
    write_run(tmp_path, tunings(study, "base", "piqa")[0]["run"], results={"piqa": accuracy(np.ones(5))})
    section = section_of(tmp_path)
    assert comparison(section, "batch_homogeneous", "PIQA").over_examples is None
    assert comparison(section, "batch_homogeneous", "BoolQ").over_examples
    text = page([section])
    assert "No test over examples, because the runs have different numbers of test examples: PIQA, mean." in text
    assert text.count("Not tested: PIQA (") == 2


def test_the_words_tell_gains_from_noise(tmp_path):
    write_study(tmp_path, lambda name, *_: 0.9 if name == "batch_heterogeneous" else 0.4, examples=400)
    section = section_of(tmp_path)
    (sure, unsure) = (comparison(section, begin, "PIQA") for begin in ("batch_heterogeneous", "batch_homogeneous"))
    assert sure.over_examples.holm < 0.05 < unsure.over_examples.holm
    text = page([section])
    mean = np.mean([comparison(section, "batch_heterogeneous", label).difference for label in ("PIQA", "BoolQ")])
    test = comparison(section, "batch_heterogeneous", "mean").over_examples
    assert (
        f"- **batch heterogeneous**: {mean:+.1f} points on average ({test.low:+.1f} to {test.high:+.1f}), "
        f"higher on 2 of 2. Significant: PIQA ({sure.difference:+.1f}); BoolQ (" in text
    )
    assert re.search(r"- \*\*batch homogeneous\*\*: .* Not significant: PIQA \(.*\); BoolQ \(.*\)\.\n", text)


# hyper-parameters


def of_points(tmp_path: Path, scores: dict[float, list[float | None]]) -> Section:
    """A study of one dataset from the base with a learning rate's score for each seed; None: the run failed."""
    grid = [{"lr": lr} for lr in scores]
    study = write_study(
        tmp_path, skill, starts=[start("base")], columns=[column("PIQA")], grid=grid, seeds=(1, 2, 3), examples=4
    )
    for tuning in study["fine_tunings"]:
        score = scores[tuning["hyper_parameters"]["lr"]][tuning["seed"] - 1]
        if score is None:
            fail(tmp_path, tuning)
        else:
            write_run(tmp_path, tuning["run"], results={"piqa": accuracy(np.full(4, score))})
    return section_of(tmp_path)


@pytest.mark.parametrize(
    ("scores", "chosen", "shown"),
    [
        ({0.1: [0.5, 0.5, 0.5], 0.2: [0.4, 0.7, 0.6], 0.3: [0.5, 0.5, 0.5]}, 0.2, "56.7 ± 15.3"),
        ({0.1: [0.5, 0.5, 0.5], 0.2: [0.9, None, 0.9]}, 0.1, "50.0 ± 0.0"),  # more seeds before a better score
        ({0.1: [0.2, 0.2, None], 0.2: [0.3, None, 0.5]}, 0.2, "40.0 ± 14.1 (2 of 3 seeds)"),
        ({0.1: [0.5, 0.6, 0.7], 0.2: [0.7, 0.6, 0.5]}, 0.1, "60.0 ± 10.0"),  # the first of equals
        ({0.1: [None, None, None], 0.2: [None, None, None]}, 0.1, "failed"),
    ],
)
def test_the_chosen_point(tmp_path, scores, chosen, shown):
    section = of_points(tmp_path, scores)
    (choice,) = section.models[0].choices
    assert choice.hyper_parameters == {"lr": chosen}
    assert choice.points == len(scores)
    assert choice.complete_points == sum(None not in by_seed for by_seed in scores.values())
    assert rows_of(scores_tables(section)[0])[1] == ["base", shown]
    text = page([section])
    assert "chosen on the same examples that are reported, as in the paper" in text
    assert "Every start has the same grid" in text


def test_grids_that_differ_are_said(tmp_path):
    study = write_study(tmp_path, skill, grid=[{"lr": 0.1}, {"lr": 0.2}])
    (tmp_path / "studies/batching/study.json").write_text(
        json.dumps(study | {"fine_tunings": study["fine_tunings"][1:]})
    )
    assert "Every start has the same grid" in page([section_of(tmp_path)])  # only a seed less
    fewer = [t for t in study["fine_tunings"] if (t["start"], t["hyper_parameters"]["lr"]) != ("base", 0.1)]
    (tmp_path / "studies/batching/study.json").write_text(json.dumps(study | {"fine_tunings": fewer}))
    assert "The starts' grids are not the same" in page([section_of(tmp_path)])


def test_one_point_needs_no_table(tmp_path):
    write_study(tmp_path, skill)
    text = page([section_of(tmp_path)])
    assert "The same for every fine-tuning: lr 0.0001, adam-eps 1e-06, dropout 0.1." in text
    assert "chosen on the same examples" not in text


# kinds of studies


SHARES = ["10%", "100%", "55%"]
SCALE = [start("base"), start("n40", 40), start("n10", 10)]


def test_variants_have_rows(tmp_path):
    write_study(tmp_path, skill, columns=[column("A1"), column("A2")], variants=["S,M", "+F"], seeds=(1,))
    header, *rows = rows_of(scores_tables(section_of(tmp_path))[0])
    assert header[:2] == ["batching strategy", "training set"]
    assert [row[:2] for row in rows[:6]] == [
        *(["base", "S,M"], ["", "+F"]),
        *(["batch homogeneous", "S,M"], ["", "*difference*"], ["", "+F"], ["", "*difference*"]),
    ]


def test_a_heat_map_has_a_table_for_each_dataset(tmp_path):
    study = write_study(
        tmp_path, skill, starts=SCALE, variants=SHARES, figure="heat_map", axis="datasets", seeds=(1,), examples=50
    )
    section = section_of(tmp_path)
    tables = [text.partition("\n\n") for text in scores_tables(section)]
    assert [name for name, _, _ in tables] == ["**PIQA**", "**BoolQ**", "**mean**"]
    header, *rows = rows_of(tables[0][2])
    assert header == ["datasets", "10%", "55%", "100%"]
    assert [row[0] for row in rows] == ["base", "n40", "n10"]
    for begin, row in zip(("base", "n40", "n10"), rows, strict=True):
        by_variant = dict(
            zip(
                [t["variant"] for t in tunings(study, begin, "piqa")],
                scores_of(tmp_path, study, begin, "piqa"),
                strict=True,
            )
        )
        assert [re.sub("</?u>", "", cell) for cell in row[1:]] == [f"{by_variant[v]:.1f}" for v in header[1:]]
    for place in (1, 2, 3):  # the best of every share
        best = max(re.sub("</?u>", "", row[place]) for row in rows)
        assert [row[place] for row in rows if "<u>" in row[place]] == [
            f"<u>{best}</u>" for row in rows if re.sub("</?u>", "", row[place]) == best
        ]
    assert len(section.comparisons) == 2 * 3 * 3
    assert re.search(r"- \*\*n40\*\*: .* higher on \d of 6\.", page([section]))


def test_several_models_share_a_table(tmp_path, capsys):
    small, bart = tmp_path / "small", tmp_path / "bart"
    columns = [column("MNLI", group="GLUE"), column("SQuAD", group="MRC"), column("RTE", group="GLUE")]
    starts = [start("base"), start("MUPPET")]
    write_study(small, skill, study="glue", starts=starts, columns=columns[:2])
    write_study(bart, skill, study="glue", starts=starts, columns=columns, model="BART | small")
    with pytest.raises(MuppetError, match="2 folders were given; say with --out where their report goes"):
        cli.main(["report", str(small), str(bart)])
    cli.main(["report", str(small), str(bart), "--out", str(tmp_path / "out")])
    section = section_of(small, bart)
    (table,) = scores_tables(section)
    assert table in capsys.readouterr().out
    header, *rows = rows_of(table)
    assert header == ["model", "batching strategy", "GLUE<br>MNLI", "<br>RTE", "MRC<br>SQuAD", "mean"]
    assert [row[:2] for row in rows] == [
        *(["MiniLM", "base"], ["", "MUPPET"], ["", "*difference*"]),
        *(["BART \\| small", "base"], ["", "MUPPET"], ["", "*difference*"]),
    ]
    for row in rows[:2]:
        assert (row[3], row[5]) == ("-", "-")  # no RTE, so no mean to hold against the other model's
    assert "-" not in rows[3] + rows[4]
    assert [c.model for c in section.comparisons] == ["MiniLM"] * 3 + ["BART | small"] * 4
    described = json.loads((tmp_path / "out/report.json").read_text())
    assert [model["label"] for model in described["studies"]["glue"]["models"]] == ["MiniLM", "BART | small"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        *("figures", "report.html", "report.json", "report.md"),
    ]
    assert sorted(path.name for path in small.iterdir()) == ["fine_tuning", "pre_finetuning", "studies"]


def test_models_without_a_column_in_common(tmp_path):
    write_study(tmp_path / "a", skill, columns=[column("PIQA")], seeds=(1,))
    write_study(tmp_path / "b", skill, columns=[column("BoolQ")], seeds=(1,), model="BART")
    header, base, *_ = rows_of(scores_tables(section_of(tmp_path / "a", tmp_path / "b"))[0])
    assert header[2:] == ["PIQA", "BoolQ"]
    assert base[3] == "-" != base[2]


def test_scales_of_a_model_are_told_apart(tmp_path):
    for scale in ("mini", "paper"):
        write_study(tmp_path / scale, skill, scale=scale)
    assert section_of(tmp_path / "mini", tmp_path / "paper").labels == ["MiniLM, mini", "MiniLM, paper"]


# what is written


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the report of a study of each kind, not all of whose runs have finished."""
    runs = tmp_path_factory.mktemp("runs")
    study = write_study(runs, skill, title="Batching <b>*strategies*</b> | all", grid=[{"lr": 0.1}, {"lr": 0.2}])
    for tuning in tunings(study, "batch_homogeneous", "boolq"):
        fail(runs, tuning, "status 1: | <script> *x*\nlast line")
    shared = {"starts": SCALE, "axis": "datasets", "seeds": (1, 2), "examples": 50}
    scale = write_study(runs, skill, study="scale", title="Scale", figure="lines", **shared)
    for tuning in tunings(scale, "n10", "piqa"):
        (runs / tuning["run"] / "run.json").unlink()
    low = write_study(
        runs, skill, study="low", title="Low resource", figure="heat_map", variants=[*SHARES, "33%"], **shared
    )
    for tuning in tunings(low, "n10", "piqa")[:2]:
        (runs / tuning["run"] / "run.json").unlink()
    cli.main(["report", str(runs)])
    return runs


def tables_in(text: str) -> list[str]:
    return re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE)


def test_every_table_of_the_page_is_one(reported):
    text = (reported / "report.md").read_text()
    tables = tables_in(text)
    # scores (a heat map has three), comparisons, hyper-parameters of the only grid, pre-finetuning
    assert len(tables) == (1 + 1 + 3) + 3 + 1 + 3
    for table in tables:
        rows = rows_of(table)
        assert {len(row) for row in rows} == {len(rows[0])}
        assert len(rows) > 1


class Structure(HTMLParser):
    """Tags that are open, ids, links and text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open, self.ids, self.outside, self.counts, self.words = [], [], [], {}, ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "br", "hr", "img"):
            self.open.append(tag)
        self.handle_startendtag(tag, attrs)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.counts[tag] = self.counts.get(tag, 0) + 1
        self.ids += [value for name, value in attrs if name == "id"]
        self.outside += [v for n, v in attrs if n in ("src", "href", "xlink:href") and v[0] != "#"]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data


def test_the_html_page_is_whole_and_stands_alone(reported):
    text = (reported / "report.html").read_text()
    found = Structure(text)
    assert found.open == []
    assert all(link.startswith("data:image/png;base64,") for link in found.outside)
    assert len(found.ids) == len(set(found.ids))
    assert found.counts["svg"] == found.counts["figure"] == 3
    assert found.counts["table"] == len(tables_in((reported / "report.md").read_text()))
    assert found.counts["details"] == text.count("</details>") >= 1
    assert "b" not in found.counts
    assert "script" not in found.counts
    assert "Batching <b>*strategies*</b> | all" in found.words
    assert "failed: status 1: | <script> *x* last line: fine_tuning/boolq/" in found.words


def test_figures_are_drawn_the_same_each_time(reported, tmp_path):
    names = ["batching", "low", "scale"]
    assert sorted(p.name for p in (reported / "figures").iterdir()) == [
        f"{n}.{k}" for n in names for k in ("png", "svg")
    ]
    cli.main(["report", str(reported), "--out", str(tmp_path)])
    for name in names:
        ElementTree.parse(reported / f"figures/{name}.svg")
        png = (reported / f"figures/{name}.png").read_bytes()
        assert png.startswith(b"\x89PNG\r\n")
        assert len(png) > 10_000
        for kind in ("png", "svg"):
            assert (tmp_path / f"figures/{name}.{kind}").read_bytes() == (
                reported / f"figures/{name}.{kind}"
            ).read_bytes()
    for file in ("report.md", "report.html", "report.json"):
        assert (tmp_path / file).read_bytes() == (reported / file).read_bytes()


def test_records_make_the_same_report(reported, tmp_path):
    records, before = tmp_path / "records", (reported / "report.md").read_bytes()
    cli.main(["report", str(reported), "--out", str(tmp_path / "out"), "--records", str(records)])
    studies = [f"studies/{name}/study.json" for name in ("batching", "low", "scale")]
    there = sorted(str(path.relative_to(records)) for path in records.rglob("*") if path.is_file())
    assert there == ["runs.jsonl", *studies]
    cli.main(["report", str(records)])
    made = [path for path in records.rglob("*") if path.is_file() and str(path.relative_to(records)) not in there]
    assert len(made) == 9
    for path in made:
        assert path.read_bytes() == (reported / path.relative_to(records)).read_bytes()
    assert (records / "report.md").read_bytes() == before


def test_records_of_other_studies_stay_and_runs_that_none_names_go(tmp_path):
    records = tmp_path / "records"
    for name in ("first", "second"):
        write_study(tmp_path / name, skill, study=name, examples=4)
        cli.main(["report", str(tmp_path / name), "--out", str(tmp_path / "out"), "--records", str(records)])
    both = (records / "runs.jsonl").read_text()
    assert len({study.name for study in read_studies([records])}) == 2
    assert all(run.finished for study in read_studies([records]) for run in study.runs)
    (records / "runs.jsonl").write_text(both + both.splitlines()[0].replace('"path": "', '"path": "other/') + "\n")
    cli.main(["report", str(tmp_path / "first"), "--out", str(tmp_path / "out"), "--records", str(records)])
    assert (records / "runs.jsonl").read_text() == both


def test_records_that_cannot_be_used(tmp_path):
    study = write_study(tmp_path / "runs", skill, examples=4)
    assert sentence(tmp_path / "runs", "--records", tmp_path / "runs").endswith(
        "is the folder of the runs itself; name another one"
    )
    several = (tmp_path / "runs", tmp_path / "more", "--out", tmp_path / "out", "--records", tmp_path / "records")
    assert sentence(*several).endswith("--records takes the runs of one")
    cli.main(["report", str(tmp_path / "runs"), "--records", str(tmp_path / "records")])
    file = tmp_path / "records/runs.jsonl"
    for content in ("{}\n", '{"path": "x", "format": 1}\n', file.read_text()[:-9]):
        file.write_text(content)
        assert sentence(tmp_path / "records").startswith(f"{file} is not what 'muppet study' writes (")
    file.write_text("")
    cli.main(["report", str(tmp_path / "records")])
    assert f"{len(study['fine_tunings']) + 2} not started" in (tmp_path / "records/report.md").read_text()


def texts_of(section: Section) -> list[str]:
    """All that the figure's panels say."""
    from muppet_fairseq.report import figures

    kinds = {"bars": figures._bars, "lines": figures._lines, "curves": figures._curves, "heat_map": figures._heat_maps}
    figure = kinds[section.study.figure](section)
    return [text.get_text() for axes in figure.axes for text in (*axes.texts, axes.title)]


def test_figures_say_what_is_missing_and_print_cells(reported):
    by_name = {section.study.name: section for section in sections(read_studies([reported]))}
    assert texts_of(by_name["batching"]).count("failed") == 1
    assert texts_of(by_name["scale"]) == ["missing", "PIQA", "BoolQ", "missing", "mean"]
    low = by_name["low"]
    cells = [cell for (_, _, label), cell in low.models[0].cells.items() if label != "mean" and cell.seeds]
    assert len(cells) == 2 * 3 * 4 - 1
    assert sorted(texts_of(low)) == sorted([f"{cell.mean:.1f}" for cell in cells] + ["PIQA", "BoolQ"])


def test_curves_are_a_line_for_each_start_over_the_variants(tmp_path):
    from muppet_fairseq.report import figures

    variants = ("4", "16", "32")
    study = write_study(tmp_path, skill, figure="curves", variants=variants)
    for tuning in tunings(study, "batch_heterogeneous", "piqa"):
        if tuning["variant"] == "16":
            fail(tmp_path, tuning)
    section = section_of(tmp_path)
    figure = figures._curves(section)
    assert [axes.get_title() for axes in figure.axes] == ["PIQA", "BoolQ", "mean"]
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["base", "batch homogeneous", "batch heterogeneous"]
    first, *_ = figure.axes
    assert [label.get_text() for label in first.get_xticklabels()] == list(variants)
    for container, begin in zip(first.containers, section.study.starts, strict=True):
        cells = [section.models[0].cells[begin.name, variant, "PIQA"] for variant in variants]
        drawn = [(place, cell.mean) for place, cell in enumerate(cells) if cell.seeds]
        assert len(drawn) == (2 if begin.name == "batch_heterogeneous" else 3)
        np.testing.assert_allclose(container.lines[0].get_xydata(), drawn)
    assert len({(c.lines[0].get_marker(), c.lines[0].get_linestyle()) for c in first.containers}) == 3
    assert [row[:2] for row in rows_of(scores_tables(section)[0])[1:4]] == [["base", "4"], ["", "16"], ["", "32"]]


COUNTS = {"base": (0, 1000, 0), "batch_homogeneous": (48, 0, 1000), "batch_heterogeneous": (48, 12, 988)}


def write_counts(runs: Path, study: dict[str, Any], counts: dict[str, tuple[int, int, int]]) -> None:
    """Add to runs what they have trained: prompts, others and frozen; heads of 10 for PIQA and 2 for BoolQ."""
    for tuning in study["fine_tunings"]:
        prompts, others, frozen = counts[tuning["start"]]
        heads = 10 if tuning["datasets"] == ["piqa"] else 2
        parameters = {"prompts": prompts, "heads": heads, "others": others, "frozen": frozen}
        training = {"updates": 60, "loss": 0.83, "parameters": parameters}
        write_run(runs, tuning["run"], training=training, results=run_json(runs, tuning)["results"])


@pytest.mark.parametrize("variants", [(None,), ("4", "16")])
def test_a_column_says_how_many_parameters_were_trained(tmp_path, variants):
    study = write_study(tmp_path, skill, variants=variants)
    write_counts(tmp_path, study, COUNTS)
    section = section_of(tmp_path)
    text = scores_tables(section)[0]
    assert "trained" in text.splitlines()[0]
    said = [row[-4] for row in rows_of(text)[1:] if "*difference*" not in row]
    expected = [f"{number:,} + 2 to 10 of heads" for number in (1000, 48, 60) for _ in variants]
    assert said == expected
    assert describe([section])["studies"]["batching"]["models"][0]["fine_tunings"][0]["parameters"] == {
        **{"prompts": 0, "heads": 10, "others": 1000, "frozen": 0}
    }


def test_no_column_says_what_is_the_same_for_all_or_not_known(tmp_path):
    study = write_study(tmp_path, skill)
    assert "trained" not in scores_tables(section_of(tmp_path))[0]
    write_counts(tmp_path, study, dict.fromkeys(COUNTS, (0, 1000, 0)))
    assert "trained" not in scores_tables(section_of(tmp_path))[0]
    write_counts(tmp_path, study, COUNTS)
    for tuning in [t for t in study["fine_tunings"] if t["start"] == "batch_homogeneous"]:
        write_run(tmp_path, tuning["run"], results=run_json(tmp_path, tuning)["results"])  # of an earlier version
    rows = {row[0]: row[1] for row in rows_of(scores_tables(section_of(tmp_path))[0])}
    assert (rows["batch homogeneous"], rows["batch heterogeneous"]) == ("-", "60 + 2 to 10 of heads")


def test_teachers_are_runs_of_the_study(tmp_path):
    paths = [f"pre_finetuning/teacher-{number}" for number in range(2)]
    for number, path in enumerate(paths):
        training = {"updates": 30, "loss": 0.5 + number}
        write_run(tmp_path, path, training=training, seconds=7.0)
    taught = [start(name) | {"teachers": paths} for name in ("batch_homogeneous", "batch_heterogeneous")]
    write_study(tmp_path, skill, starts=[start("base"), *taught])
    section = section_of(tmp_path)
    rows = rows_of(pre_finetuning_table(section))
    assert rows[1] == ["2 teachers of batch homogeneous, batch heterogeneous", "finished", "2", "60", "1.000", "14"]
    assert len(rows) == 4
    assert "22 runs: 22 finished." in page([section])
    (model,) = describe([section])["studies"]["batching"]["models"]
    assert [run["path"] for run in model["pre_finetuning"][0]["teachers"]] == paths


def test_pre_finetunings_of_several_seeds_are_one_row(tmp_path):
    paths = [f"pre_finetuning/seed-{number}" for number in range(3)]
    seeds = start("batch_homogeneous") | {"runs": paths}
    study = write_study(tmp_path, skill, starts=[start("base"), seeds])
    for number, path in enumerate(paths):
        write_run(tmp_path, path, training={"updates": 30, "loss": 0.5 + number}, seconds=7.0)
    rows = rows_of(pre_finetuning_table(section_of(tmp_path)))
    assert rows == [
        ["batching strategy", "state", "runs", "updates", "mean scaled loss", "seconds"],
        ["batch homogeneous", "finished", "3", "90", "1.500", "21"],
    ]
    (model,) = describe([section_of(tmp_path)])["studies"]["batching"]["models"]
    assert [run["path"] for run in model["pre_finetuning"][0]["runs"]] == paths
    # with R3F
    for number, path in enumerate(paths[1:]):
        training = {"updates": 30, "loss": 0.5, "divergence": 0.01 * number}
        write_run(tmp_path, path, training=training, seconds=7.0)
    rows = rows_of(pre_finetuning_table(section_of(tmp_path)))
    assert rows == [
        ["batching strategy", "state", "runs", "updates", "mean scaled loss", "divergence", "seconds"],
        ["batch homogeneous", "finished", "3", "90", "0.500", "0.005", "21"],
    ]
    (model,) = describe([section_of(tmp_path)])["studies"]["batching"]["models"]
    assert [run["divergence"] for run in model["pre_finetuning"][0]["runs"]] == [None, 0.0, 0.01]
    # as earlier versions wrote it, which knew one
    for begin in study["starts"]:
        begin["run"] = next(iter(begin.pop("runs")), None)
    (tmp_path / "studies" / "batching" / "study.json").write_text(json.dumps(study))
    rows = rows_of(pre_finetuning_table(section_of(tmp_path)))
    assert rows[1] == ["batch homogeneous", "finished", "1", "30", "0.500", "7"]


def test_the_numbers_as_json(reported):
    def refuse(word: str) -> None:
        raise AssertionError(word)

    def ten(value: float | None) -> float | None:
        """Ten digits are the same on every processor."""
        return value and float(f"{value:.10g}")

    text = (reported / "report.json").read_text()
    studies = json.loads(text, parse_constant=refuse)["studies"]
    assert sorted(studies) == ["batching", "low", "scale"]
    (section, *_) = sections(read_studies([reported]))
    (model,) = studies["batching"]["models"]
    for cell in model["cells"]:
        found = section.models[0].cells[cell["start"], cell["variant"], cell["column"]]
        assert (cell["mean"], cell["sd"]) == ((ten(found.mean), ten(found.sd)) if found.seeds else (None, None))
    for said, found in zip(studies["batching"]["comparisons"], section.comparisons, strict=True):
        assert (said["difference"], said["start"]) == (ten(found.difference), found.start.name)
        assert (said["over_examples"] or {}).get("p") == (found.over_examples and ten(found.over_examples.p))
    assert len(model["fine_tunings"]) == 3 * 2 * 2 * 3
    first = model["fine_tunings"][0]
    assert first["results"]["piqa"]["metrics"]["accuracy"] == pytest.approx(
        100 * run_json(reported, {"run": first["path"]})["results"]["piqa"]["metrics"]["accuracy"]
    )
    assert model["pre_finetuning"][0] == {
        "start": "batch_homogeneous",
        "runs": [
            {
                **{"path": "pre_finetuning/batch_homogeneous", "state": "finished", "reason": None, "updates": 60},
                **{"loss": 0.83, "divergence": None, "seconds": 12.3, "parameters": None},
            }
        ],
        "teachers": [],
    }
    assert studies["batching"]["versions"]["torch"] == ["2.13.0"]


def test_versions_that_differ_are_all_said(tmp_path):
    study = write_study(tmp_path, skill)
    tuning = study["fine_tunings"][0]
    results = run_json(tmp_path, tuning)["results"]
    write_run(tmp_path, tuning["run"], results=results, versions={"torch": "9"}, hardware="one GPU")
    text = page([section_of(tmp_path)])
    assert "torch 2.13.0 and 9" in text
    assert "on 2 CPU cores, x86_64 and one GPU." in text
    assert "- `muppet study examples/studies/batching.yaml --scale mini`" in text
    first = run_json(tmp_path, tuning)["name"]
    again = f"examples/studies/batching.yaml --scale mini --only {first} --runs again`"
    assert f"A single run again: `muppet study {again}" in text


def test_tables_of_labels_that_are_markdown(tmp_path):
    columns = [column("a|b *c* [d](e)", "a"), column("_e_ <i>f</i> & `g` mini_h", "b")]
    write_study(tmp_path, skill, columns=columns, examples=20)
    section = section_of(tmp_path)
    structure = Structure(html_page(re.sub(r"!\[.*\n", "", page([section])), tmp_path))
    assert "a|b *c* [d](e)" in structure.words
    assert "_e_ <i>f</i> & `g` mini_h" in structure.words
    assert "i" not in structure.counts


# files that are not what they should be


def sentence(*arguments: Path | str) -> str:
    with pytest.raises(MuppetError) as caught:
        cli.main(["report", *map(str, arguments)])
    assert not (Path(arguments[0]) / "report.md").exists()
    return str(caught.value)


def changed(study: dict[str, Any], **fields: Any) -> str:
    return json.dumps(study | fields)


BROKEN_STUDIES = {
    "empty": lambda study: "",
    "cut off": lambda study: json.dumps(study)[:100],
    "a list": lambda study: "[]",
    "NaN": lambda study: changed(study, starts=[study["starts"][0] | {"x": float("nan")}]),
    "'columns' is missing": lambda study: json.dumps({k: v for k, v in study.items() if k != "columns"}),
    "starts, columns or fine_tunings are empty": lambda study: changed(study, starts=[]),
    "'pie' is none of bars, lines, curves, heat_map": lambda study: changed(study, figure="pie"),
    "'moon' is none of base, batch_homogeneous": lambda study: changed(
        study, fine_tunings=[study["fine_tunings"][0] | {"start": "moon"}]
    ),
    "the column PIQA is there twice": lambda study: changed(study, columns=study["columns"][:1] * 2),
    "the start base is there twice": lambda study: changed(study, starts=study["starts"][:1] * 2),
    "the fine-tuning (": lambda study: changed(study, fine_tunings=study["fine_tunings"][:1] * 2),
    "the evaluation ('base', None, 'piqa') is there twice": lambda study: changed(
        study, fine_tunings=[study["fine_tunings"][0], study["fine_tunings"][0] | {"datasets": ["piqa", "boolq"]}]
    ),
}


@pytest.mark.parametrize("problem", BROKEN_STUDIES)
def test_a_broken_study(tmp_path, problem):
    study = write_study(tmp_path, skill, examples=4)
    path = tmp_path / "studies/batching/study.json"
    path.write_text(BROKEN_STUDIES[problem](study))
    said = sentence(tmp_path)
    assert said.startswith(f"{path} is not what 'muppet study' writes (")
    assert said.endswith("); delete it and run the study again")
    assert problem in said or problem in ("empty", "cut off", "a list", "NaN")


@pytest.mark.parametrize(
    "content",
    [
        *("", "[]", "{}", '{"format": 1}', '{"format": 1, "state": "lost"}', '{"format": 1, "state": "finished"}'),
        '{"format": 1, "state": "failed", "versions": {}, "hardware": "", "results": {"piqa": {"metrics": {}}}}',
        '{"format": 1, "state": "failed", "versions": {}, "hardware": "", "results": {"a": {"metrics": {"f1": "x"}}}}',
    ],
)
def test_a_broken_run(tmp_path, content):
    study = write_study(tmp_path, skill, examples=4)
    path = tmp_path / study["fine_tunings"][3]["run"] / "run.json"
    path.write_text(content)
    assert sentence(tmp_path).startswith(f"{path} is not what 'muppet study' writes (")


@pytest.mark.parametrize(
    "fields",
    [
        {"metrics": {"accuracy": None}},
        {"examples": 0},
        {"example_scores": 0.5},
        {"example_scores": [[0.5], [0.5]]},
        {"example_groups": [0]},
    ],
)
def test_a_broken_result(tmp_path, fields):
    study = write_study(tmp_path, skill, examples=4)
    tuning = study["fine_tunings"][0]
    results = {"piqa": run_json(tmp_path, tuning)["results"]["piqa"] | fields}
    write_run(tmp_path, tuning["run"], results=results)
    assert sentence(tmp_path).startswith(f"{tmp_path / tuning['run'] / 'run.json'} is not what 'muppet study' writes (")


def test_a_place_that_cannot_be_written(tmp_path):
    write_study(tmp_path, skill, examples=4)
    (tmp_path / "file").write_text("")
    assert sentence(tmp_path, "--out", tmp_path / "file").startswith(f"cannot write {tmp_path / 'file'}")


def test_a_study_that_is_not_the_papers(tmp_path):
    write_study(tmp_path, skill, examples=4, paper=None, about="Ours.")
    assert "\nOurs.\n" in page([section_of(tmp_path)])


def test_a_finished_run_without_its_result(tmp_path):
    study = write_study(tmp_path, skill, examples=4)
    run = study["fine_tunings"][3]["run"]
    write_run(tmp_path, run, results={"other": accuracy(np.ones(4))})
    assert sentence(tmp_path) == (
        f"{tmp_path / run / 'run.json'} has no result of boolq; delete that folder and run the study again"
    )


def test_a_later_format(tmp_path):
    write_study(tmp_path, skill, examples=4, format=2)
    said = f"{tmp_path / 'studies/batching/study.json'} has format 2, not 1; use the muppet_fairseq that wrote it"
    assert sentence(tmp_path) == said


def test_no_study_or_the_same_twice(tmp_path):
    said = f"{tmp_path} has no studies/*/study.json; run 'muppet study' with it first"
    assert sentence(tmp_path) == said
    write_study(tmp_path, skill, examples=4)
    path = tmp_path / "studies/batching/study.json"
    assert sentence(tmp_path, tmp_path, "--out", tmp_path) == (
        f"{path} is a second study 'batching' of MiniLM (mini); name one of the folders"
    )


def test_nan_never_reaches_the_json(tmp_path):
    """One start, one seed, one column, two examples: nothing that could have a spread or a difference."""
    write_study(tmp_path, skill, starts=[start("base")], columns=[column("PIQA")], seeds=(1,), examples=2)
    section = section_of(tmp_path)
    json.dumps(describe([section]), allow_nan=False)
    assert "Compared with" not in page([section])
