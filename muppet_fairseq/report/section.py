"""One section of the report: a study, of one model or of several."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from muppet_fairseq.prompts.count import ParameterCounts
from muppet_fairseq.report.compare import Comparison, compare
from muppet_fairseq.report.read import Run, Study
from muppet_fairseq.report.scores import MEAN, Scores


class Section:
    """One study, of one model or of several."""

    def __init__(self, studies: Sequence[Study]) -> None:
        self.models = [Scores(study) for study in studies]

    @property
    def study(self) -> Study:
        """The first model's, for what all have in common."""
        return self.models[0].study

    @cached_property
    def labels(self) -> list[str]:
        """A name for each model."""
        studies = [scores.study for scores in self.models]
        scales = {study.scale for study in studies}
        return [study.model if len(scales) == 1 else f"{study.model}, {study.scale}" for study in studies]

    @property
    def runs(self) -> list[Run]:
        """Of all models."""
        return [run for scores in self.models for run in scores.study.runs]

    @property
    def versions(self) -> dict[str, list[str]]:
        """By package, all that runs were made with."""
        found: dict[str, dict[str, None]] = {}
        for run in self.runs:
            for name, number in run.versions.items():
                found.setdefault(name, {})[number] = None
        return {name: list(numbers) for name, numbers in found.items()}

    @property
    def hardware(self) -> list[str]:
        """All that runs were made on."""
        return list(dict.fromkeys(run.hardware for run in self.runs if run.hardware))

    @property
    def with_variants(self) -> bool:
        return any(scores.study.variants != [None] for scores in self.models)

    @cached_property
    def columns(self) -> list[tuple[str, str]]:
        """Group and label of every column of any model, those of a group side by side, the mean last."""
        found = list(dict.fromkeys((c.group, c.label) for scores in self.models for c in scores.study.columns))
        groups = list(dict.fromkeys(group for group, _ in found))
        ordered = sorted(found, key=lambda column: groups.index(column[0]))
        return ordered + [("", MEAN.label)] * any(len(scores.columns) > 1 for scores in self.models)

    @cached_property
    def trained(self) -> dict[tuple[str, str, str | None], list[ParameterCounts]]:
        """By model, start's name and variant what its fine-tunings have trained; empty where that is always as much.

        Heads aside, whose sizes are those of their datasets.
        """
        found: dict[tuple[str, str, str | None], list[ParameterCounts]] = {}
        for label, scores in zip(self.labels, self.models, strict=True):
            for tuning in scores.study.fine_tunings:
                if tuning.run.parameters:
                    found.setdefault((label, tuning.start, tuning.variant), []).append(tuning.run.parameters)
        numbers = {(key[0], counts.prompts + counts.others) for key, several in found.items() for counts in several}
        return found if len(numbers) > len({model for model, _ in numbers}) else {}

    @cached_property
    def comparisons(self) -> list[Comparison]:
        return compare(self.models, self.labels)

    @cached_property
    def differences(self) -> dict[tuple[str, str, str | None, str], Comparison]:
        """Comparisons by model, start's name, variant and column."""
        return {(c.model, c.start.name, c.variant, c.column): c for c in self.comparisons}


def sections(studies: Sequence[Study]) -> list[Section]:
    """Put the same study of several models together, in the order of the studies."""
    by_name: dict[str, list[Study]] = {}
    for study in studies:
        by_name.setdefault(study.name, []).append(study)
    return [Section(same) for same in by_name.values()]
