"""Work off the runs of a study, as many at a time as there are devices; what is finished is never done again."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import IO, Any

from muppet_fairseq.errors import MuppetError, sentences_in
from muppet_fairseq.files import write_text
from muppet_fairseq.study import run_folder
from muppet_fairseq.study.commands import CHECKPOINT, THREADS, Command, Machine, commands, count_updates
from muppet_fairseq.study.expand import Run
from muppet_fairseq.study.processes import lock, start, unlock

#: seconds from one line of progress to the next when no run ends
_SILENCE = 60
#: seconds from one look to the next at runs that another process works on
_LOOK = 5


@dataclass
class _Job:
    """A run that is being worked on: ``commands[done]`` is the one in ``process``."""

    run: Run
    updates: int
    commands: list[Command]
    done: int
    devices: list[str]
    claim: IO[str]
    #: seconds that earlier attempts took
    before: float
    began: float
    process: BaseProcess

    @property
    def seconds(self) -> float:
        return self.before + time.monotonic() - self.began


class Driver:
    """Works off runs.

    Args:
        runs: the folder of all runs.
        keep: keep the fine-tuned models, which are large and otherwise removed once they are evaluated; what was tuned
            of a model is small and always kept.
    """

    def __init__(self, runs: Path, machine: Machine, *, keep: bool = False) -> None:
        self.runs, self.machine, self.keep = runs, machine, keep
        self._free = list(machine.devices)
        self._waiting: list[Run] = []
        self._jobs: list[_Job] = []
        self._finished: set[str] = set()
        #: whose models others wait for, by key
        self._needed: set[str] = set()
        #: why runs failed, by key
        self._failures: dict[str, str] = {}
        #: seconds that finished runs took, by what they have in common
        self._seconds: dict[str, list[float]] = defaultdict(list)
        self._told = time.monotonic()

    def work_off(self, runs: Iterable[Run]) -> dict[str, str]:
        """Do all runs that are not finished; returns why runs failed, by key, in the order of ``runs``.

        Runs that others need come first in ``runs``. One that failed earlier is tried again; one that needs another
        that fails is left out. When this ends early, by Ctrl-C or an error, its processes end, too.

        Raises:
            MuppetError: a run wants more devices than there are, or its ``run.json`` cannot be read.
        """
        runs = list(runs)
        for run in reversed(runs):
            self.machine.places(run)
            described = run_folder.read_run(self.runs / run.folder)
            if self._is_done(run, described):
                self._note_finished(run, described["seconds"])
            else:
                self._waiting.insert(0, run)
                self._needed.update(other.key for other in run.needs)
        self._total = len(self._finished) + len(self._waiting)
        if self._waiting:
            print(f"{self._total} runs, {len(self._finished)} of them finished before", flush=True)
        try:
            while self._waiting or self._jobs:
                self._start_what_can()
                ended = connection.wait([job.process.sentinel for job in self._jobs], _LOOK)
                for job in [job for job in self._jobs if job.process.sentinel in ended]:
                    self._go_on(job)
                if time.monotonic() - self._told > _SILENCE:
                    self._tell(", ".join(map(self._progress, self._jobs)) or "waiting for another process")
        finally:
            for job in self._jobs:
                job.process.terminate()
            for job in self._jobs:
                job.process.join()
        return {run.key: self._failures[run.key] for run in runs if run.key in self._failures}

    def _is_done(self, run: Run, described: dict[str, Any]) -> bool:
        """Finished, with its model still there if another run needs that: records (``--records``) have no models."""
        there = run.key not in self._needed or (self.runs / run.folder / CHECKPOINT).exists()
        return described.get("state") == "finished" and there

    def _start_what_can(self) -> None:
        for run in list(self._waiting):
            causes = [needed.label for needed in run.needs if needed.key in self._failures]
            if causes:
                self._waiting.remove(run)
                self._fail(run, f"it needs {' and '.join(causes)}, which failed")
                continue
            if any(needed.key not in self._finished for needed in run.needs):
                continue
            count = self.machine.places(run)
            if count > len(self._free):
                return  # or those that need less would always overtake it
            claim = lock(self.runs / run.folder)
            if claim is None:
                continue  # another process works on it
            described = run_folder.read_run(self.runs / run.folder)
            self._waiting.remove(run)
            if self._is_done(run, described):
                unlock(claim)
                self._note_finished(run, described["seconds"])
                continue
            devices, self._free = self._free[:count], self._free[count:]
            try:
                self._jobs.append(self._begin(run, devices, claim, described))
            except MuppetError as error:
                self._free += devices
                failed = run_folder.describe_run(run, "failed", [], described.get("seconds", 0.0), str(error))
                failed["commands_done"] = described.get("commands_done", 0)
                run_folder.write_run(self.runs / run.folder, failed)
                unlock(claim)
                self._fail(run, str(error))

    def _begin(self, run: Run, devices: list[str], claim: IO[str], described: dict[str, Any]) -> _Job:
        folder = self.runs / run.folder
        write_text(folder / "suite.yaml", run.suite.text())
        updates = count_updates(run, folder / "suite.yaml")
        if run.judged.entries:
            write_text(folder / "judged.yaml", run.judged.text())
        todo = commands(run, self.runs, self.machine, updates)
        done = min(described.get("commands_done", 0), len(todo) - 1)
        # as far as what they made is still there
        done = next((n for n, c in enumerate(todo[:done]) if c.makes and not (folder / c.makes).exists()), done)
        trains = any(command.makes == CHECKPOINT for command in todo[done:])
        if trains and run.options.get("no-save-optimizer-state") == "true":
            # fairseq would count from 0 again, with the parameters of an attempt that got to its end
            _remove_models(folder)
        job = _Job(
            run=run,
            updates=updates,
            commands=todo,
            done=done,
            devices=devices,
            claim=claim,
            before=0.0 if described.get("state") == "finished" else described.get("seconds", 0.0),
            began=time.monotonic(),
            process=self._process(todo[done], folder, devices),
        )
        self._write(job, "running")
        return job

    def _process(self, command: Command, folder: Path, devices: list[str]) -> BaseProcess:
        environment = dict.fromkeys(THREADS, str(self.machine.threads))
        if self.machine.gpus:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(devices)
        return start(command, folder, environment, gpus=self.machine.gpus)

    def _go_on(self, job: _Job) -> None:
        """A process has ended: start the run's next one, or end the run."""
        folder = self.runs / job.run.folder
        job.process.join()
        if job.process.exitcode == 0:
            job.done += 1
            if job.done < len(job.commands):
                job.process = self._process(job.commands[job.done], folder, job.devices)
                self._write(job, "running")
                return
        self._jobs.remove(job)
        self._free += job.devices
        try:
            if job.process.exitcode != 0:
                raise MuppetError(_last_words(folder / "stderr.log", job.process.exitcode))
            outcome = {"training": run_folder.training_of(folder)}
            if job.run.judged.entries:
                outcome["results"] = run_folder.results_of(folder)
        except MuppetError as error:
            self._write(job, "failed", reason=str(error))
            self._fail(job.run, str(error))
        else:
            self._write(job, "finished", **outcome)
            if job.run.judged.entries and job.run.tunes == "all" and not self.keep:
                _remove_models(folder)
            self._note_finished(job.run, job.seconds)
            self._tell(f"{job.run.label}: {_outcome(outcome)} ({job.seconds:.0f} s)")
        unlock(job.claim)

    def _write(self, job: _Job, state: str, reason: str | None = None, **more: Any) -> None:
        described = run_folder.describe_run(job.run, state, list(map(str, job.commands)), job.seconds, reason)
        described |= {"threads": self.machine.threads, "commands_done": job.done}
        run_folder.write_run(self.runs / job.run.folder, described | more)

    def _note_finished(self, run: Run, seconds: float) -> None:
        self._finished.add(run.key)
        self._seconds[_alike(run)].append(seconds)

    def _fail(self, run: Run, reason: str) -> None:
        self._failures[run.key] = reason
        self._tell(f"{run.label}: FAILED, {reason}")

    def _tell(self, what: str) -> None:
        self._told = time.monotonic()
        seconds, complete = self._left()
        time_left = f"{'about' if complete else 'more than'} {_duration(seconds)} left"
        ended = len(self._finished) + len(self._failures)
        print(f"  {ended} of {self._total}: {what}" + (f"; {time_left}" if ended < self._total else ""), flush=True)

    def _left(self) -> tuple[float, bool]:
        """Seconds that the rest will take, by those that like runs took, and whether there were any for all of it."""
        seconds, complete = 0.0, True
        for run, places, spent, share in self._rest():
            whole = spent / share if share else self._expected(run)
            complete &= whole is not None
            seconds += max(0.0, (whole or 0.0) - spent) * places
        return seconds / len(self.machine.devices), complete

    def _rest(self) -> Iterator[tuple[Run, int, float, float]]:
        """What is not finished: the run, its devices, the seconds it has had, the share of its updates it has done."""
        for job in self._jobs:
            yield job.run, len(job.devices), job.seconds, self._updates_done(job) / job.updates
        for run in self._waiting:
            yield run, self.machine.places(run), 0.0, 0.0

    def _progress(self, job: _Job) -> str:
        return f"{job.run.label}: {self._updates_done(job)} of {job.updates} updates"

    def _updates_done(self, job: _Job) -> int:
        with suppress(MuppetError):
            return int(run_folder.last_logged(self.runs / job.run.folder / "train.log", "train_inner")["num_updates"])
        return 0

    def _expected(self, run: Run) -> float | None:
        alike = self._seconds.get(_alike(run)) or [
            second for sort, seconds in self._seconds.items() if sort.startswith(run.kind) for second in seconds
        ]
        return sum(alike) / len(alike) if alike else None


def _remove_models(folder: Path) -> None:
    for checkpoint in folder.glob("checkpoint*.pt"):
        checkpoint.unlink()


def _alike(run: Run) -> str:
    return f"{run.kind} {' '.join(run.judged.names)}"


def _outcome(outcome: dict[str, Any]) -> str:
    if "results" not in outcome:
        return f"{outcome['training']['updates']} updates, mean scaled loss {outcome['training']['loss']:.3f}"
    found = {name: (result["metric"], result["metrics"]) for name, result in outcome["results"].items()}
    return ", ".join(
        f"{name} " * (len(found) > 1) + f"{metric} {100 * metrics[metric]:.1f}"
        for name, (metric, metrics) in found.items()
    )


def _last_words(errors: Path, code: int | None) -> str:
    """Why a process ended with ``code``: its sentence, or the last line that it wrote."""
    text = errors.read_text(encoding="utf-8", errors="replace") if errors.exists() else ""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    said = (sentences_in(text) or lines or ["it said nothing"])[-1]
    return f"{said} (exit status {code}, see {errors})"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"
