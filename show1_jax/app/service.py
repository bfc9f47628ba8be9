"""The queue of videos to make and the worker that makes them.

One thread samples; all others only ask. What they share is guarded by one lock. Jobs with the same
settings are sampled together. A job is on disk before it is accepted, so that it is made even if
the service is killed.
"""

import collections
import contextlib
import logging
import math
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from show1_jax.app import jobs as states
from show1_jax.app.jobs import Job, JobResults, load_jobs
from show1_jax.app.metrics import Metrics
from show1_jax.app.requests import MAX_SEED, Refused, Settings, VideoRequest
from show1_jax.app.studio import Studio
from show1_jax.app.watch import Speeds, Watch
from show1_jax.errors import InputError
from show1_jax.paths import Checkpoint

MAX_RETRY = 3600  # seconds


class _Stopped(Exception):
    """Nobody wants the videos that are sampled, or the service ends."""


class Service:
    """Accepts jobs, makes them, and knows what became of them.

    Attributes:
      studio: makes engines.
      out: the output folder.
      metrics: counts.
    """

    def __init__(
        self, config: ConfigDict, checkpoint: Checkpoint, out: Path, max_queue: int = 100
    ) -> None:
        """Reads the output folder; `start` begins to work.

        Args:
          config: as in `configs/show1.py`.
          checkpoint: a converted checkpoint, or several; see `Engine`.
          out: the output folder, which exists.
          max_queue: how many videos may wait.

        Raises:
          InputError: if a setting is wrong, or a network is missing.
        """
        self.out, self._max_queue = out, max_queue
        self.studio = Studio(config, checkpoint, out / "adapters")
        self.metrics = Metrics(lambda: len(self._queue))
        self._jobs: dict[str, Job] = {}  # oldest first
        self._queue: collections.deque[Job] = collections.deque()
        self._running: list[Job] = []
        self._changed = threading.Condition()
        self._draining = self._closing = False
        self._latest = 0.0  # when the last job was created
        self._speeds = Speeds()
        self._seconds: collections.deque[float] = collections.deque(maxlen=20)  # of a video
        self._thread = threading.Thread(target=self._work, name="sampling", daemon=True)
        for job in load_jobs(out):
            self._jobs[job.id] = job
            if job.status == states.QUEUED:
                self._queue.append(job)

    # What clients ask.

    def submit(self, request: VideoRequest) -> list[Job]:
        """Accepts a request: one job for each video.

        Raises:
          Refused: if it is wrong, the queue is full, or the service is about to end.
        """
        settings = self.studio.settings(request)
        source = None if request.source is None else self.job(request.source)
        prompt, first = self._subject(request, source)
        there = self._earlier(settings, source)
        missing = self.studio.missing(settings, there)
        if missing:
            raise Refused(
                f"{settings.stages[0]} starts from the result of {missing}: run that stage too, or "
                "give the id of a video that has it as source"
            )
        words = self.studio.unknown_words(prompt)
        warnings = [f"The checkpoint does not know {', '.join(map(repr, words))}."] if words else []
        with self._changed:
            self._check_room(request.n)
            made: list[Job] = []
            try:
                for seed in range(first, first + request.n):
                    self._latest = max(time.time(), self._latest + 2e-6)  # each its own microsecond
                    job = Job.new(self.out, prompt, seed, settings, self._latest)
                    job.warnings, job.source = warnings, request.source
                    made.append(job)
                    if source is not None:
                        job.take(source, there)
                    job.save()
            except InputError as error:
                for job in made:
                    job.remove()
                raise Refused(str(error), 507) from None
            for job in made:
                self._jobs[job.id] = job
                self._queue.append(job)
            self._changed.notify_all()
        return made

    def job(self, name: str) -> Job:
        """A job by its id.

        Raises:
          Refused: if there is none.
        """
        job = self._jobs.get(name)
        if job is None or job.status == states.DELETED:
            raise Refused(f"there is no video {name!r:.40}", 404)
        return job

    def newest(self, limit: int, after: str | None = None) -> list[Job]:
        """Jobs, newest first.

        Args:
          limit: how many.
          after: the id of the last one that is known already.
        """
        with self._changed:
            found = [job for job in reversed(self._jobs.values()) if job.status != states.DELETED]
        if after is not None:
            found = [job for job in found if job.id < after]
        return found[:limit]

    def place(self, job: Job) -> int:
        """How many jobs are made before a job that waits; 0 for others."""
        with self._changed:
            return self._queue.index(job) + len(self._running) if job in self._queue else 0

    def delete(self, name: str) -> None:
        """Removes a job and its results; one that is being made is given up.

        Raises:
          Refused: if there is none.
        """
        with self._changed:
            job = self.job(name)
            running = job in self._running
            if job in self._queue:
                self._queue.remove(job)
            job.end(states.DELETED)
            del self._jobs[name]
            if not running:  # else the worker removes it
                job.remove()

    def file(self, name: str, stage: str | None, ending: str) -> Path:
        """A file to look at.

        Args:
          name: the job's id.
          stage: whose result; None for the last one's, once the job is completed.
          ending: "mp4", "gif" or, for a stage that makes one frame, "png"; "json" for metadata.

        Raises:
          Refused: if it is not there.
        """
        job = self.job(name)
        if ending == "json":
            files = [job.folder / "000" / "metadata.json"]
        else:
            if stage is None and not job.ended_well:
                raise Refused(f"the video is {job.status}: ask for a stage that is made", 409)
            if stage is None:
                stage = job.settings.stages[-1]
            if stage not in job.made:
                raise Refused(f"the video has no result of {stage!r:.40}", 404)
            files = job.outputs.shown(0, stage)
        for path in files:
            if path.suffix == f".{ending}" and path.is_file():
                return path
        endings = " and ".join(path.suffix[1:] for path in files)
        raise Refused(f"there is no {ending!r:.10} of it, only {endings}", 404)

    def add_adapter(self, name: str, part: Path) -> None:
        """Keeps an uploaded file as an adapter, or removes it.

        Args:
          name: what it is called from now on.
          part: the uploaded file, inside the output folder; it is gone afterwards.

        Raises:
          Refused: if it is no adapter, or another one has the name.
        """
        path = self.studio.adapters / name
        try:
            try:
                self.studio.check_adapter(part)
            except InputError as error:
                why = str(error).replace(str(part), name)
                raise Refused(f"{name} is not used: {why}") from None
            if path.exists() and path.read_bytes() != part.read_bytes():
                raise Refused(f"there is another adapter {name}: give it another name", 409)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)

    # How it begins and ends.

    def start(self) -> None:
        """Starts the worker."""
        self.studio.adapters.mkdir(exist_ok=True)
        self._thread.start()

    def drain(self, then: Callable[[], None]) -> None:
        """Accepts nothing more, and ends once what is being made is finished.

        Args:
          then: is called then, by another thread.
        """
        with self._changed:
            self._draining = True
            self._changed.notify_all()

        def wait() -> None:
            self._thread.join()
            then()

        threading.Thread(target=wait, daemon=True).start()

    def close(self) -> None:
        """Ends the worker between two segments; what waits or runs is made after a restart."""
        with self._changed:
            self._draining = self._closing = True
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join()

    @property
    def works(self) -> bool:
        """Whether the worker is there, as it is until the service ends."""
        return self._thread.is_alive()

    @property
    def draining(self) -> bool:
        """Whether nothing more is accepted."""
        return self._draining

    # How requests become jobs.

    def _subject(self, request: VideoRequest, source: Job | None) -> tuple[str, int]:
        """The prompt and the first seed."""
        prompt, seed = request.prompt, request.seed
        if source is not None:
            if prompt not in (None, source.prompt) or seed not in (None, source.seed):
                raise Refused("prompt and seed are those of the source: leave them out")
            if request.n > 1:
                raise Refused("a source has one seed: leave n out")
            return source.prompt, source.seed
        if prompt is None or not prompt.strip():
            raise Refused("give a prompt")
        try:
            prompt.encode()
        except UnicodeEncodeError:
            raise Refused("the prompt is no text: it is not valid Unicode") from None
        if seed is None:
            seed = secrets.randbelow(MAX_SEED + 2 - request.n)
        if seed + request.n - 1 > MAX_SEED:
            raise Refused(f"the last seed is more than {MAX_SEED}: give a smaller one")
        return prompt, seed

    def _earlier(self, settings: Settings, source: Job | None) -> list[str]:
        """The stages of a source that a job takes: those before the first that it runs."""
        if source is None:
            return []
        names = self.studio.stages
        before = names[: names.index(settings.stages[0])]
        return [name for name in source.made if name in before]

    def _check_room(self, count: int) -> None:
        if self._draining:
            raise Refused("the service is about to end: try again later", 503, 60)
        if len(self._queue) + count > self._max_queue:
            mean = np.mean(self._seconds) if self._seconds else 60.0
            wait = math.ceil(mean * (len(self._queue) + count - self._max_queue))
            raise Refused(
                f"{len(self._queue)} videos wait already: try again later", 429,
                min(max(1, wait), MAX_RETRY),
            )  # fmt: skip

    # How jobs are made.

    def _work(self) -> None:
        while batch := self._next():
            begin, stopped = time.monotonic(), False
            try:
                self._make(batch)
            except _Stopped:
                stopped = True
            except InputError as error:
                self._fail(batch, str(error))
            except Exception:
                logging.exception("sampling failed")
                self._fail(batch, "an error inside the service; its log says more")
            self._settle(batch, stopped, time.monotonic() - begin)

    def _next(self) -> list[Job]:
        """Waits for the next jobs to sample together; none when the service ends."""
        with self._changed:
            while not self._queue and not self._draining:
                self._changed.wait()
            if self._draining:
                return []
            settings = self._queue[0].settings
            alike = [job for job in self._queue if job.settings == settings]
            sizes = [size for size in self.studio.batch_sizes if size <= len(alike)]
            batch = alike[: max(sizes, default=1)]
            for job in batch:
                self._queue.remove(job)
                job.change(status=states.IN_PROGRESS, error=None)
            self._running = batch
            return batch

    def _make(self, batch: list[Job]) -> None:
        sizes = self.studio.batch_sizes
        size = next((size for size in sizes if size >= len(batch)), sizes[-1])
        engine = self.studio.engine(batch[0].settings, size)
        for job in batch:
            job.outputs.begin([job.prompt], [job.seed])
        watch = Watch(engine, batch, lambda: self._check_wanted(batch), self._speeds, self.metrics)
        prompts, seeds = [job.prompt for job in batch], [job.seed for job in batch]
        stream = engine.stream(
            prompts, seeds, JobResults(batch), watch.progress, preview=watch.preview
        )
        with contextlib.closing(stream):
            for _ in stream:
                pass
        watch.end_stage()

    def _fail(self, batch: Sequence[Job], why: str) -> None:
        for job in batch:
            if job.error is None and not self._finished(job):
                job.error = why

    def _finished(self, job: Job) -> bool:
        return set(job.settings.stages) <= set(job.made)

    def _settle(self, batch: Sequence[Job], stopped: bool, seconds: float) -> None:
        """Ends the jobs of a batch, or queues them again if it was stopped."""
        with self._changed:
            self._running = []
            for job in batch:
                if job.status == states.DELETED:
                    job.remove()
            for job in reversed(batch):
                if job.status == states.DELETED:
                    continue
                if stopped:
                    job.change(status=states.QUEUED, stage=None, preview=b"", progress=0.0)
                    self._queue.appendleft(job)
                else:
                    if self._finished(job):
                        job.end(states.COMPLETED)
                    else:
                        job.end(states.FAILED, job.error or "it was not made")
                    self.metrics.ended(job.status)
            self._seconds.append(seconds / len(batch))

    def _check_wanted(self, batch: Sequence[Job]) -> None:
        """Raises _Stopped if nobody waits for any of these jobs, or the service ends."""
        if self._closing or all(job.status == states.DELETED for job in batch):
            raise _Stopped
