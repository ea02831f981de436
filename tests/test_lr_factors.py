"""``--lr-factors``: the rates that optimizers are given, and real runs with them."""

from __future__ import annotations

import shutil
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
from fairseq import optim
from fairseq.optim import FP16Optimizer, MemoryEfficientFP16Optimizer, lr_scheduler
from omegaconf import OmegaConf
from torch import Tensor, nn

from muppet_fairseq import checkpoint_file
from muppet_fairseq.errors import MuppetError
from muppet_fairseq.lr_factors import PARTS, check, freeze, parse, split
from muppet_fairseq.optimizer import fused_adam
from muppet_fairseq.prompts.prompt import PROMPT_TYPES
from tests.runs import equal, parameters
from tests.test_prompts import write_backbone
from tests.test_tuning import refused, tuned_options
from tests.toy_suite import logged, open_task, options, trained

FACTORS = {"P": 0.5, "u": 2.0, "v": 3.0, "heads": 0.1}
SCHEDULE = ("--lr-scheduler", "polynomial_decay", "--warmup-updates", "3", "--total-num-update", "20")


def small_model(dtype: torch.dtype = torch.float64) -> nn.Module:
    """With parameters of every part, and others."""
    model = nn.ModuleDict({"prompts": PROMPT_TYPES["decomposed"](["a", "heads"], 4, 6), "encoder": nn.Linear(6, 5)})
    model["heads"] = nn.ModuleDict({"a": nn.Linear(5, 2), "P": nn.Linear(5, 3)})
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        nn.init.normal_(parameter, generator=generator)
    return model.to(dtype)


def factor_of(name: str, factors: dict[str, float]) -> float:
    kind = name.split(".")[1][0] if name.startswith("prompts.") else name.split(".")[0]
    return factors.get(kind, 1.0)


@pytest.mark.parametrize("name", ["adam", "sgd"])
def test_steps_are_those_of_groups_with_rates_of_their_own(name):
    """PyTorch's AdamW corrects its eps as fairseq's does not: it is given another at each step."""
    model, reference = small_model(), small_model()
    betas, eps, decay, lr = (0.9, 0.98), 1e-3, 0.1, 0.05
    config = {"_name": name, "lr": [lr], "weight_decay": decay}
    config |= {"adam": {"adam_betas": str(betas), "adam_eps": eps}, "sgd": {"momentum": 0.9}}[name]
    whole = OmegaConf.create({"common": {"tpu": False}, "optimizer": config})
    with fused_adam():
        optimizer = optim.build_optimizer(whole.optimizer, list(model.parameters()))
    split(FACTORS, optimizer, model)
    schedule = {"_name": "polynomial_decay", "lr": [lr], "warmup_updates": 3, "total_num_update": 8, "power": 1.0}
    schedule |= {"force_anneal": None, "end_learning_rate": 0.0}
    scheduler = lr_scheduler.build_lr_scheduler(OmegaConf.create(schedule), optimizer)
    scheduler.step_update(0)
    kind = {"adam": torch.optim.AdamW, "sgd": torch.optim.SGD}[name]
    more = {"adam": {"betas": betas}, "sgd": {"momentum": 0.9}}[name]
    own = [{"params": [p], "factor": factor_of(key, FACTORS)} for key, p in reference.named_parameters()]
    theirs = kind(own, lr=lr, weight_decay=decay, **more)
    generator = torch.Generator().manual_seed(2)
    for number in range(1, 7):
        rate = lr * min((number - 1) / 3, (9 - number) / 5)
        assert optimizer.get_lr() == pytest.approx(rate)
        for ours, other in zip(model.parameters(), reference.parameters(), strict=True):
            ours.grad = torch.randn(ours.shape, generator=generator, dtype=ours.dtype)
            other.grad = ours.grad.clone()
        for group in theirs.param_groups:
            group |= {"lr": rate * group["factor"], "eps": eps / (1 - betas[1] ** number) ** 0.5}
        optimizer.step()
        theirs.step()
        scheduler.step_update(number)
        for ours, other in zip(model.parameters(), reference.parameters(), strict=True):
            torch.testing.assert_close(ours, other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", [FP16Optimizer, MemoryEfficientFP16Optimizer])
def test_in_half_precision_it_is_the_copies_that_have_rates(kind):
    config = {"_name": "adam", "lr": [1.0], "adam_betas": "(0.9,0.98)", "adam_eps": 1e-6, "weight_decay": 0.0}
    common = {"bf16": True, "fp16_scale_window": 1, "tpu": False}
    model = small_model(torch.bfloat16)
    optimizer = kind.build_optimizer(
        OmegaConf.create({"common": common, "optimizer": config}), list(model.parameters())
    )
    split(FACTORS, optimizer, model)
    optimizer.set_lr(0.5)
    held = {group["part"]: (group["lr"], sum(p.numel() for p in group["params"])) for group in optimizer.param_groups}
    sizes = {"": 6 * 5 + 5, "P": 4 * 6, "u": 2 * 4, "v": 2 * 6, "heads": 12 + 18}
    assert held == {part: (0.5 * FACTORS.get(part, 1), size) for part, size in sizes.items()}
    dtype = torch.float32 if kind is FP16Optimizer else torch.bfloat16
    assert {parameter.dtype for group in optimizer.param_groups for parameter in group["params"]} == {dtype}


def test_what_is_said_is_read():
    assert parse("") == {}
    assert parse("P=1,u=2, v = 2.5,heads=0") == {"P": 1, "u": 2, "v": 2.5, "heads": 0}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("head=1", r"there is no part 'head' \(did you mean 'heads'\?\); there are P, u, v, heads"),
        ("P=1,", r"there is no part ''; there are P, u, v, heads"),
        ("u", "the factor of 'u' is ''; give a number from 0 on, as u=2"),
        ("u=two", "the factor of 'u' is 'two'; give a number from 0 on"),
        ("u=-1", "the factor of 'u' is '-1'; give a number from 0 on"),
        ("u=nan", "the factor of 'u' is 'nan'; give a number from 0 on"),
        ("u=inf", "the factor of 'u' is 'inf'; give a number from 0 on"),
        ("u=1,v=2,u=1", "'u' is there twice; leave one out"),
    ],
)
def test_what_cannot_be_read_is_said(text, said):
    with pytest.raises(MuppetError, match=rf"^--lr-factors {text}: {said}"):
        parse(text)


def test_what_does_not_go_together_is_said():
    def sections(**changes: Any) -> tuple[Namespace, Namespace]:
        values = {"fp16": False, "memory_efficient_fp16": False, "fp16_no_flatten_grads": False}
        values |= {"ddp_backend": "legacy_ddp", "zero_sharding": "none"}
        together = Namespace(**(values | changes))
        return together, together

    for changes, said in (
        ({"ddp_backend": "fully_sharded"}, "does not go with --ddp-backend fully_sharded: choose legacy_ddp or"),
        ({"zero_sharding": "os"}, "does not go with --zero-sharding: leave that out"),
        ({"fp16": True}, "with --fp16, which makes one tensor of all parameters, needs --fp16-no-flatten-grads"),
    ):
        check({}, *sections(**changes))
        with pytest.raises(MuppetError, match=f"^--lr-factors {said}"):
            check({"u": 2.0}, *sections(**changes))
    for changes in ({}, {"fp16": True, "memory_efficient_fp16": True}, {"fp16": True, "fp16_no_flatten_grads": True}):
        check({"u": 2.0}, *sections(**changes))


def test_what_is_given_0_is_not_trained():
    model = small_model()
    assert freeze({"u": 0.0, "heads": 0.0, "v": 2.0}, model) == {"", "P", "v"}
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen == {name for name, _ in model.named_parameters() if name.startswith(("prompts.u_", "heads."))}
    model = nn.ModuleDict({"prompts": PROMPT_TYPES["vanilla"](["u_a"], 4, 6)})
    assert freeze({"P": 1.0}, model) == {"P"}
    for part in ("u", "v", "heads"):
        with pytest.raises(MuppetError, match=f"^--lr-factors names '{part}', of which this model trains nothing"):
            freeze({part: 2.0}, model)


# -- runs ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def backbone(data, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("backbone") / "roberta.pt"
    write_backbone("roberta", open_task(data, "animals,pairs"), path)
    return path


def run(data: Path, save_dir: Path, backbone: Path, *more: str, workers: int = 1) -> dict[str, Tensor]:
    """Some updates of decomposed prompts; parameters and optimizer state."""
    words = ("--disable-validation", "--weight-decay", "0.1", *SCHEDULE, *more)
    trained(tuned_options(data, save_dir, backbone, "decomposed", *words), workers=workers)
    return parameters(save_dir)


@pytest.mark.parametrize(("workers", "more"), [pytest.param(1, (), marks=pytest.mark.slow), (2, ("--bf16",))])
def test_a_stopped_run_goes_on_as_if_it_had_not_been(data, backbone, tmp_path, workers, more):
    words = ("--lr-factors", "P=0.5,u=2,heads=0.1", *more, "--max-update")
    whole = run(data, tmp_path / "whole", backbone, *words, "8", workers=workers)
    stopped = run(data, tmp_path / "parts", backbone, *words, "3", workers=workers)
    parts = run(data, tmp_path / "parts", backbone, *words, "8", workers=workers)
    assert not equal(stopped, parts)
    assert equal(parts, whole)


def test_a_factor_is_as_good_as_another_rate(data, backbone, tmp_path):
    """At every update, warm-up and decay; what is logged is the rate of --lr. On one worker as on two."""
    still = ("--dropout", "0", "--attention-dropout", "0", "--max-update", "6", "--log-interval", "1")
    twice = ("--lr-factors", "P=2,u=2,v=2,heads=2", "--lr", "0.005")
    plain = run(data, tmp_path / "plain", backbone, *still)
    runs = [
        run(data, tmp_path / "one", backbone, *still, *twice),
        run(data, tmp_path / "two", backbone, *still, *twice, workers=2),
    ]
    names = [name for name in plain if name.startswith(("prompts.", "heads."))]
    for ours in runs:
        for name in names:
            torch.testing.assert_close(ours[name], plain[name], atol=1e-5, rtol=1e-4, msg=name)
    rates = [[float(line["lr"]) for line in logged(tmp_path / name, "train_inner")] for name in ("plain", "one")]
    assert len(rates[0]) == 6
    assert [rate / 2 for rate in rates[0]] == pytest.approx(rates[1], rel=1e-5)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_part_with_0_stays_bit_for_bit(data, tmp_path, workers):
    save_dir, start = tmp_path / "run", tmp_path / "start"
    more = ("--disable-validation", "--weight-decay", "0.1")
    trained(options(data, start, *more, "--max-update", "2"))
    more += ("--finetune-from-model", str(start / "checkpoint_last.pt"), "--reuse-heads", "--max-update", "4")
    trained(options(data, save_dir, *more, "--lr-factors", "heads=0"), workers=workers)
    before, after = (checkpoint_file.read(path / "checkpoint_last.pt")["model"] for path in (start, save_dir))
    heads = {name for name in before if name.startswith("heads.")}
    assert heads
    assert all(after[name].equal(before[name]) for name in heads)
    changed = {name for name, value in after.items() if not value.equal(before[name])}
    assert "encoder.sentence_encoder.layers.0.fc1.weight" in changed
    assert not changed & heads


def test_without_its_factors_a_decomposed_prompt_is_its_matrix(data, backbone, tmp_path):
    model = run(data, tmp_path / "run", backbone, "--lr-factors", "u=0,v=0", "--max-update", "3")
    (before,) = checkpoint_file.read(backbone)["model"]["encoder.sentence_encoder.embed_tokens.weight"][None]
    for name in ("animals", "pairs"):
        assert model[f"prompts.u_{name}"].eq(1).all()
        assert model[f"prompts.v_{name}"].eq(1).all()
    # it is no row of the table any more
    assert not (model["prompts.P"][:, None] == before).all(dim=2).any()


def test_a_run_goes_on_with_other_factors_of_the_same_parts(data, backbone, tmp_path):
    def words(folder: str, *more: str) -> list[str]:
        more = ("--disable-validation", "--max-update", "4", *more)
        return tuned_options(data, tmp_path / folder, backbone, "decomposed", *more)

    run(data, tmp_path / "first", backbone, "--lr-factors", "u=2", "--max-update", "2")
    for folder in ("other", "lacking"):
        shutil.copytree(tmp_path / "first", tmp_path / folder)
    trained(words("other", "--lr-factors", "heads=0.5"))
    said = "the checkpoint's run trained other parts of the model: go on with its --lr-factors, or begin the optimizer"
    assert refused(words("lacking", "--lr-factors", "u=0")).startswith(said)
    assert "parameter group" in refused(words("lacking"))
    trained(words("lacking", "--lr-factors", "u=0", "--reset-optimizer"))


def test_parts_that_a_run_lacks_are_said(data, backbone, tmp_path):
    whole = options(data, tmp_path, "--lr-factors", "u=2", suite="animals")
    assert refused(whole).startswith("--lr-factors names 'u', of which this model trains nothing: leave that out")
    nothing = tuned_options(data, tmp_path, backbone, "decomposed", "--lr-factors", "P=0,u=0,v=0,heads=0")
    assert refused(nothing) == (
        "--lr-factors P=0,u=0,v=0,heads=0 leaves nothing to train for animals: give a part more than 0"
    )
    assert set(PARTS) == {"P", "u", "v", "heads"}
