"""Jobs: one for each video, kept in a folder of its own inside the output folder.

OUT/ID/job.json      what was asked for, and what became of it
OUT/ID/000/…         its results, as `sample.py --out OUT/ID` writes them
OUT/adapters/…       what was uploaded

A job that was not finished when the service ended is queued again, and what it had made is kept.
"""

import dataclasses
import enum
import json
import math
import re
import secrets
import shutil
import time
from collections.abc import Iterator, Sequence
from typing import Any, Self

import numpy as np
from absl import logging
from etils.epath import Path

from show1_jax.app.requests import Settings
from show1_jax.checkpoints.fields import parse_json
from show1_jax.errors import InputError
from show1_jax.media import write_bytes
from show1_jax.outputs import Outputs

ID = re.compile(r"[0-9]{8}-[0-9]{6}-[0-9a-f]{8}")


class Status(enum.StrEnum):
    """What becomes of a job."""

    QUEUED = "queued"
    IN_PROGRESS = "in_progress"
    COMPLETED = "completed"
    FAILED = "failed"
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
      status: what has become of it.
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
      made: the stages whose results are there.
      looked_at: when somebody last asked for it, by `time.monotonic`.
    """

    folder: Path
    prompt: str
    seed: int
    settings: Settings
    created: float
    status: Status = Status.QUEUED
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
    looked_at: float = -math.inf
    made: list[str] = dataclasses.field(default_factory=list)

    def __post_init__(self) -> None:
        """Opens its folder, which need not be there."""
        self.outputs = Outputs(self.folder)

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
    def waits_or_runs(self) -> bool:
        """Whether it has yet to end."""
        return self.status in (Status.QUEUED, Status.IN_PROGRESS)

    def change(self, **fields: Any) -> None:
        """Sets attributes; the status last, since others read them meanwhile."""
        for name in sorted(fields, key=lambda name: name == "status"):
            setattr(self, name, fields[name])

    def end(self, status: Status, error: str | None = None) -> None:
        """Ends it, on disk first; if that cannot be written, only a restart will not know."""
        ended = time.time()
        try:
            self.save(status=status, error=error, ended=ended)
        except InputError as problem:
            logging.warning("%s", problem)
        self.change(
            status=status, error=error, ended=ended, stage=None, doing="", preview=b"",
            done=0, steps=0, seconds_left=None,
            progress=100.0 if status == Status.COMPLETED else self.progress,
        )  # fmt: skip

    def save(self, **changed: Any) -> None:
        """Writes `job.json`; a job that runs is written as one that waits.

        Args:
          changed: what is about to be another status, error or time.

        Raises:
          InputError: if it cannot be written.
        """
        fields = {
            "prompt": self.prompt,
            "seed": self.seed,
            **self.settings.to_json(),
            "source": self.source,
            "created": self.created,
            "status": Status.QUEUED if self.status == Status.IN_PROGRESS else self.status,
            "error": self.error,
            "ended": self.ended,
            "warnings": self.warnings,
        } | changed
        try:
            self.folder.mkdir(exist_ok=True)
        except OSError as error:
            raise InputError(f"{self.folder} cannot be written: {error.strerror}") from None
        write_bytes(self.folder / "job.json", json.dumps(fields, indent=2).encode() + b"\n")

    @classmethod
    def load(cls, folder: Path) -> Self:
        """A job as `save` wrote it; one whose results are damaged has failed.

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
                Status(fields["status"]),
                fields["error"],
                fields["ended"],
                list(fields["warnings"]),
                fields["source"],
            )
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise InputError(f"{path} cannot be read: {error}") from None
        job.progress = 100.0 if job.status == Status.COMPLETED else 0.0
        try:
            job.made = job.outputs.made_stages(0)
        except InputError as error:
            job.change(status=Status.FAILED, error=job.told(error))
        return job

    def told(self, error: InputError) -> str:
        """What clients are told of an error: no path outside of the job's folder."""
        return str(error).replace(f"{self.folder}/", "").replace(str(self.folder), self.id)

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
    """The jobs of an output folder, oldest first; what kills have left of others is removed.

    Nobody else may use the folder meanwhile.
    """
    for part in out.glob("adapters/.*.part"):
        part.unlink(missing_ok=True)
    for folder in sorted(out.iterdir()):
        if not ID.fullmatch(folder.name):
            continue
        if not (folder / "job.json").is_file():  # was not accepted yet, or is half removed
            shutil.rmtree(folder, ignore_errors=True)
            continue
        try:
            job = Job.load(folder)
        except InputError as error:
            logging.warning("%s: the video is left out.", error)
            continue
        if job.status == Status.DELETED:
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
        """Keeps a result, unless the job was deleted; one that cannot be written fails."""
        job = self._jobs[item]
        if job.status == Status.DELETED:
            return
        try:
            job.outputs.save(0, stage, result, settings)
            job.change(made=job.outputs.made_stages(0), preview=b"")
        except InputError as error:
            job.error = job.told(error)

    def fail(self, item: int, stage: str, error: InputError) -> None:
        """Notes why a job failed; the others go on."""
        job = self._jobs[item]
        job.error = job.error or f"{stage}: {job.told(error)}"
