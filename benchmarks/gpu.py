"""Updates of RoBERTa in bf16 beside stock fairseq and transformers: tokens a second, and use of a GPU's arithmetic.

All three train a classifier from random weights on made-up rows: forward, backward, clipping and the optimizer, one
update a sub-batch, each as it is normally set up. Ours and fairseq keep the model in bf16 and a float32 copy for the
optimizer, as ``fairseq-train --bf16`` does, each with its own Adam; transformers keeps float32 parameters and computes
under autocast, as its ``Trainer`` does with ``bf16=True``, with PyTorch's attention and fused AdamW.

Workloads: ``fed``, rows of many lengths, ours in sub-batches of like lengths as our schedule makes them, the others in
random order, filled up to as many padded tokens and padded to the longest row; ``same``, our sub-batches for all;
``full``, rows of the greatest length. Tokens are counted without padding. R3F is ours alone.

A row of n tokens needs 3 x (2 P n + 4 L D n^2) floating-point operations, backward twice as many as forward, with P
parameters in the L layers of width D. Ours are counted without what it leaves out of the last layer: all but its keys
and values. MFU is these operations a second, over the GPU's dense bf16 peak. R3F's rows count twice.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import types
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from fairseq.criterions.sentence_prediction import SentencePredictionConfig, SentencePredictionCriterion
from fairseq.data import Dictionary
from fairseq.data.data_utils import batch_by_size
from fairseq.dataclass.configs import FairseqConfig
from fairseq.models.roberta.model import RobertaModel
from fairseq.optim import FP16Optimizer
from omegaconf import OmegaConf
from torch import Tensor, nn

from benchmarks.measure import Target, in_turns, ratio, spread
from benchmarks.training import build_model
from muppet_fairseq.criterions.muppet import MuppetCriterion
from muppet_fairseq.criterions.muppet_r3f import MuppetR3FCriterion
from muppet_fairseq.data.schedule import BatchSchedule, Sizes, SubBatchLimits
from muppet_fairseq.errors import MuppetError
from muppet_fairseq.families.base import Sample, pad_rows
from muppet_fairseq.models.layers import compile_layers
from muppet_fairseq.optimizer import fused_adam
from muppet_fairseq.spec import DatasetSpec
from muppet_fairseq.tasks.muppet import MuppetTask, MuppetTaskConfig

#: dense bf16 operations a second, by what a GPU's name holds (NVIDIA's data sheets); the first that fits
PEAKS = {"H100 PCIe": 756e12, "H100": 989e12, "H200": 989e12, "A100": 312e12}
#: lengths of the rows of ``fed`` and ``same``: log-normal with this median and spread, from 8 to the greatest
MEDIAN_LENGTH, SPREAD_OF_LOG = 60, 0.8
VOCABULARY = 50265
CLASSES = 3
LEARNING_RATE = 1e-5
EXTERNAL = ("fairseq", "transformers")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--sizes", nargs="+", default=["base", "large"], choices=["tiny", "base", "large"], help="default: base large"
    )
    parser.add_argument("--max-tokens", type=int, default=16384, help="padded tokens of a sub-batch (%(default)s)")
    parser.add_argument("--max-positions", type=int, default=512, help="greatest length of a row (%(default)s)")
    parser.add_argument("--sub-batches", type=int, default=8, help="of a round (%(default)s)")
    parser.add_argument("--rounds", type=int, default=6, help="of each kind, after 2 to warm up (%(default)s)")
    parser.add_argument("--peak-tflops", type=float, help="dense bf16 peak of a GPU that is not known here")
    parser.add_argument("--no-compile", action="store_true", help="without our --compile, which takes minutes to begin")
    parser.add_argument("--device", default="cuda", help="cuda, or cpu to try it out (%(default)s)")


@dataclass(frozen=True)
class Rows:
    """Rows that are one sub-batch: tokens ``[R, T]`` on the device, classes ``[R]``, lengths ``[R]`` on the CPU."""

    tokens: Tensor
    target: Tensor
    lengths: np.ndarray


@dataclass(frozen=True)
class Kind:
    """One way to train: ``update`` takes a sub-batch; ``rows_of`` it is computed ``copies`` times over."""

    update: Callable[[Rows], None]
    ours: bool
    copies: int = 1


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Return, for each size and workload, each kind's tokens a second, MFU, memory, and the ratios to the others.

    Raises MuppetError where a GPU, its peak or transformers is missing.
    """
    if args.device != "cpu" and not torch.cuda.is_available():
        raise MuppetError("this benchmark needs a GPU, and PyTorch finds none; try it out with --device cpu")
    if importlib.util.find_spec("transformers") is None:
        raise MuppetError("this benchmark compares with transformers: pip install transformers")
    peak = _peak(args)
    task = _task(args.max_positions)
    workloads = _workloads(args, task)
    figures = {size: _measure(size, args, task, workloads, peak) for size in args.sizes}
    return {
        "device": args.device if args.device == "cpu" else torch.cuda.get_device_name(),
        "peak_tflops": None if peak is None else peak / 1e12,
        "padding": {
            name: {side: _padding(batches) for side, batches in sides.items()} for name, sides in workloads.items()
        },
        "figures": figures,
        "targets": [target.to_dict() for target in _targets(figures, peak)],
    }


def _peak(args: argparse.Namespace) -> float | None:
    """The device's operations a second, None for a CPU."""
    if args.peak_tflops is not None:
        return args.peak_tflops * 1e12
    if args.device == "cpu":
        return None
    name = torch.cuda.get_device_name()
    peak = next((value for part, value in PEAKS.items() if part in name), None)
    if peak is None:
        raise MuppetError(f"the peak of a {name} is not known here; give it with --peak-tflops")
    return peak


def _targets(figures: dict[str, Any], peak: float | None) -> Iterator[Target]:
    for size, by_workload in figures.items():
        ours = "ours, compiled" if "ours, compiled" in by_workload["full"] else "ours"
        if size == "large" and peak is not None:
            yield Target(f"MFU, {size}, full rows, {ours}", by_workload["full"][ours]["mfu"], 0.5, at_least=True)
        for other in EXTERNAL:
            times = by_workload["fed"][ours]["ratios"][other]["median"]
            yield Target(f"tokens/s, {size}, {ours} / {other}", times, 1.3, at_least=True)


# -- data ---------------------------------------------------------------------------------------------


def _task(max_positions: int) -> MuppetTask:
    """A task of one classification dataset over a vocabulary of RoBERTa's size; it has no files."""
    dictionary = Dictionary()
    for number in range(VOCABULARY - len(dictionary)):
        dictionary.add_symbol(f"word{number}")
    config = {"data": "none", "suite": "none", "save_dir": "none", "restore_file": "checkpoint_last.pt", "seed": 1}
    config |= {"reuse_heads": True, "max_positions": max_positions}
    spec = DatasetSpec("rows", "classification", "accuracy", tuple(map(str, range(CLASSES))), num_inputs=1)
    return MuppetTask(MuppetTaskConfig(**config), dictionary, "0" * 64, [spec])


def _workloads(args: argparse.Namespace, task: MuppetTask) -> dict[str, dict[str, list[Rows]]]:
    """For each workload our sub-batches, and the others'."""
    rng = np.random.default_rng(1)
    # some times as many rows as are used: a schedule groups those of an epoch
    count = 20 * args.sub_batches * args.max_tokens // MEDIAN_LENGTH
    lengths = np.exp(rng.normal(np.log(MEDIAN_LENGTH), SPREAD_OF_LOG, count))
    lengths = lengths.astype(np.int32).clip(8, args.max_positions)
    sizes = Sizes("rows", lengths, np.ones_like(lengths))
    schedule = BatchSchedule([sizes], SubBatchLimits(args.max_tokens, None))
    order = rng.permutation(count)
    shuffled = batch_by_size(order, lengths.__getitem__, lengths[order].astype(np.int64), max_tokens=args.max_tokens)
    grouped, random = (
        [_rows(lengths[np.asarray(batches[i])], rng, args, task) for i in range(args.sub_batches)]
        for batches in (schedule, shuffled)
    )
    whole = np.full(max(1, args.max_tokens // args.max_positions), args.max_positions)
    full = [_rows(whole, rng, args, task) for _ in range(args.sub_batches)]
    return {
        "fed": {"ours": grouped, "others": random},
        "same": {"ours": grouped, "others": grouped},
        "full": {"ours": full, "others": full},
    }


def _rows(lengths: np.ndarray, rng: np.random.Generator, args: argparse.Namespace, task: MuppetTask) -> Rows:
    layout = task.layout
    words = [rng.integers(task.dictionary.nspecial, VOCABULARY, length) for length in lengths]
    for row in words:
        row[0], row[-1] = layout.bos, layout.eos
    target = torch.from_numpy(rng.integers(CLASSES, size=len(lengths)))
    return Rows(pad_rows(words, layout.pad).to(args.device), target.to(args.device), lengths)


def _padding(batches: Sequence[Rows]) -> float:
    """The share of tokens that are padding."""
    return round(1 - sum(int(rows.lengths.sum()) for rows in batches) / sum(r.tokens.numel() for r in batches), 4)


# -- the three ----------------------------------------------------------------------------------------


def _kinds(size: str, args: argparse.Namespace, task: MuppetTask) -> tuple[dict[str, Kind], nn.Module]:
    """The kinds, and a model of ours."""
    kinds: dict[str, Kind] = {}
    for name in ("ours",) if args.no_compile else ("ours", "ours, compiled"):
        model = build_model(task, f"muppet_roberta_{size}").to(args.device).train()
        if name != "ours":
            compile_layers(model)
        with fused_adam():
            optimizer = _bf16_optimizer(model.bfloat16(), args)
        criterions = {
            name: MuppetCriterion(task, "log", 0.1),
            f"{name}, R3F": MuppetR3FCriterion(task, "log", 0.1, r3f_lambda=1.0, eps=1e-5, noise_type="uniform"),
        }
        for copies, (kind, criterion) in enumerate(criterions.items(), start=1):
            kinds[kind] = Kind(partial(_our_update, task, model, criterion, optimizer), ours=True, copies=copies)
    kinds["fairseq"] = Kind(_fairseq_update(model.args, task, args), ours=False)
    kinds["transformers"] = Kind(_transformers_update(model.args, task, args), ours=False)
    return kinds, model


def _our_update(
    task: MuppetTask, model: nn.Module, criterion: MuppetCriterion, optimizer: FP16Optimizer, rows: Rows
) -> None:
    task.begin_update()
    ntokens = int(rows.lengths.sum())
    sample: Sample = {
        "dataset": 0,
        "id": rows.target,
        "nsentences": len(rows.target),
        "ntokens": ntokens,
        "net_input": {"src_tokens": rows.tokens, "padded": ntokens < rows.tokens.numel()},
        "target": rows.target,
    }
    _update(criterion(model, sample)[0], optimizer)


def _bf16_optimizer(model: nn.Module, args: argparse.Namespace) -> FP16Optimizer:
    """What ``fairseq-train --bf16 --optimizer adam`` makes."""
    config = OmegaConf.structured(FairseqConfig())
    config.common.bf16, config.common.cpu = True, args.device == "cpu"
    config.optimization.lr = [LEARNING_RATE]
    config.optimizer = {"_name": "adam", "lr": [LEARNING_RATE], "weight_decay": 0.01}
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return FP16Optimizer.build_optimizer(config, parameters)


def _update(loss: Tensor, optimizer: FP16Optimizer) -> None:
    optimizer.backward(loss)
    optimizer.clip_grad_norm(1.0)
    optimizer.step()
    optimizer.zero_grad()


def _fairseq_update(sizes: Namespace, task: MuppetTask, args: argparse.Namespace) -> Callable[[Rows], None]:
    model = RobertaModel.build_model(Namespace(max_positions=args.max_positions, **_sizes(sizes)), task)
    model.register_classification_head("sentence_classification_head", num_classes=CLASSES)
    optimizer = _bf16_optimizer(model.to(args.device).bfloat16().train(), args)
    criterion = SentencePredictionCriterion(SentencePredictionConfig(), types.SimpleNamespace(label_dictionary=None))

    def update(rows: Rows) -> None:
        sample = {"net_input": {"src_tokens": rows.tokens}, "target": rows.target, "ntokens": int(rows.lengths.sum())}
        loss, rows_seen, _ = criterion(model, sample)
        _update(loss / rows_seen, optimizer)

    return update


def _transformers_update(sizes: Namespace, task: MuppetTask, args: argparse.Namespace) -> Callable[[Rows], None]:
    # it imports torchaudio wherever that is installed (fairseq asks for it), and PyPI's may not load
    sys.modules.setdefault("torchaudio", None)
    from transformers import RobertaConfig, RobertaForSequenceClassification  # only this benchmark needs it

    config = RobertaConfig(
        vocab_size=VOCABULARY,
        hidden_size=sizes.encoder_embed_dim,
        num_hidden_layers=sizes.encoder_layers,
        num_attention_heads=sizes.encoder_attention_heads,
        intermediate_size=sizes.encoder_ffn_embed_dim,
        max_position_embeddings=args.max_positions + 2,
        type_vocab_size=1,
        num_labels=CLASSES,
        attn_implementation="sdpa",
    )
    model = RobertaForSequenceClassification(config).to(args.device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, fused=True)
    pad = task.layout.pad

    def update(rows: Rows) -> None:
        with torch.autocast(torch.device(args.device).type, dtype=torch.bfloat16):
            loss = model(input_ids=rows.tokens, attention_mask=(rows.tokens != pad).long(), labels=rows.target).loss
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return update


def _sizes(args: Namespace) -> dict[str, Any]:
    names = ("encoder_layers", "encoder_embed_dim", "encoder_ffn_embed_dim", "encoder_attention_heads")
    return {name: getattr(args, name) for name in names}


# -- measuring ----------------------------------------------------------------------------------------


def _measure(
    size: str,
    args: argparse.Namespace,
    task: MuppetTask,
    workloads: dict[str, dict[str, list[Rows]]],
    peak: float | None,
) -> dict[str, Any]:
    kinds, model = _kinds(size, args, task)
    figures: dict[str, Any] = {}
    for workload, sides in workloads.items():
        batches = {name: sides["ours" if kind.ours else "others"] for name, kind in kinds.items()}
        memory = {name: _memory(kind, batches[name], args) for name, kind in kinds.items()}
        seconds = in_turns(
            {name: partial(_round, kind, batches[name]) for name, kind in kinds.items()},
            args.rounds,
            device=args.device,
        )
        tokens = {name: sum(int(rows.lengths.sum()) for rows in own) for name, own in batches.items()}
        per_token = {name: [value / tokens[name] for value in values] for name, values in seconds.items()}
        figures[workload] = {}
        for name, kind in kinds.items():
            speed = [1 / value for value in per_token[name]]
            figure = {"tokens_per_second": spread(speed), "gigabytes_of_a_step": memory[name]}
            if peak is not None:
                lengths = np.concatenate([rows.lengths for rows in batches[name]])
                needed = kind.copies * operations(lengths, model, leaves_out=kind.ours)
                figure["mfu"] = round(needed / tokens[name] * float(np.median(speed)) / peak, 4)
            if kind.ours:
                figure["ratios"] = {other: ratio(per_token, other, name) for other in EXTERNAL}
            figures[workload][name] = figure
    return figures


def operations(lengths: np.ndarray, model: nn.Module, *, leaves_out: bool) -> float:
    """Floating-point operations of an update on rows of these lengths; see the module.

    Args:
        model: of ours.
        leaves_out: count of the last layer the keys and values alone, as all else is computed for one token a row.
    """
    layers = model.encoder.sentence_encoder.layers
    width = model.args.encoder_embed_dim
    lengths = lengths.astype(np.float64)
    a_layer = 2 * sum(p.numel() for p in layers[0].parameters()) * lengths + 4 * width * lengths**2
    last = 4 * width**2 * lengths if leaves_out else a_layer
    return float(3 * ((len(layers) - 1) * a_layer + last).sum())


def _round(kind: Kind, batches: Sequence[Rows], number: int) -> None:
    for rows in batches:
        kind.update(rows)


def _memory(kind: Kind, batches: Sequence[Rows], args: argparse.Namespace) -> float | None:
    """The most memory that an update takes beside parameters and the optimizer's state, in GB; None on a CPU."""
    if args.device == "cpu":
        return None
    largest = max(batches, key=lambda rows: rows.tokens.numel())
    kind.update(largest)  # the optimizer's state comes with the first
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    kind.update(largest)
    torch.cuda.synchronize()
    return round((torch.cuda.max_memory_allocated() - before) / 1e9, 3)
