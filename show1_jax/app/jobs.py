"""Jobs: one for each video, kept in a folder of its own inside the output folder.

OUT/ID/job.json      what was asked for, and what became of it
OUT/ID/000/…         its results, as `sample.py --out OUT/ID` writes them
OUT/adapters/…       what was uploaded

A job that was not finished when the service ended is queued again, and what it had made is kept.
"""

import dataclasses
import json
import re
import secrets
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from absl import logging

from show1_jax.app.requests import Settings
from show1_jax.checkpoints.fields import parse_json
from show1_jax.errors import InputError
from show1_jax.media import write_bytes
from show1_jax.outputs import Outputs

ID = re.compile(r"[0-9]{8}-[0-9]{6}-[0-9a-f]{8}")
QUEUED, IN_PROGRESS, COMPLETED, FAILED = "queued", "in_progress", "completed", "failed"
DELETED = "deleted"  # while the worker still has its folder; nobody sees such a job


@dataclasses.dataclass(eq=False)
class Job:
    """One video.

    Attributes:
      folder: its own.
      prompt: what to show.
      seed: the random seed.
      settings: how it is made.
      created: seconds since 1970.
      status: `QUEUED`, `IN_PROGRESS`, `COMPLETED`, `FAILED` or `DELETED`.
      error: why it failed, one sentence.
      ended: seconds since 1970; None before.
      warnings: sentences.
      source: the id of the job whose earlier stages it started from.
      stage: what is done now.
      done: the steps of it that are done.
      steps: all steps of it.
      doing: what is done besides steps, such as "compiling".
      progress: 0 to 100.
      seconds_left: None if unknown.
      preview: what is being denoised: an animated WebP picture; b"" for nothing.
      version: grows with every change.
    """

    folder: Path
    prompt: str
    seed: int
    settings: Settings
    created: float
    status: str = QUEUED
    error: str | None = None
    ended: float | None = None
    warnings: list[str] = dataclasses.field(default_factory=list)
    source: str | None = None
    stage: str | None = None
    done: int = 0
    steps: int = 0
    doing: str = ""
    progress: float = 0.0
    seconds_left: float | None = None
    preview: bytes = b""
    version: int = 0

    def __post_init__(self) -> None:
        """Finds what is there already."""
        self.outputs = Outputs(self.folder)
        self.made = self.outputs.made_stages(0)

    @classmethod
    def new(cls, out: Path, prompt: str, seed: int, settings: Settings, created: float) -> Self:
        """A job whose id begins with its time, so that ids are in order; nothing is written."""
        stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime(created))
        microseconds = int(created % 1 * 1e6)
        name = f"{stamp}-{microseconds:05x}{secrets.token_hex(2)[:3]}"
        return cls(out / name, prompt, seed, settings, created)

    @property
    def id(self) -> str:
        """The name of its folder."""
        return self.folder.name

    @property
    def ended_well(self) -> bool:
        """Whether all that was asked for is there."""
        return self.status == COMPLETED

    @property
    def waits_or_runs(self) -> bool:
        """Whether it has yet to end."""
        return self.status in (QUEUED, IN_PROGRESS)

    def change(self, **fields: Any) -> None:
        """Sets attributes, and tells those who watch."""
        for name, value in fields.items():
            setattr(self, name, value)
        self.version += 1

    def end(self, status: str, error: str | None = None) -> None:
        """Ends it, on disk too; if that cannot be written, only a restart will not know."""
        self.change(
            status=status, error=error, ended=time.time(), stage=None, doing="", preview=b"",
            done=0, steps=0,
            seconds_left=None, progress=100.0 if status == COMPLETED else self.progress,
        )  # fmt: skip
        try:
            self.save()
        except InputError as problem:
            logging.warning("%s", problem)

    def save(self) -> None:
        """Writes `job.json`; a job that runs is written as one that waits.

        Raises:
          InputError: if it cannot be written.
        """
        fields = {
            "prompt": self.prompt,
            "seed": self.seed,
            **self.settings.to_json(),
            "source": self.source,
            "created": self.created,
            "status": QUEUED if self.status == IN_PROGRESS else self.status,
            "error": self.error,
            "ended": self.ended,
            "warnings": self.warnings,
        }
        try:
            self.folder.mkdir(exist_ok=True)
        except OSError as error:
            raise InputError(f"{self.folder} cannot be written: {error.strerror}") from None
        write_bytes(self.folder / "job.json", json.dumps(fields, indent=2).encode() + b"\n")

    @classmethod
    def load(cls, folder: Path) -> Self:
        """A job as `save` wrote it.

        Raises:
          InputError: if it cannot be read.
        """
        path = folder / "job.json"
        try:
            fields = parse_json(path.read_text())
            job = cls(
                folder,
                str(fields["prompt"]),
                int(fields["seed"]),
                Settings.from_json(fields),
                float(fields["created"]),
                str(fields["status"]),
                fields["error"],
                fields["ended"],
                list(fields["warnings"]),
                fields["source"],
            )
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise InputError(f"{path} cannot be read: {error}") from None
        job.progress = 100.0 if job.status == COMPLETED else 0.0
        return job

    def take(self, source: "Job", stages: Sequence[str]) -> None:
        """Takes results of another job with the same prompt and seed.

        Raises:
          InputError: if one is not there, or a file cannot be written.
        """
        self.outputs.begin([self.prompt], [self.seed])
        self.outputs.take(source.outputs, stages)
        self.made = self.outputs.made_stages(0)

    def remove(self) -> None:
        """Removes all of it."""
        shutil.rmtree(self.folder, ignore_errors=True)


def load_jobs(out: Path) -> Iterator[Job]:
    """The jobs of an output folder, oldest first; what is left of deleted ones is removed."""
    for folder in sorted(out.iterdir()):
        if not ID.fullmatch(folder.name) or not (folder / "job.json").is_file():
            continue
        try:
            job = Job.load(folder)
        except InputError as error:
            logging.warning("%s: the video is left out.", error)
            continue
        if job.status == DELETED:
            job.remove()
        else:
            yield job


class JobResults:
    """The results of jobs that are sampled together; see `stages.results.Results`."""

    def __init__(self, jobs: list[Job]) -> None:
        """Item i is `jobs[i]`."""
        self._jobs = jobs

    def has(self, item: int, stage: str) -> bool:
        """Whether there is a result."""
        return self._jobs[item].outputs.has(0, stage)

    def done(self, item: int, stage: str, settings: Any) -> bool:
        """Whether there is a result that these settings made."""
        return self._jobs[item].outputs.done(0, stage, settings)

    def load(self, item: int, stage: str) -> np.ndarray:
        """A result as it was saved."""
        return self._jobs[item].outputs.load(0, stage)

    def save(self, item: int, stage: str, result: np.ndarray, settings: Any) -> None:
        """Keeps a result, unless the job was deleted meanwhile."""
        job = self._jobs[item]
        if job.status == DELETED:
            return
        job.outputs.save(0, stage, result, settings)
        job.change(made=job.outputs.made_stages(0), preview=b"")

    def fail(self, item: int, stage: str, error: InputError) -> None:
        """Notes why a job failed; the others go on."""
        self._jobs[item].outputs.fail(0, stage, error)
        self._jobs[item].error = f"{stage}: {error}"
