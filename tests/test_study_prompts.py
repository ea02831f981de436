"""``muppet study`` with ``--tune``: backbones, teachers, starting from the most similar prompt, kept checkpoints."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from muppet_fairseq import study
from muppet_fairseq.errors import MuppetError
from muppet_fairseq.study.commands import Machine, commands
from muppet_fairseq.study.expand import Plan, Run, expand, with_needed
from muppet_fairseq.study.settings import read_study
from tests.test_study import after, described, fine_tunings, outcome, run, write_encoder, write_files

TEACHERS = {"prompt-type": "vanilla", "updates": 3}
SOURCE = {"tune": "prompts", "prompt-length": 4, "prompt-type": "decomposed", "teachers": TEACHERS}
PROMPT = {"tune": "prompts", "prompt-length": 4}
STARTS: dict[str, Any] = {
    "bitfit": {"pre_finetuning": "none", "fine_tuning": {"tune": "bitfit"}},
    "prompt": {"pre_finetuning": "none", "fine_tuning": PROMPT},
    "spot": {
        "pre_finetuning": "none",
        "nearest": {"probe": "prompt", "teachers_of": "source"},
        "fine_tuning": PROMPT,
    },
    "source": {"pre_finetuning": SOURCE, "fine_tuning": PROMPT | {"prompt-type": "decomposed"}},
    "whole": {"fine_tuning": PROMPT},
}
GPUS = Machine(tuple(map(str, range(4))), gpus=True)


@pytest.fixture
def plan(tmp_path: Path) -> Callable[..., Plan]:
    """Write a study, :func:`write_files`, and expand it."""
    return lambda changes, **more: expand(read_study(write_files(tmp_path, changes)), **more)


def words_of(run: Run) -> list[tuple[str, ...]]:
    """The words of all its commands."""
    return [command.words for command in commands(run, Path("runs"), GPUS, 10)]


def checkpoint(run: Run) -> str:
    return f"runs/{run.folder}/checkpoint_last.pt"


def only(plan: Plan, start: str) -> Run:
    return fine_tunings(plan, start)[0]


# -- runs and their commands ----------------------------------------------------------------------------------


def test_a_part_is_tuned_on_the_backbone_that_its_start_says(plan):
    expanded = plan({"starts": STARTS})
    encoder = "encoder/model.pt"
    source, whole = (expanded.pre_finetunings[name][0] for name in ("source", "whole"))
    for name, backbone, part in (
        ("bitfit", encoder, None),
        ("prompt", encoder, None),
        ("spot", encoder, f"runs/{only(expanded, 'spot').folder}/nearest.pt"),
        ("source", encoder, checkpoint(source)),
        ("whole", checkpoint(whole), None),
    ):
        tuning = only(expanded, name)
        *_, training, evaluation = words_of(tuning)
        assert after(training, "backbone") == backbone
        assert ("--finetune-from-model" in training) == (part is not None)
        assert part is None or after(training, "finetune-from-model") == part
        assert evaluation[:4] == ("muppet", "evaluate", backbone, "data")
        assert after(evaluation, "prompts") == checkpoint(tuning)
    (training,) = words_of(source)
    assert after(training, "backbone") == encoder
    assert "--finetune-from-model" not in training
    for words in (*words_of(only(expanded, "base")), *words_of(whole)):
        assert not {"--backbone", "--prompts", "--teachers"} & {*words}


def test_a_start_without_pre_finetuning_is_the_encoder_with_fresh_heads(plan):
    expanded = plan({"starts": STARTS})
    assert expanded.pre_finetunings["prompt"] == []
    assert only(expanded, "prompt").slug == "animals/base"
    assert only(expanded, "prompt").settings["reuse-heads"] is False
    same = plan({"starts": {"again": {"pre_finetuning": "none"}}})
    assert only(same, "again").key == only(same, "base").key  # whatever it is called, a run is done once
    assert only(expanded, "spot").settings["reuse-heads"] is True


def test_the_base_may_have_a_label_and_changes(plan):
    base = {"label": "full", "fine_tuning": {"lr": 7}}
    expanded = plan({"base": base})
    assert study._described(expanded, "")["starts"][0]["label"] == "full"
    assert only(expanded, "base").options["lr"] == "7"
    assert only(expanded, "homogeneous").options["lr"] == "1e-3"
    scales = {"mini": {"model": "model.yaml", "base": {"fine_tuning": {"lr": 8}}}}
    assert only(plan({"base": base, "scales": scales}), "base").options["lr"] == "8"


def test_a_teacher_for_each_dataset_and_the_same_ones_for_all_who_want_them(plan):
    others = {
        "no_hidden": {"pre_finetuning": SOURCE | {"distill": "logits", "teachers": TEACHERS | {"distill": False}}},
        "alone": {"pre_finetuning": SOURCE | {"teachers": "none"}},
    }
    source = {"pre_finetuning": SOURCE | {"distill": "both", "teachers": TEACHERS | {"distill": False}}}
    starts = {name: start | {"fine_tuning": PROMPT} for name, start in {"source": source, **others}.items()}
    expanded = plan({"starts": starts})
    source, no_hidden, alone = (expanded.pre_finetunings[name][0] for name in starts)
    assert [teacher.suite.names for teacher in source.teachers] == [["animals"], ["pairs"], ["choices"]]
    assert [teacher.key for teacher in source.teachers] == [teacher.key for teacher in no_hidden.teachers]
    assert len({source.key, no_hidden.key, alone.key, *(teacher.key for teacher in source.teachers)}) == 6
    assert alone.teachers == ()
    (training,) = words_of(source)
    assert after(training, "teachers") == ",".join(map(checkpoint, source.teachers))
    (training,) = words_of(source.teachers[1])
    assert (after(training, "prompt-type"), after(training, "max-update")) == ("vanilla", "10")
    assert after(training, "suite") == f"runs/{source.teachers[1].folder}/suite.yaml"
    assert not {"--teachers", "--distill"} & {*training}
    assert [run.label for run in expanded.runs][:4] == [
        *(f"teacher {name}" for name in ("animals", "pairs", "choices")),
        "pre-finetuning source",
    ]
    assert [run.kind for run in expanded.runs].count("pre_finetuning") == 6


def test_teachers_decide_what_a_run_is(plan):
    def key(teachers: dict[str, Any] | str, **more: Any) -> str:
        start = {"pre_finetuning": SOURCE | {"teachers": teachers} | more, "fine_tuning": PROMPT}
        return plan({"starts": {"s": start}}).pre_finetunings["s"][0].key

    keys = [key(TEACHERS), key(TEACHERS | {"updates": 4}), key({"prompt-type": "vanilla"}), key("none")]
    assert len({*keys}) == 4
    assert key(TEACHERS) == keys[0]
    assert key(TEACHERS, workers=3) == keys[0]


def test_updates_and_seeds_of_pre_finetunings_are_those_of_their_teachers(plan):
    two = {"pre_finetuning": {"seeds": 2}, "fine_tuning": {"seeds": 2}}
    expanded = plan({"starts": {"source": STARTS["source"]}} | two, updates=5)
    first, second = expanded.pre_finetunings["source"]
    assert {teacher.settings["updates"] for teacher in (*first.teachers, *second.teachers)} == {5}
    assert [teacher.seed for teacher in second.teachers] == [2, 2, 2]
    assert second.teachers[0].label == "teacher animals, seed 2"


def test_layers_change_single_settings_of_teachers(plan):
    layer = {"teachers": {"lr": 5, "updates": 9}}
    runs = plan({"pre_finetuning": layer, "starts": {"source": STARTS["source"]}}).pre_finetunings["source"]
    settings = runs[0].teachers[0].settings
    assert (settings["lr"], settings["updates"], settings["prompt-type"]) == ("5", 3, "vanilla")
    assert runs[0].settings["lr"] == "1e-3"


def test_a_fine_tuning_starts_from_the_prompt_nearest_to_its_probes(plan):
    expanded = plan({"starts": STARTS, "fine_tuning": {"seeds": 2}})
    teachers = expanded.pre_finetunings["source"][0].teachers
    for tuning, probe in zip(fine_tunings(expanded, "spot"), fine_tunings(expanded, "prompt"), strict=True):
        nearest, training, _ = words_of(tuning)
        assert nearest[:2] == ("muppet", "nearest")
        assert after(nearest, "to") == checkpoint(probe)
        assert nearest[-3:] == tuple(map(checkpoint, teachers))
        assert after(nearest, "out") == after(training, "finetune-from-model")
        assert {run.key for run in tuning.needs} == {probe.key, *(teacher.key for teacher in teachers)}
    assert [tuning.start for tuning in expanded.fine_tunings] == [
        start for start in ("base", *STARTS) for _ in range(4)
    ]
    # also where the probe stands after it
    later = plan({"starts": {name: STARTS[name] for name in ("spot", "source", "prompt")}})
    assert only(later, "spot").key == fine_tunings(expanded, "spot")[0].key
    labels = [run.label for run in later.runs]
    assert labels.index("animals from prompt, seed 1") < labels.index("animals from spot, seed 1")


def test_the_probe_and_the_candidates_decide_what_a_run_is(plan):
    def key(probe: dict[str, Any], teachers: dict[str, Any]) -> str:
        starts = STARTS | {"prompt": {"pre_finetuning": "none", "fine_tuning": PROMPT | probe}}
        starts["source"] = STARTS["source"] | {"pre_finetuning": SOURCE | {"teachers": TEACHERS | teachers}}
        return only(plan({"starts": starts}), "spot").key

    keys = [key({}, {}), key({"lr": 5}, {}), key({}, {"lr": 5})]
    assert len({*keys}) == 3
    assert key({}, {}) == keys[0]


def test_a_checkpoint_stands_for_what_the_pre_finetuning_would_have_written(plan):
    expanded = plan({"starts": STARTS}, checkpoints={name: Path("there.pt") for name in ("source", "whole")})
    assert after(words_of(only(expanded, "whole"))[0], "backbone") == "there.pt"
    training = words_of(only(expanded, "source"))[0]
    assert (after(training, "backbone"), after(training, "finetune-from-model")) == ("encoder/model.pt", "there.pt")
    assert len(only(expanded, "spot").candidates) == 3  # who are not replaced
    assert len({only(expanded, name).key for name in ("source", "whole", "prompt", "spot")}) == 4
    with pytest.raises(MuppetError, match="'prompt' has no pre-finetuning that a checkpoint could stand for"):
        plan({"starts": STARTS}, checkpoints={"prompt": Path("there.pt")})


def test_only_some_fine_tunings_and_all_that_they_need(plan):
    chosen = study._wanted(plan({"starts": STARTS}), ["animals from spot*"])
    assert [run.label for run in chosen] == [
        *(f"teacher {name}" for name in ("animals", "pairs", "choices")),
        "animals from prompt, seed 1",
        "animals from spot, seed 1",
    ]
    assert {run.key for run in with_needed(chosen[-1:])} == {run.key for run in chosen}


def changed(name: str, **more: Any) -> dict[str, Any]:
    return {"starts": STARTS | {name: STARTS[name] | more}}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (changed("source", fine_tuning={}), "of 'source' has 'tune: prompts', its fine-tuning 'tune: all'; give both"),
        (
            changed("source", pre_finetuning=SOURCE | {"teachers": "none"}),
            "'source', which 'teachers_of' names, has no",
        ),
        (changed("spot", nearest={"probe": "prompt", "teachers_of": "bitfit"}), "'bitfit', which 'teachers_of' names"),
        (
            changed("prompt", fine_tuning=PROMPT | {"grid": {"lr": [1, 2]}}),
            r"animals from spot, seed 1 is to have one run of 'prompt' as its probe, and there are 2; .* no grid",
        ),
        (
            changed("prompt", fine_tuning={"tune": "bitfit"}),
            "'nearest' compares prompts; animals from spot, seed 1, its",
        ),
    ],
)
def test_starts_that_do_not_go_together_are_one_sentence(plan, changes, words):
    with pytest.raises(MuppetError, match=rf"toy\.yaml: .*{words}"):
        plan(changes)


SCALES = "scales: {mini: {model: model.yaml}}\n"
BAD = {
    "backbone": (f"{SCALES}fine_tuning:\n  backbone: x\n", 3, "'backbone' is set by the study; give 'tune'"),
    "teachers in fine-tuning": (
        f"{SCALES}fine_tuning: {{teachers: {{}}}}\n",
        2,
        "'teachers' does not belong to fi",
    ),
    "suite of teachers": (
        f"{SCALES}pre_finetuning:\n  teachers:\n    suite: x\n",
        4,
        "'suite' does not belong to te",
    ),
    "seeds of teachers": (
        f"{SCALES}pre_finetuning: {{teachers: {{seeds: 2}}}}\n",
        2,
        "'seeds' does not belong to te",
    ),
    "x of the base": (f"{SCALES}base:\n  x: 3\n", 3, "unknown key 'x'"),
    "no probe": (
        f"{SCALES}starts:\n  a:\n    pre_finetuning: none\n    nearest: {{teachers_of: b}}\n",
        5,
        "'probe' is missing",
    ),
    "unknown probe": (
        f"{SCALES}starts:\n  abc:\n  b:\n    pre_finetuning: none\n    nearest: {{probe: abd, teachers_of: abc}}\n",
        5,
        r"there is no start 'abd' \(did you mean 'abc'\?\) for 'nearest'; it takes those without 'nearest' \(abc\)",
    ),
    "nearest to itself": (
        f"{SCALES}starts:\n  b:\n    pre_finetuning: none\n    nearest: {{probe: b, teachers_of: b}}\n",
        4,
        r"there is no start 'b' for 'nearest'; .* \(none\)",
    ),
    "nearest and a pre-finetuning": (
        f"{SCALES}starts:\n  b:\n    nearest: {{probe: a, teachers_of: a}}\n",
        4,
        "'nearest' says what to start from; give 'pre_finetuning: none', too",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_in_a_file_is_one_sentence_with_its_line(tmp_path, case):
    text, line, words = BAD[case]
    write_files(tmp_path)
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(MuppetError) as error:
        read_study(path)
    assert re.search(rf"bad\.yaml, line {line}: .*({words})", str(error.value)), error.value


def test_a_dry_run_prints_all_commands_of_a_run(plan, tmp_path):
    expanded = plan({"starts": STARTS})
    wanted = study._wanted(expanded, ["animals from spot*"])
    lines = list(study._dry(study._Task(expanded, tmp_path, wanted), Machine(("cpu 0",), gpus=False), {}))
    assert "# 3 pre-finetunings, 2 fine-tunings" in "\n".join(lines)
    (line,) = [line for line in lines if line.startswith("muppet nearest ")]
    assert line.endswith(f" > {tmp_path / only(expanded, 'spot').folder / 'nearest.txt'}")


# -- real runs ------------------------------------------------------------------------------------------------

REAL: dict[str, Any] = {
    "prompt": STARTS["prompt"],
    "nearest": STARTS["spot"],
    "bitfit": STARTS["bitfit"],
    "source": {
        "pre_finetuning": SOURCE | {"criterion": "muppet_distill", "teachers": TEACHERS | {"criterion": "muppet"}},
        "fine_tuning": PROMPT | {"prompt-type": "decomposed"},
    },
}
CHANGES = {
    "starts": REAL,
    "columns": {"all": ["animals"]},
    "pre_finetuning": {"suite": "two.yaml", "updates": 4, "save-interval-updates": 1000},
}


@pytest.fixture(scope="module")
def encoder(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_encoder(data, tmp_path_factory.mktemp("encoder"))


def write_tuned(folder: Path, data: Path, encoder: Path, **changes: Any) -> Path:
    path = write_files(folder, CHANGES | changes, {"encoder": str(encoder), "data": str(data)})
    (folder / "two.yaml").write_text("[pairs, choices]")
    return path


@pytest.fixture(scope="module")
def undisturbed(data: Path, encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    status, said = run(write_tuned(folder, data, encoder), folder / "runs")
    assert status == 0, said
    return folder / "runs"


def folder_of(runs: Path, name: str) -> Path:
    (folder,) = [runs / folder for folder, run in described(runs).items() if run["name"] == name]
    return folder


def test_what_a_study_leaves(undisturbed):
    folders = {run["name"]: undisturbed / folder for folder, run in described(undisturbed).items()}
    assert {*folders} == {
        *("teacher pairs", "teacher choices", "pre-finetuning source"),
        *(f"animals from {name}, seed 1" for name in ("base", "prompt", "nearest", "bitfit", "source")),
    }
    distilled = json.loads((folders["pre-finetuning source"] / "run.json").read_text())["commands"]
    taught = ",".join(str(folders[f"teacher {name}"] / "checkpoint_last.pt") for name in ("pairs", "choices"))
    assert f" --teachers {taught} " in distilled[0]
    assert "distill_hidden" in (folders["pre-finetuning source"] / "train.log").read_text()
    # what is small is kept
    without = [name for name, folder in folders.items() if not (folder / "checkpoint_last.pt").exists()]
    assert without == ["animals from base, seed 1"]
    nearest = folders["animals from nearest, seed 1"]
    (chosen,) = [line.split()[0] for line in (nearest / "nearest.txt").read_text().splitlines() if "chosen" in line]
    taught = folders[f"teacher {chosen}"] / "checkpoint_last.pt"
    assert (nearest / "nearest.pt").read_bytes() == taught.read_bytes()
    assert f"prompts of animals: from those of {chosen}" in (nearest / "train.log").read_text()
    programs = [command.split()[:2] for command in json.loads((nearest / "run.json").read_text())["commands"]]
    assert [words[: 1 + (words[0] == "muppet")] for words in programs] == [
        *(["muppet", "nearest"], ["fairseq-train"], ["muppet", "evaluate"])
    ]


def test_a_study_reports_how_many_parameters_were_trained(undisturbed):
    trained = {run["name"]: run["training"]["parameters"] for run in described(undisturbed).values()}
    heads = trained["animals from base, seed 1"]["heads"]
    size = trained["animals from base, seed 1"]["others"]
    biases = trained["animals from bitfit, seed 1"]["others"]
    assert trained["animals from prompt, seed 1"] == {"prompts": 4 * 64, "heads": heads, "others": 0, "frozen": size}
    assert trained["animals from source, seed 1"]["prompts"] == 4 * 64 + 4 + 64
    assert trained["pre-finetuning source"]["prompts"] == 4 * 64 + 2 * (4 + 64)
    assert trained["animals from bitfit, seed 1"] == {
        **{"prompts": 0, "heads": heads, "others": biases, "frozen": size - biases}
    }
    page = (undisturbed / "report.md").read_text()
    assert "| start | trained | all<br>animals |" in page
    for start, number in (("base", size), ("prompt", 256), ("bitfit", biases), ("source", 324)):
        assert f"| {start} | {number:,} + {heads:,} of heads | " in page
    (model,) = json.loads((undisturbed / "report.json").read_text())["studies"]["toy"]["models"]
    assert {tuning["parameters"]["prompts"] for tuning in model["fine_tunings"] if tuning["parameters"]} == {
        *(0, 256, 324)
    }


@pytest.mark.parametrize(
    ("done", "lost", "again"),
    [
        (0, (), (True, True)),
        (1, ("checkpoint_last.pt",), (False, True)),
        (1, ("nearest.pt", "checkpoint_last.pt"), (True, True)),
        (2, (), (False, False)),
    ],
)
def test_a_run_of_three_commands_goes_on_with_the_one_that_was_cut_off(
    data, encoder, tmp_path, undisturbed, done, lost, again
):
    runs = tmp_path / "runs"
    shutil.copytree(undisturbed, runs)
    folder = folder_of(runs, "animals from nearest, seed 1")
    path = folder / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"state": "running", "commands_done": done}))
    for name in lost:
        (folder / name).unlink()
    (folder / "nearest.txt").write_text("earlier")
    log = (folder / "train.log").read_text()
    status, said = run(write_tuned(tmp_path, data, encoder), runs)
    assert status == 0, said
    assert ((folder / "nearest.txt").read_text() != "earlier", (folder / "train.log").read_text() != log) == again
    assert outcome(runs) == outcome(undisturbed)


def test_what_needs_a_run_that_fails_is_left_out(data, encoder, tmp_path):
    source = {"pre_finetuning": SOURCE | {"teachers": TEACHERS | {"clip-norm": "much"}}, "fine_tuning": PROMPT}
    starts = {name: REAL[name] for name in ("prompt", "nearest")} | {"source": source}
    status, said = run(write_tuned(tmp_path, data, encoder, starts=starts), tmp_path / "runs")
    assert status == 1
    for name in ("animals from nearest, seed 1", "pre-finetuning source"):
        # or of both, if the other one has failed by then
        assert re.search(rf"{name}: FAILED, it needs teacher \w+( and teacher \w+)?, which failed", said)
    assert "animals from source, seed 1: FAILED, it needs pre-finetuning source, which failed" in said
    assert re.search(r"muppet: 5 of 7 runs failed \(teacher pairs: .*; teacher choices: ", said)
    page = (tmp_path / "runs" / "report.md").read_text()
    assert re.search(r"\| 2 teachers of source \| failed \| 2 \| - \| - \| \d+ \|", page)
    assert "pre_finetuning/pairs-" in page  # among the failed
