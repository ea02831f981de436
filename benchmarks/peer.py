"""Multi-task training beside a plain loop over a `transformers` encoder: the same examples, encoder and heads."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fairseq import checkpoint_utils, options, utils
from fairseq import tasks as fairseq_tasks
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.logging import metrics
from torch import Tensor, nn

from benchmarks.measure import Target, in_turns, spread
from benchmarks.training import collate
from muppet_fairseq.data.multitask import MultitaskDataset
from muppet_fairseq.errors import MuppetError
from muppet_fairseq.families import FAMILIES
from muppet_fairseq.families.base import Sample
from muppet_fairseq.hf.importing import import_hf, open_source
from muppet_fairseq.hf.vocabulary import read_vocabulary
from muppet_fairseq.packages import default_cache
from muppet_fairseq.trainer import MuppetTrainer

LR, WARMUP = 2e-5, 0.1
#: of the encoders' outputs, and of the losses, on a batch without dropout
SAME = 1e-5

#: an update: the sub-batches that are added up, each as global example indices; and what trains on it
Update = list[np.ndarray]
Step = Callable[[list[Sample]], None]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", type=Path, help="data-bin folder, made with the encoder's tokenizer")
    parser.add_argument("--suite", required=True, help="suite file, or names with commas between")
    parser.add_argument("--encoder", required=True, metavar="SOURCE", help="as for 'muppet import-hf'")
    parser.add_argument("--updates", type=int, default=16, help="ours: of the epoch's first (default: %(default)s)")
    parser.add_argument("--max-positions", type=int, default=128, help="default: %(default)s")
    parser.add_argument("--max-tokens", type=int, default=2048, help="ours: of a sub-batch (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=32, help="theirs: texts or windows (default: %(default)s)")
    parser.add_argument("--questions", type=int, default=8, help="theirs: of multiple choice (default: %(default)s)")
    parser.add_argument("--update-freq", type=int, default=4, help="batches of an update (default: %(default)s)")
    parser.add_argument("--attention-dropout", type=float, default=0.1, help="of both (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=8, help="parts of it, in turns (default: %(default)s)")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Return, for an epoch of the same examples, examples/s, padding and what the ratio is made of.

    Three kinds take turns: ``ours``, ``theirs``, and their loop on our sub-batches, which tells apart what comes from
    the batches and what from the step. Each trains on its epoch's first updates, which both orders fill with all
    datasets; their seconds are scaled to the whole epoch by the padded tokens that it computes.

    Raises:
        MuppetError: something cannot be used, or the two encoders are not the same.
    """
    with open_source(args.encoder, default_cache()) as source, tempfile.TemporaryDirectory() as folder:
        trainer = _open_trainer(args, source, Path(folder))
        encoder = _open_encoder(source, args.attention_dropout)
        ids = torch.tensor(_ids(source, encoder.config), device=trainer.device)
    dataset = trainer.task.datasets["train"]
    peer = Peer(encoder, ids, trainer).to(trainer.device)
    difference = _difference(trainer, peer, dataset)

    epochs = {"ours": _our_updates(trainer)}
    epochs["theirs"] = random_updates(dataset, args.batch_size, args.questions, args.update_freq)
    epochs["theirs on our batches"] = epochs["ours"]
    updates = {kind: epoch[: args.updates] for kind, epoch in epochs.items()}
    step = _their_step(peer, 2 * args.updates)
    steps = {"ours": partial(_our_step, trainer), "theirs": step, "theirs on our batches": step}
    rounds = min(args.rounds, *map(len, updates.values()))
    kinds = {kind: partial(_pass, dataset, _parts(updates[kind], rounds), steps[kind]) for kind in updates}
    # the first round, which is not counted, is the last part
    seconds = in_turns(kinds, rounds, warm_up=1, device=trainer.device.type)

    figures, total = {}, {}
    for kind in kinds:
        figures[kind] = _describe(dataset, updates[kind]) | {"seconds": spread(seconds[kind])}
        figures[kind]["padded tokens of the epoch"] = _padded(dataset, epochs[kind])
        share = figures[kind]["padded tokens"] / figures[kind]["padded tokens of the epoch"]
        total[kind] = sum(seconds[kind]) / share
    faster = round(total["theirs"] / total["ours"], 3)
    what = f"examples/s of {len(dataset.datasets)} datasets / plain loop, {args.max_positions} positions"
    return {
        "encoder": f"{encoder.config.model_type}, {encoder.config.num_hidden_layers} x {encoder.config.hidden_size}",
        "device": trainer.device.type,
        "threads": torch.get_num_threads(),
        "examples": len(dataset),
        "datasets": len(dataset.datasets),
        "largest difference of the two at the start": difference,
        "figures": figures,
        "examples/s": {kind: round(len(dataset) / value, 2) for kind, value in total.items()},
        "made of": {
            "batches": round(total["theirs"] / total["theirs on our batches"], 3),
            "step": round(total["theirs on our batches"] / total["ours"], 3),
        },
        "targets": [Target(what, faster, 1.5, at_least=True).to_dict()],
    }


# -- ours ---------------------------------------------------------------------------------------------


def _open_trainer(args: argparse.Namespace, source: Path, folder: Path) -> MuppetTrainer:
    """The trainer of ``fairseq-train --task muppet``, with the weights of ``source`` and the training set loaded."""
    imported = import_hf(source, folder / "encoder")["options"]
    model = {key: value for key, value in imported.items() if key not in ("_name", "arch", "max_positions")}
    model["attention_dropout"] = args.attention_dropout
    words = {
        "arch": imported["arch"],
        **{key.replace("_", "-"): value for key, value in model.items()},
        "task": "muppet",
        "suite": args.suite,
        "max-positions": args.max_positions,
        "window-overlap": args.max_positions // 4,
        "criterion": "muppet",
        "finetune-from-model": folder / "encoder" / "model.pt",
        "optimizer": "adam",
        "adam-betas": "(0.9,0.999)",
        "weight-decay": 0.01,
        "clip-norm": 1.0,
        "lr": LR,
        "lr-scheduler": "polynomial_decay",
        "warmup-updates": 10,
        "total-num-update": 100_000,
        "max-tokens": args.max_tokens,
        "update-freq": args.update_freq,
        "save-dir": folder / "run",
    }
    line = [str(args.data), "--num-workers", "0", *([] if torch.cuda.is_available() else ["--cpu"])]
    line += [word for key, value in words.items() for word in (f"--{key}", str(value))]
    cfg = convert_namespace_to_omegaconf(options.parse_args_and_arch(options.get_training_parser(), line))
    task = fairseq_tasks.setup_task(cfg.task)
    trainer = MuppetTrainer(cfg, task, task.build_model(cfg.model), task.build_criterion(cfg.criterion))
    _, epoch = checkpoint_utils.load_checkpoint(cfg.checkpoint, trainer)
    trainer.begin_epoch(epoch.next_epoch_idx)
    return trainer


def _our_updates(trainer: MuppetTrainer) -> list[Update]:
    iterator = trainer.get_train_iterator(epoch=1)
    schedule = iterator.plan(1, iterator.sub_batches_per_update(1))
    return [[schedule[sub_batch] for sub_batch in update if sub_batch >= 0] for update in schedule.updates]


def _our_step(trainer: MuppetTrainer, samples: list[Sample]) -> None:
    with metrics.aggregate("train_inner"):
        trainer.train_step(samples)


# -- theirs -------------------------------------------------------------------------------------------


def _open_encoder(folder: Path, attention_dropout: float) -> nn.Module:
    # fairseq asks for torchaudio, transformers imports it wherever it is installed, and not every build of it loads
    sys.modules.setdefault("torchaudio", None)
    try:
        from transformers import AutoModel, logging
    except ImportError:
        raise MuppetError("this benchmark needs the package transformers: pip install transformers") from None
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    return AutoModel.from_pretrained(
        folder,
        attn_implementation="sdpa",
        attention_probs_dropout_prob=attention_dropout,
        add_pooling_layer=False,
        dtype=torch.float32,
    )


def _ids(folder: Path, config: Any) -> list[int]:
    """The encoder's own number of each token of the dictionary."""
    return read_vocabulary(folder, config.model_type, config.vocab_size, config.pad_token_id).rows


class Peer(nn.Module):
    """An encoder of `transformers` with a head for each dataset; the heads begin as ours.

    Args:
        encoder: returns ``last_hidden_state``.
        ids: ``[dictionary]``, the encoder's numbers of our tokens.
        trainer: gives datasets and heads.
    """

    def __init__(self, encoder: nn.Module, ids: Tensor, trainer: MuppetTrainer) -> None:
        super().__init__()
        task = trainer.task
        self.encoder, self.specs, self.pad = encoder, task.specs, task.dictionary.pad()
        self.register_buffer("ids", ids)
        dropout = trainer.cfg.model.pooler_dropout
        heads = [FAMILIES[spec.family].head(spec, encoder.config.hidden_size, dropout)[1] for spec in task.specs]
        for head, name in zip(heads, task.heads, strict=True):
            head.load_state_dict(trainer.model.heads[name].state_dict())
        self.heads = nn.ModuleDict({spec.name: head for spec, head in zip(task.specs, heads, strict=True)})

    def features(self, src_tokens: Tensor) -> Tensor:
        """``[R, T]`` tokens of our dictionary -> ``[R, T, D]``."""
        hidden = self.encoder(input_ids=self.ids[src_tokens], attention_mask=src_tokens.ne(self.pad).long())
        return hidden.last_hidden_state

    def forward(self, sample: Sample) -> Tensor:
        """The mean loss of a batch, which is of one dataset."""
        spec = self.specs[sample["dataset"]]
        family, head = FAMILIES[spec.family], self.heads[spec.name]

        def scores(src_tokens: Tensor, head: nn.Module, padded: bool) -> Tensor:
            features = self.features(src_tokens)
            return head(features[:, 0] if head.level == "sentence" else features)

        # the family flattens choices and leaves out padding, as the usual collators and models do
        return family.loss(family.logits(scores, sample, head), sample, 0.0).mean()


def random_updates(dataset: MultitaskDataset, batch_size: int, questions: int, update_freq: int) -> list[Update]:
    """Random batches of fixed size from each dataset, each example once, in random order: so datasets come in
    proportion to their number of batches."""
    rng = np.random.default_rng(1)
    batches, begin = [], 0
    for sizes, end in zip(dataset.sizes_by_dataset(), dataset.ends.tolist(), strict=True):
        own = rng.permutation(np.arange(begin, end))
        size = questions if sizes.rows.max() > 1 else batch_size
        batches += [own[first : first + size] for first in range(0, len(own), size)]
        begin = end
    order = rng.permutation(len(batches))
    return [[batches[b] for b in order[first : first + update_freq]] for first in range(0, len(order), update_freq)]


def _their_step(peer: Peer, updates: int) -> Step:
    """What does an update on samples; ``updates`` are how many there will be."""
    from transformers import get_linear_schedule_with_warmup

    optimizer = torch.optim.AdamW(peer.parameters(), lr=LR, weight_decay=0.01, fused=True)
    scheduler = get_linear_schedule_with_warmup(optimizer, int(WARMUP * updates), updates)
    peer.train()

    def step(samples: list[Sample]) -> None:
        for sample in samples:
            (peer(utils.move_to_cuda(sample) if peer.ids.is_cuda else sample) / len(samples)).backward()
        nn.utils.clip_grad_norm_(peer.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()

    return step


# -- both ---------------------------------------------------------------------------------------------


def _difference(trainer: MuppetTrainer, peer: Peer, dataset: MultitaskDataset) -> float:
    """The largest difference of the two encoders' outputs, and of their losses, over a batch of each dataset.

    Raises MuppetError where it is more than rounding.
    """
    largest = 0.0
    model = trainer.model.eval()
    peer.eval()
    for end in dataset.ends:
        sample = collate(dataset, np.arange(end - 4, end))
        sample = utils.move_to_cuda(sample) if peer.ids.is_cuda else sample
        tokens = sample["net_input"]["src_tokens"]
        with torch.no_grad():
            spec = peer.specs[sample["dataset"]]
            family = FAMILIES[spec.family]
            loss = family.loss(family.logits(model, sample, trainer.task.heads[sample["dataset"]]), sample, 0.0).mean()
            of_features = (model(tokens) - peer.features(tokens))[tokens.ne(peer.pad)].abs().max()
            largest = max(largest, float(of_features), float((loss - peer(sample)).abs()))
    if largest > SAME:
        raise MuppetError(f"the two encoders differ by {largest:.2g}; prepare the data with the encoder's tokenizer")
    return float(f"{largest:.2g}")


def _parts(updates: list[Update], rounds: int) -> list[list[Update]]:
    ends = np.linspace(0, len(updates), rounds + 1).round().astype(int)
    return [updates[begin:end] for begin, end in pairwise(ends)]


def _pass(dataset: MultitaskDataset, parts: list[list[Update]], step: Step, number: int) -> None:
    """One part of the epoch, from the examples on."""
    for update in parts[number - 1]:
        step([collate(dataset, batch) for batch in update])


def _padded(dataset: MultitaskDataset, updates: list[Update]) -> int:
    """Tokens that are computed: the longest row's, for each row of a batch."""
    sizes = dataset.sizes_by_dataset()
    lengths, rows = (np.concatenate([getattr(each, name) for each in sizes]) for name in ("lengths", "rows"))
    return sum(int(lengths[batch].max()) * int(rows[batch].sum()) for update in updates for batch in update)


def _describe(dataset: MultitaskDataset, updates: list[Update]) -> dict[str, Any]:
    batches = [batch for update in updates for batch in update]
    real, padded = sum(collate(dataset, batch)["ntokens"] for batch in batches), _padded(dataset, updates)
    return {
        "updates": len(updates),
        "examples a batch": round(sum(map(len, batches)) / len(batches), 1),
        "padded tokens": padded,
        "padding": round(1 - real / padded, 4),
    }
