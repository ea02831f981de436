"""The fairseq task ``muppet``: pre-finetuning on a suite of datasets, and fine-tuning on a suite of one."""

import logging
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Optional

import numpy as np
import torch
from fairseq import metrics
from fairseq.data import Dictionary
from fairseq.dataclass import ChoiceEnum, FairseqDataclass
from fairseq.tasks import FairseqTask, register_task
from omegaconf import II, MISSING
from torch import nn

from muppet_fairseq import compat, lr_factors
from muppet_fairseq.audit import FOLDER, Audit, Header
from muppet_fairseq.criterions.computed import CURE, Computed
from muppet_fairseq.criterions.statistics import StatisticsLayout
from muppet_fairseq.data.binarized import open_tokenizer
from muppet_fairseq.data.iterator import ScheduleIterator
from muppet_fairseq.data.multitask import MultitaskDataset
from muppet_fairseq.data.schedule import SAMPLINGS, STRATEGIES, BatchSchedule, SubBatchLimits
from muppet_fairseq.data.tokenizer import dictionary_sha256, load_dictionary
from muppet_fairseq.errors import MuppetError
from muppet_fairseq.families import FAMILIES
from muppet_fairseq.families.base import Layout
from muppet_fairseq.generation import GenerationOptions, Generator
from muppet_fairseq.models.layers import compile_layers
from muppet_fairseq.prompts.count import log_parameters
from muppet_fairseq.spec import DatasetSpec
from muppet_fairseq.suite import Suite
from muppet_fairseq.tasks.loss_weights import RunningLosses, size_weights
from muppet_fairseq.watch import Watch

logger = logging.getLogger(__name__)

ON_BAD_LOSS = ("stop", "skip")


@dataclass
class MuppetTaskConfig(FairseqDataclass):
    data: str = field(default=MISSING, metadata={"help": "data-bin folder made by 'python -m preprocess'"})
    suite: str = field(
        default=MISSING,
        metadata={"help": "what to train on: a suite file (.yaml) or names of datasets with commas between"},
    )
    max_positions: int = field(
        default=512,
        metadata={"help": "longest row in tokens: longer texts are cut, passages read in windows"},
    )
    window_overlap: int = field(default=128, metadata={"help": "tokens that neighbouring windows of a passage share"})
    batching: ChoiceEnum(STRATEGIES) = field(
        default="batch_heterogeneous",
        metadata={
            "help": "an update holds sub-batches of different datasets (the method), of one dataset, or all of "
            "one dataset comes before the next (Section 5.2); or each update draws how many datasets it holds, from "
            "two on, and which (MPT)"
        },
    )
    # not named "sampling": fairseq keeps all options in one namespace, and there that is its generator's
    dataset_sampling: ChoiceEnum(SAMPLINGS) = field(
        default="natural",
        metadata={
            "help": "every example once an epoch (the method), or datasets up- and down-sampled (Section 3.4)",
            "argparse_alias": "--sampling",
        },
    )
    sampling_temperature: float = field(
        default=2.0, metadata={"help": "for --sampling temperature: shares are size ** (1 / temperature)"}
    )
    # fairseq reads no "int | None"
    sub_batches: Optional[int] = field(  # noqa: UP045
        default=None,
        metadata={
            "help": "sub-batches of an update, where workers x update-freq does not give that number; default: that"
        },
    )
    reuse_heads: bool = field(
        default=False,
        metadata={
            "help": "start from the checkpoint's heads where name and shape agree; by default a run that starts "
            "from a checkpoint (--finetune-from-model, or --restore-file with --reset-optimizer) gets fresh heads"
        },
    )
    lr_factors: str = field(
        default="",
        metadata={
            "help": "learning rates of parts as factors of --lr at every update, say P=1,u=2,v=2,heads=0.1: of "
            "matrices of prompts, vectors of decomposed ones, heads (default: 1; with 0 a part stays as it is)"
        },
    )
    on_bad_loss: ChoiceEnum(ON_BAD_LOSS) = field(
        default="stop",
        metadata={
            "help": "what to do where a loss or gradient is not finite: stop and name the dataset and its examples, or "
            "do the update without such sub-batches, name and count them ('skipped')"
        },
    )
    worker_timeout: float = field(
        default=300.0,
        metadata={"help": "seconds that workers wait for one that hangs or is gone; then they name it and stop"},
    )
    eval_rouge: bool = field(
        default=False,
        metadata={"help": "in validation, write texts by beam search and log their ROUGE (family summarization)"},
    )
    eval_rouge_args: str = field(
        default="{}",
        metadata={"help": 'the beam search of --eval-rouge as JSON, say \'{"beam": 4, "no_repeat_ngram_size": 3}\''},
    )
    audit: bool = field(
        default=False,
        metadata={"help": "record in SAVE_DIR/audit which examples each update is of, for 'muppet audit SAVE_DIR'"},
    )
    compile: bool = field(
        default=False,
        metadata={"help": "have PyTorch compile the layers: faster on a GPU, after some minutes; needs a C++ compiler"},
    )
    seed: int = II("common.seed")
    update_freq: Any = II("optimization.update_freq")
    train_subset: str = II("dataset.train_subset")
    save_dir: str = II("checkpoint.save_dir")
    restore_file: str = II("checkpoint.restore_file")
    finetune_from_model: Optional[str] = II("checkpoint.finetune_from_model")  # noqa: UP045
    reset_optimizer: bool = II("checkpoint.reset_optimizer")


def _shapes(module: nn.Module) -> dict[str, torch.Size]:
    return {name: parameter.shape for name, parameter in module.named_parameters()}


def _nothing(log: dict[str, Any]) -> dict[str, Any]:
    """A log of the same form, in which nothing was counted. (nan x 0 is nan.)"""
    return {key: torch.zeros_like(value) if torch.is_tensor(value) else 0 for key, value in log.items()}


def starts_anew(cfg: MuppetTaskConfig) -> bool:
    """Whether this run begins with another run's parameters, rather than going on with its own."""
    if cfg.restore_file != "checkpoint_last.pt":
        return cfg.reset_optimizer
    return not (Path(cfg.save_dir) / "checkpoint_last.pt").exists()


@register_task("muppet", dataclass=MuppetTaskConfig)
class MuppetTask(FairseqTask):
    """Trains on the datasets of a suite.

    Attributes:
        specs: the suite's datasets; a sample's ``dataset`` is an index into it.
        heads: the name of the head that each dataset uses, None where the decoder writes the answer.
        reuse_heads: whether heads come from the checkpoint that is loaded.
        model: the model that was built, before fairseq wraps it for several workers; None before.
        prompted: whether the model that was built has a prompt for each dataset; samples then name theirs.
        lr_factors: of the parts that ``--lr-factors`` names.
        computed: the sub-batches of this update so far, on this worker.
        watch: over the other workers, if there are any.
    """

    def __init__(self, cfg: MuppetTaskConfig, dictionary: Dictionary, sha256: str, specs: list[DatasetSpec]) -> None:
        super().__init__(cfg)
        self.dictionary, self.dictionary_sha256, self.specs = dictionary, sha256, specs
        # the default: a checkpoint is loaded to be used as it is
        self.reuse_heads = cfg.reuse_heads or not starts_anew(cfg)
        self.model: nn.Module | None = None
        self.prompted = False
        self.lr_factors = lr_factors.parse(cfg.lr_factors)
        self.computed: list[Computed] = []
        self.watch: Watch | None = None
        self.layout = Layout(
            bos=dictionary.bos(),
            pad=dictionary.pad(),
            eos=dictionary.eos(),
            vocabulary=len(dictionary),
            max_positions=cfg.max_positions,
            window_overlap=cfg.window_overlap,
        )
        self.heads = self._heads(dim=1, dropout=0.0)[0]
        self.statistics_layout = StatisticsLayout(specs)
        self.running_losses = RunningLosses([spec.name for spec in specs])
        self.size_weights = np.ones(len(specs))
        self.generator = self._generator() if cfg.eval_rouge else None
        self.audit: Audit | None = None
        self._last_summary: tuple[torch.Tensor, dict[str, float]] | None = None
        # goes into checkpoints, for the hub and for evaluation, which have no data-bin
        self.state.merge_state_dict({"specs": [spec.to_dict() for spec in specs], "dictionary_sha256": sha256})

    @classmethod
    def setup_task(cls, cfg: MuppetTaskConfig, **kwargs: Any) -> "MuppetTask":
        path = Path(cfg.data) / "dict.txt"
        specs = Suite.load(cfg.suite).specs(cfg.data)
        dictionary = load_dictionary(path)
        logger.info("dictionary: %d types; suite: %s", len(dictionary), ", ".join(s.name for s in specs))
        return cls(cfg, dictionary, dictionary_sha256(path), specs)

    @property
    def source_dictionary(self) -> Dictionary:
        return self.dictionary

    @property
    def target_dictionary(self) -> Dictionary:
        return self.dictionary

    def max_positions(self) -> int:
        return self.cfg.max_positions

    def _generator(self) -> Generator:
        names = [spec.name for spec in self.specs if FAMILIES[spec.family].generates]
        if not names:
            raise MuppetError("--eval-rouge is set, but no dataset of the suite is of the family summarization")
        tokenizer = open_tokenizer(Path(self.cfg.data), names)
        return Generator(GenerationOptions.from_json(self.cfg.eval_rouge_args), self.dictionary, tokenizer.decode)

    # -- model ----------------------------------------------------------------------------------------

    def build_model(self, cfg: Any, from_checkpoint: bool = False) -> nn.Module:
        """The model to train."""
        model = super().build_model(cfg, from_checkpoint)
        self.model, self.prompted = model, getattr(model, "prompts", None) is not None
        if self.lr_factors:
            self._freeze(model)
        if self.cfg.compile:
            compile_layers(model)
        log_parameters(model)
        return model

    def _freeze(self, model: nn.Module) -> None:
        """What ``--lr-factors`` gives 0 is not trained. Raises MuppetError where nothing is left for a dataset."""
        left = lr_factors.freeze(self.lr_factors, model)
        for spec, head in zip(self.specs, self.heads, strict=True):
            if left <= {"heads"} and (not left or head is None):
                raise MuppetError(
                    f"--lr-factors {self.cfg.lr_factors} leaves nothing to train for {spec.name}: give a part more "
                    "than 0"
                )

    def _heads(self, dim: int, dropout: float) -> tuple[list[str | None], dict[str, nn.Module]]:
        names: list[str | None] = []
        modules: dict[str, nn.Module] = {}
        owner: dict[str, DatasetSpec] = {}
        for spec in self.specs:
            head = FAMILIES[spec.family].head(spec, dim, dropout)
            if head is None:
                names.append(None)
                continue
            name, module = head
            if hasattr(nn.ModuleDict, name):
                raise MuppetError(
                    f"the dataset {spec.name} has a head {name!r}, a name that PyTorch's modules use themselves; "
                    "give it another 'head' in the suite"
                )
            names.append(name)
            if name not in modules:
                modules[name], owner[name] = module, spec
            elif _shapes(module) != _shapes(modules[name]):
                raise MuppetError(
                    f"the datasets {owner[name].name} and {spec.name} share the head {name!r}, but need different "
                    "shapes; give one of them another 'head' in the suite"
                )
        return names, modules

    def build_heads(self, dim: int, dropout: float, *, has_decoder: bool) -> dict[str, nn.Module]:
        """One module for each head of the suite, by name; ``dim`` is the features' width.

        Raises MuppetError for a dataset whose family needs a decoder that the model lacks.
        """
        for spec in self.specs:
            if FAMILIES[spec.family].generates and not has_decoder:
                raise MuppetError(
                    f"the dataset {spec.name} is of the family {spec.family}, which an encoder alone cannot write: "
                    "train a model with a decoder (--arch muppet_bart_base), or take it out of the suite"
                )
        return self._heads(dim, dropout)[1]

    # -- training -------------------------------------------------------------------------------------

    def begin_epoch(self, epoch: int, model: nn.Module) -> None:
        """Called by fairseq where training begins or goes on, and at each new epoch."""
        super().begin_epoch(epoch, model)
        if self.cfg.audit:
            self.audit = self.audit or self._open_audit()
            self.audit.begin_epoch(epoch)

    def _open_audit(self) -> Audit:
        compat.announce_checkpoints()
        dataset, iterator = self._training()
        header = Header(
            workers=iterator.num_shards,
            datasets=[spec.name for spec in self.specs],
            examples=[len(subset) for subset in dataset.subsets],
            batching=str(self.cfg.batching),
            sampling=str(self.cfg.dataset_sampling),
            sampling_temperature=self.cfg.sampling_temperature,
            seed=self.cfg.seed,
        )
        return Audit(Path(self.cfg.save_dir) / FOLDER, header)

    def _training(self) -> tuple[MultitaskDataset, ScheduleIterator]:
        dataset = self.datasets[self.cfg.train_subset]
        return dataset, self.dataset_to_epoch_iter[dataset]

    def begin_update(self) -> None:
        """An update is computed from here on, perhaps once more."""
        self.computed.clear()
        if self.audit is not None:
            self.audit.begin_update()

    def skip(self, sample: dict) -> None:
        """The update goes on without a sub-batch."""
        if self.audit is not None:
            self.audit.skipped(sample)

    def before_checkpoint(self) -> None:
        """A checkpoint is about to be written; called on every worker."""
        if self.audit is not None:
            with self.watch.step("the audit before a checkpoint") if self.watch else nullcontext():
                self.audit.sync()

    def get_checkpoint_dict(self) -> dict[str, Any]:
        """What fairseq puts into a checkpoint and gives to :meth:`set_checkpoint_dict` where a run goes on."""
        return {type(self).__name__: {"patience": dict(compat.patience())}}

    def set_checkpoint_dict(self, state: dict[str, Any]) -> None:
        compat.patience().update(state["patience"])

    def optimizer_step(self, optimizer: Any, model: nn.Module, update_num: int) -> None:
        """A head or prompt that no sub-batch of the update named has gradient zero, on one worker as on many.

        (Without this, Adam would pass it over on one worker, but see zeros from fairseq's legacy DDP.)
        """
        zeros: dict[tuple[torch.Size, torch.dtype], torch.Tensor] = {}
        for parameter in chain(model.heads.parameters(), model.prompts.parameters() if self.prompted else ()):
            if parameter.grad is None and parameter.requires_grad:
                # they are alike, and an optimizer only reads gradients: one is enough for all of a shape
                kind = parameter.shape, parameter.dtype
                if kind not in zeros:
                    zeros[kind] = torch.zeros_like(parameter)
                parameter.grad = zeros[kind]
        super().optimizer_step(optimizer, model, update_num)
        self.computed.clear()
        if self.audit is not None:
            self.audit.end_update(update_num + 1, ends_epoch=self._training()[1].end_of_epoch())

    def train_step(
        self,
        sample: dict,
        model: nn.Module,
        criterion: nn.Module,
        optimizer: Any,
        update_num: int,
        ignore_grad=False,
    ) -> tuple[torch.Tensor, int, dict[str, Any]]:
        """fairseq's step; the batch that fills an idle round counts for nothing."""
        if self.watch:
            self.watch.passes(f"sub-batch {len(self.computed) + 1}, {self.specs[sample['dataset']].name}")
        loss, sample_size, log = super().train_step(sample, model, criterion, optimizer, update_num, ignore_grad)
        if ignore_grad:
            return loss, 0, _nothing(log)
        if self.audit is not None:
            self.audit.trained(sample)
        return loss, sample_size, log

    def valid_step(
        self, sample: dict, model: nn.Module, criterion: nn.Module
    ) -> tuple[torch.Tensor, int, dict[str, Any]]:
        """fairseq's step, and with ``--eval-rouge`` the ROUGE of generated texts."""
        self.computed.clear()
        loss, sample_size, log = super().valid_step(sample, model, criterion)
        if self.computed[-1].is_bad():
            return loss, 0, self._without_bad(log)
        number = sample["dataset"]
        family = FAMILIES[self.specs[number].family]
        if self.generator is not None and family.generates:
            rows = sample["net_input"]
            texts = self.generator(model, rows["src_tokens"], rows.get("prompt"))
            counts = self.statistics_layout.counts(log["statistics"], number)
            counts += family.rouge_statistics(texts, sample).to(counts)
        return loss, sample_size, log

    def _without_bad(self, log: dict[str, Any]) -> dict[str, Any]:
        """What to log of a validation batch with a loss that is not finite: nothing. Raises MuppetError, to stop."""
        sentence = f"validation: {self.computed[-1].complaint()}"
        if self.cfg.on_bad_loss == "stop":
            raise MuppetError(f"{sentence}; {CURE}")
        logger.warning("%s; it is left out of the figures", sentence)
        return _nothing(log)

    # -- data -----------------------------------------------------------------------------------------

    def load_dataset(self, split: str, combine: bool = False, **kwargs: Any) -> None:
        """Open ``split`` of every dataset; a split that is not trained on may be missing from some."""
        training = split == self.cfg.train_subset
        dataset = MultitaskDataset.open(
            self.cfg.data,
            self.specs,
            split,
            self.layout,
            self.dictionary_sha256,
            training=training,
            prompted=self.prompted,
        )
        if training:
            self.size_weights = size_weights([len(subset) for subset in dataset.subsets])
        self.datasets[split] = dataset
        logger.info("%s: %d examples of %d datasets", split, len(dataset), len(dataset.datasets))

    def get_batch_iterator(
        self,
        dataset: MultitaskDataset,
        max_tokens: int | None = None,
        max_sentences: int | None = None,
        num_shards: int = 1,
        shard_id: int = 0,
        num_workers: int = 0,
        epoch: int = 1,
        data_buffer_size: int = 0,
        **unused: Any,
    ) -> ScheduleIterator:
        """Return the iterator over ``dataset``; the one over the training set is made once and kept."""
        if dataset in self.dataset_to_epoch_iter:
            return self.dataset_to_epoch_iter[dataset]
        plan: Callable[[int, int], BatchSchedule] = partial(
            self.plan, dataset, SubBatchLimits(max_tokens, max_sentences)
        )
        iterator = ScheduleIterator(
            dataset,
            plan,
            update_freq=self.cfg.update_freq if dataset.training else [1],
            sub_batches=self.cfg.sub_batches if dataset.training else None,
            companion=self.running_losses if dataset.training else None,
            collate_fn=dataset.collater,
            num_shards=num_shards,
            shard_id=shard_id,
            num_workers=num_workers,
            epoch=epoch,
            buffer_size=data_buffer_size,
        )
        if dataset.training:
            self.dataset_to_epoch_iter[dataset] = iterator
        return iterator

    def plan(
        self,
        dataset: MultitaskDataset,
        limits: SubBatchLimits,
        epoch: int,
        sub_batches_per_update: int,
    ) -> BatchSchedule:
        """The schedule of an epoch, the same on every worker."""
        return BatchSchedule(
            dataset.sizes_by_dataset(),
            limits,
            strategy=str(self.cfg.batching),
            sampling=str(self.cfg.dataset_sampling) if dataset.training else "natural",
            temperature=self.cfg.sampling_temperature,
            sub_batches_per_update=sub_batches_per_update,
            # fairseq passes another one, which with --update-ordered-indices-seed depends on where a run was resumed
            seed=self.cfg.seed,
            epoch=epoch,
            shuffle=dataset.training,
        )

    # -- logs -----------------------------------------------------------------------------------------

    def reduce_metrics(self, logging_outputs: list[dict[str, Any]], criterion: nn.Module) -> None:
        """Log the losses and metrics of the suite, of each family and of each dataset.

        ``loss`` is the mean scaled loss over sub-batches, ``<dataset>_loss`` and ``<family>_loss`` are its
        parts; ``<dataset>_<metric>`` is a dataset's metric, ``<metric>`` and ``<family>_<metric>`` are means
        over the datasets that have it, and ``score`` is the mean over datasets of their main metric.
        ``datasets`` counts the distinct datasets of an update, ``examples`` the examples of a line. What was
        not seen since the last line is None.
        """
        super().reduce_metrics(logging_outputs, criterion)
        vector = sum(log["statistics"] for log in logging_outputs).double().cpu()
        sub_batches, losses, scaled = self.statistics_layout.losses(vector.numpy())
        total = sub_batches.sum()
        if total == 0:
            metrics.log_scalar("loss", 0, weight=0)  # where fairseq finds no loss, it logs -1
            return
        if criterion.training:
            self.running_losses.update(sub_batches, losses)
            metrics.log_scalar("datasets", int((sub_batches > 0).sum()), priority=30, round=1)
        metrics.log_scalar("loss", float(scaled.sum() / total), float(total), round=4)
        metrics.log_scalar_sum("examples", sum(float(log["nsentences"]) for log in logging_outputs), priority=900)
        metrics.log_scalar_sum("_statistics", vector)
        for key in self._summary(vector):
            own = any(key.startswith(f"{spec.name}_") for spec in self.specs)
            # what sums up the suite comes first in a line, single datasets last
            metrics.log_derived(key, partial(self._logged, key), priority=800 if own else 25)

    def _summary(self, vector: torch.Tensor) -> dict[str, float]:
        # every key of a line is derived from the same sums: they are summed up once
        if self._last_summary is None or self._last_summary[0] is not vector:
            self._last_summary = (vector, self.statistics_layout.summary(vector.numpy()))
        return self._last_summary[1]

    def _logged(self, key: str, meters: Any) -> float | None:
        sums = meters["_statistics"].sum
        return self._summary(sums).get(key) if torch.is_tensor(sums) else None
