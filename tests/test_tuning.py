"""``--tune`` in real runs: what they keep of the model, what they write, and what can be done with that."""

from __future__ import annotations

import argparse
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from muppet_fairseq import checkpoint_file, evaluate
from muppet_fairseq.cli import main
from muppet_fairseq.errors import MuppetError
from muppet_fairseq.hf.export import export
from muppet_fairseq.hub import MuppetHub
from muppet_fairseq.prompts.backbone import BACKBONE_KEY, backbone_sha256
from muppet_fairseq.prompts.fold import fold
from muppet_fairseq.release import release
from muppet_fairseq.trained import TrainedModel
from muppet_fairseq.trainer import MuppetTrainer
from tests.runs import equal, finished, parameters
from tests.toy_suite import logged, options, train, trained

#: of each way of tuning, its options
TUNED = {
    "vanilla": ("--tune", "prompts", "--prompt-length", "6"),
    "decomposed": ("--tune", "prompts", "--prompt-length", "6", "--prompt-type", "decomposed"),
    "shared": ("--tune", "prompts", "--prompt-length", "6", "--prompt-type", "shared"),
    "bitfit": ("--tune", "bitfit"),
    "adapters": ("--tune", "adapters", "--adapter-dim", "8"),
}
SUITES = {"roberta": "animals,pairs", "bart": "animals,spans,summaries"}
SEARCH = {"beam": 2, "max_len_b": 6}
QUIET = ("--log-interval", "1000", "--lr", "0.01")


@pytest.fixture(scope="module")
def backbones(data, tmp_path_factory) -> dict[str, Path]:
    """Released models of one epoch, whose heads are other datasets'."""
    folder = tmp_path_factory.mktemp("backbones")
    for arch in SUITES:
        save_dir = folder / arch
        more = ("--arch", f"muppet_{arch}_tiny", "--max-epoch", "1", "--disable-validation", *QUIET)
        trained(options(data, save_dir, *more, suite="counts"))
        release(save_dir / "checkpoint_last.pt", folder / f"{arch}-release")
    return {arch: folder / f"{arch}-release" / "model.pt" for arch in SUITES}


def tuned_options(
    data: Path, save_dir: Path, backbone: Path, tuned: str, *more: str, arch: str = "roberta", suite: str | None = None
) -> list[str]:
    words = ("--arch", f"muppet_{arch}_tiny", "--backbone", str(backbone), *TUNED[tuned], *QUIET, *more)
    return options(data, save_dir, *words, suite=suite or SUITES[arch])


def keep_whole(folder: Path) -> Any:
    """What writes each worker's whole model into a folder, in the validation that ends a run."""

    def inject(rank: int) -> None:
        valid_step = MuppetTrainer.valid_step

        def saved(self: MuppetTrainer, *arguments: Any) -> Any:
            model = self.model
            while hasattr(model, "module"):
                model = model.module
            torch.save(nn.Module.state_dict(model), folder / f"whole-{rank}.pt")
            return valid_step(self, *arguments)

        MuppetTrainer.valid_step = saved

    return inject


def model_of(checkpoint: Path) -> dict[str, Tensor]:
    return checkpoint_file.read(checkpoint)["model"]


def evaluated(checkpoint: Path, data: Path, *more: str) -> dict[str, Any]:
    parser = argparse.ArgumentParser()
    evaluate.add_arguments(parser)
    search = ("--beam", str(SEARCH["beam"]), "--max-len-b", str(SEARCH["max_len_b"]))
    results = evaluate.evaluate(parser.parse_args([str(checkpoint), str(data), *search, *more]))["results"]
    return {result["dataset"]: result["metrics"] for result in results}


@pytest.mark.parametrize(
    ("arch", "tuned", "workers"),
    [
        ("roberta", "decomposed", 2),
        ("roberta", "bitfit", 1),
        ("roberta", "adapters", 2),
        ("bart", "vanilla", 2),
        ("roberta", "shared", 1),
        ("bart", "adapters", 1),
    ],
)
def test_a_run_changes_what_it_tunes_and_writes_no_more(data, backbones, tmp_path, arch, tuned, workers):
    save_dir = tmp_path / "run"
    arguments = tuned_options(
        data, save_dir, backbones[arch], tuned, "--max-epoch", "2", "--validate-interval", "2", arch=arch
    )
    finished(arguments, tmp_path, workers=workers, inject=keep_whole(tmp_path))
    backbone, written = model_of(backbones[arch]), model_of(save_dir / "checkpoint_last.pt")
    wholes = [torch.load(tmp_path / f"whole-{rank}.pt") for rank in range(workers)]
    part = {
        "vanilla": "prompts.P_",
        "decomposed": "prompts.",
        "shared": "prompts.P",
        "bitfit": ".bias",
        "adapters": ".adapter.",
    }[tuned]
    expected = {"dictionary_sha256", BACKBONE_KEY} | {name for name in wholes[0] if part in name or "heads." in name}
    for whole in wholes:
        assert whole.keys() == wholes[0].keys()
        assert all(value.equal(wholes[0][name]) for name, value in whole.items())
        assert all(value.equal(backbone[name]) for name, value in whole.items() if name not in written)
        assert all(value.equal(whole[name]) for name, value in written.items())
    assert written.keys() == expected
    if tuned == "bitfit":
        changed = [name for name in written if name in backbone and not written[name].equal(backbone[name])]
        assert len(changed) == 1 + 2 * 8  # eight in each layer
    assert written[BACKBONE_KEY].equal(backbone_sha256(backbone))
    # tensors, twice for the optimizer, and what a run notes
    size = sum(value.numel() for value in written.values()) * 4 * 3
    assert (save_dir / "checkpoint_last.pt").stat().st_size < size + 60_000
    trains = sum(value.numel() for value in written.values() if value.is_floating_point() and value.dim())
    said = re.search(
        r"--tune \w+: ([\d,]+) of prompts, ([\d,]+) of heads and ([\d,]+) others",
        (tmp_path / "worker-0.out").read_text(),
    )
    assert sum(int(number.replace(",", "")) for number in said.groups()) == trains


@pytest.mark.parametrize(
    ("tuned", "workers", "more"),
    [
        ("decomposed", 1, ()),
        ("vanilla", 2, ("--ddp-backend", "pytorch_ddp")),
        ("bitfit", 1, ("--bf16",)),
        pytest.param("shared", 2, ("--ddp-backend", "pytorch_ddp"), marks=pytest.mark.slow),
        pytest.param("adapters", 1, (), marks=pytest.mark.slow),
    ],
)
def test_a_stopped_run_goes_on_as_if_it_had_not_been(data, backbones, tmp_path, tuned, workers, more):
    def run(name: str, *until: str) -> None:
        words = ("--disable-validation", *more, *until)
        trained(tuned_options(data, tmp_path / name, backbones["roberta"], tuned, *words), workers=workers)

    run("whole", "--max-update", "14")
    run("stopped", "--max-update", "6")
    stopped = parameters(tmp_path / "stopped")
    run("stopped", "--max-update", "14")
    assert not equal(parameters(tmp_path / "stopped"), stopped)
    assert equal(parameters(tmp_path / "stopped"), parameters(tmp_path / "whole"))


@pytest.fixture(scope="module")
def sources(data, backbones, tmp_path_factory) -> dict[str, Path]:
    """Last checkpoints of decomposed prompts."""
    folder = tmp_path_factory.mktemp("sources")
    for arch in SUITES:
        more = ("--max-epoch", "2", "--validate-interval", "2", "--arch", f"muppet_{arch}_tiny")
        if arch == "bart":
            more += ("--eval-rouge", "--eval-rouge-args", json.dumps(SEARCH))
        trained(tuned_options(data, folder / arch, backbones[arch], "decomposed", *more, arch=arch))
    return {arch: folder / arch / "checkpoint_last.pt" for arch in SUITES}


@pytest.mark.parametrize("arch", SUITES)
def test_evaluation_is_that_of_the_run_also_when_folded(data, backbones, sources, tmp_path, arch):
    (last,) = logged(sources[arch].parent, "valid")
    assert fold(sources[arch], tmp_path / "folded.pt") == SUITES[arch].split(",")
    for prompts in (sources[arch], tmp_path / "folded.pt"):
        for backbone in (backbones[arch], backbones[arch].parent):
            results = evaluated(backbone, data, "--prompts", str(prompts))
        assert list(results) == SUITES[arch].split(",")
        for name, metrics in results.items():
            # a validation batch of a question's windows is not one of an evaluation's whole answers
            for metric, value in metrics.items() if name != "spans" else ():
                assert float(last[f"valid_{name}_{metric}"]) == pytest.approx(value, abs=1e-3), (name, metric)
    models = [TrainedModel.load(backbones[arch], data / "dict.txt", path).model for path in (sources[arch], prompts)]
    rows = torch.randint(4, 40, (3, 9), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        ours, folded = (model(rows, head="animals", prompt="animals") for model in models)
    torch.testing.assert_close(ours, folded, atol=1e-6, rtol=0)
    own = model_of(tmp_path / "folded.pt")
    assert {name for name in own if name.startswith("prompts.")} == {f"prompts.P_{n}" for n in SUITES[arch].split(",")}
    assert (tmp_path / "folded.pt").stat().st_size < sum(value.numel() for value in own.values()) * 4 + 20_000


@pytest.mark.parametrize("tuned", ["bitfit", "adapters"])
def test_what_else_was_tuned_is_evaluated_on_its_backbone(data, backbones, tmp_path, tuned):
    more = ("--max-epoch", "2", "--validate-interval", "2")
    trained(tuned_options(data, tmp_path, backbones["roberta"], tuned, *more))
    (last,) = logged(tmp_path, "valid")
    results = evaluated(backbones["roberta"], data, "--prompts", str(tmp_path / "checkpoint_last.pt"))
    for name, metric in (("animals", "f1"), ("pairs", "accuracy")):
        assert float(last[f"valid_{name}_{metric}"]) == pytest.approx(results[name][metric], abs=1e-3)


def test_a_matrix_for_all_datasets_is_evaluated_folded_and_started_from(data, backbones, tmp_path):
    whole, last, folded = backbones["roberta"], tmp_path / "run" / "checkpoint_last.pt", tmp_path / "folded.pt"
    more = ("--max-epoch", "2", "--validate-interval", "2")
    trained(tuned_options(data, tmp_path / "run", whole, "shared", *more))
    (line,) = logged(tmp_path / "run", "valid")
    (matrix,) = (value for name, value in model_of(last).items() if name.startswith("prompts."))
    assert fold(last, folded) == ["animals", "pairs"]
    for prompts in (last, folded):
        results = evaluated(whole, data, "--prompts", str(prompts))
        assert list(results) == ["animals", "pairs"]
        for name, metric in (("animals", "f1"), ("pairs", "accuracy")):
            assert float(line[f"valid_{name}_{metric}"]) == pytest.approx(results[name][metric], abs=1e-3)
        hub = MuppetHub.load(whole.parent, prompts)
        assert hub.extract_features("dog", dataset="pairs").equal(hub.extract_features("dog", dataset="animals"))
    with pytest.raises(MuppetError, match="holds but what --tune has trained"):
        release(last, tmp_path / "release")
    start = ("--finetune-from-model", str(last), "--max-update", "2", "--disable-validation")
    for tuned, mine in (("vanilla", "P_tags"), ("decomposed", "P"), ("shared", "P")):
        trained(tuned_options(data, tmp_path / tuned, whole, tuned, *start, "--lr", "0", suite="pairs,tags"))
        assert model_of(tmp_path / tuned / "checkpoint_last.pt")[f"prompts.{mine}"].equal(matrix)


def test_the_hub_takes_prompts(data, backbones, sources):
    folder = backbones["bart"].parent
    hub = MuppetHub.load(folder, sources["bart"])
    assert list(hub.datasets) == SUITES["bart"].split(",")
    assert hub.classify("animals", "dog cat")["label"] in ("0", "1")
    assert hub.answer("who is", "the dog who is cat") == hub.answer("who is", "the dog who is cat", dataset="spans")
    texts = ["dog cat owl", "fox hen"]
    assert hub.summarize(texts, **SEARCH) == hub.summarize(texts, dataset="summaries", **SEARCH)
    assert hub.extract_features("dog", dataset="spans").shape[1] == 64
    assert not hub.extract_features("dog", dataset="spans").equal(hub.extract_features("dog", dataset="animals"))
    assert isinstance(type(hub.model).from_pretrained(folder, sources["bart"]), MuppetHub)
    with pytest.raises(MuppetError, match="the model has a prompt for each dataset: name one of animals, spans, summa"):
        hub.extract_features("dog")
    with pytest.raises(MuppetError, match="the model has a prompt for each dataset: none is of commonsense"):
        hub.choose("dog", ["cat", "owl"])


def test_a_target_starts_from_sources(data, backbones, sources, tmp_path):
    """One dataset that the sources have, one that is new, at learning rate zero."""
    more = ("--finetune-from-model", str(sources["roberta"]), "--max-update", "2", "--disable-validation")
    arguments = tuned_options(data, tmp_path, backbones["roberta"], "decomposed", *more, suite="pairs,tags")
    trained([*arguments, "--lr", "0"])
    source, target = model_of(sources["roberta"]), model_of(tmp_path / "checkpoint_last.pt")
    assert not source["prompts.u_pairs"].equal(source["prompts.u_animals"])
    for side in "uv":
        mean = (source[f"prompts.{side}_pairs"] + source[f"prompts.{side}_animals"]) / 2
        assert target[f"prompts.{side}_pairs"].equal(source[f"prompts.{side}_pairs"])
        torch.testing.assert_close(target[f"prompts.{side}_tags"], mean)
    assert target["prompts.P"].equal(source["prompts.P"])
    # heads start afresh, as ever
    assert not target["heads.pairs.out_proj.weight"].equal(source["heads.pairs.out_proj.weight"])


def refused(arguments: list[str]) -> str:
    done = train(arguments)
    assert done.returncode != 0
    (sentence,) = [line for line in done.stderr.splitlines() if line.startswith("muppet: ")]
    return sentence.removeprefix("muppet: ")


def test_what_does_not_belong_together_is_refused(data, backbones, sources, tmp_path):
    other = shutil.copyfile(backbones["roberta"], tmp_path / "other.pt")
    content = checkpoint_file.read(other)
    name = "encoder.sentence_encoder.layers.1.fc2.bias"
    content["model"][name] = content["model"][name].clone()
    content["model"][name][3] += 1e-6
    checkpoint_file.write(content, other)
    on_another = "the checkpoint was trained on another backbone (its tensors' SHA-256 begins with "
    for make in (
        lambda: evaluated(other, data, "--prompts", str(sources["roberta"])),
        lambda: TrainedModel.load(other, data / "dict.txt", sources["roberta"]),
    ):
        with pytest.raises(MuppetError) as caught:
            make()
        assert str(caught.value).startswith(on_another)
    start = ("--finetune-from-model", str(sources["roberta"]), "--max-update", "1")
    plain = options(data, tmp_path / "run", "--max-update", "1", suite="animals,pairs")
    whole = str(backbones["roberta"])
    for arguments, said in (
        (tuned_options(data, tmp_path / "run", other, "decomposed", *start), on_another),
        (
            [*plain, "--finetune-from-model", str(sources["roberta"])],
            "the checkpoint holds but what --tune prompts has trained, not a whole model: go on from it with that opt",
        ),
        (
            tuned_options(data, tmp_path / "run", backbones["roberta"], "bitfit", "--finetune-from-model", whole),
            "the checkpoint holds a whole model, of which --tune bitfit trains a part: name it with --backbone instead",
        ),
        (
            tuned_options(data, tmp_path / "run", backbones["roberta"], "adapters", *start),
            "the checkpoint holds what --tune prompts has trained, this is a model for --tune adapters: choose the sa",
        ),
        (
            tuned_options(data, tmp_path / "run", backbones["roberta"], "vanilla", *start, "--prompt-length", "9"),
            "its prompts are 6 vectors of width 64, the model's 9 of width 64: set --prompt-length 6",
        ),
        ([*plain, "--tune", "prompts"], "--tune prompts trains a part of a model: name the checkpoint of the whole"),
    ):
        assert refused(arguments).startswith(said)


def test_evaluation_says_what_it_lacks(data, backbones, sources, tmp_path):
    prompts, whole = sources["roberta"], backbones["roberta"]
    with pytest.raises(MuppetError, match="complete: name its backbone as the checkpoint, and this with"):
        evaluated(prompts, data)
    with pytest.raises(MuppetError, match="is a whole model: name it as the checkpoint, without --prompts"):
        evaluated(whole, data, "--prompts", str(whole))
    with pytest.raises(MuppetError, match="holds but what --tune has trained, which 'muppet evaluate' and the hub"):
        release(prompts, tmp_path / "release")
    with pytest.raises(MuppetError, match="holds but what --tune has trained, which 'muppet evaluate' and the hub"):
        export(prompts, tmp_path / "exported", data)
    with pytest.raises(MuppetError, match="holds but what was tuned on a backbone, not the backbone itself"):
        evaluated(prompts, data, "--prompts", str(prompts))
    # a head of datasets that share it would do, but there is no prompt
    model = TrainedModel.load(backbones["bart"], data / "dict.txt", sources["bart"])
    spec = next(spec for spec in model.task.specs if spec.name == "summaries")
    assert model.prompt_of(spec) == "summaries"
    with pytest.raises(MuppetError, match="there is no prompt for 'news'; there is one for animals, spans, summaries"):
        model.prompt_of(type(spec)("news", "summarization", "rouge1"))
    with pytest.raises(MuppetError, match="holds no prompts; name a checkpoint of a run with --tune prompts"):
        fold(backbones["roberta"].parents[1] / "roberta" / "checkpoint_last.pt", tmp_path / "x.pt")
    with pytest.raises(MuppetError, match="is there already; name a new file"):
        fold(prompts, whole)


def test_sizes_are_checked_before_a_model_is_built(data, backbones, sources, tmp_path):
    """Options of the one file may not ask for more than the tensors of both."""
    for name, value in (
        ("encoder_layers", 1 << 20),
        ("max_positions", 1 << 30),
        ("prompt_length", 1 << 30),
        ("prompt_type", "vanilla"),
        ("prompt_type", "shared"),
        ("prompt_type", "x"),
        ("tune", "adapters"),
    ):
        content = checkpoint_file.read(sources["roberta"])
        vars(content["cfg"]["model"]).update({name: value})
        if name == "max_positions":
            content["cfg"]["task"][name] = value
        checkpoint_file.write(content, tmp_path / "odd.pt")
        with pytest.raises(MuppetError, match="describes no model that can be built"):
            TrainedModel.load(backbones["roberta"], data / "dict.txt", tmp_path / "odd.pt")


def test_the_command_folds(sources, tmp_path, capsys):
    main(["fold", str(sources["roberta"]), str(tmp_path / "folded.pt")])
    assert capsys.readouterr().out.startswith("folded the prompts of animals, pairs into ")
