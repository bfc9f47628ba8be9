"""The queue of videos to make and the worker that makes them.

One thread samples; all others only ask. What they share is guarded by one lock. Jobs with the same
settings are sampled together. A job is on disk before it is accepted, so that it is made even if
the service is killed.
"""

import collections
import contextlib
import filecmp
import math
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging
from etils.epath import Path
from ml_collections import ConfigDict

from show1_jax.app.jobs import Job, JobResults, Status, load_jobs
from show1_jax.app.metrics import Metrics
from show1_jax.app.requests import MAX_SEED, Refused, Settings, VideoRequest
from show1_jax.app.studio import Studio
from show1_jax.app.watch import Speeds, Watch
from show1_jax.engine import Engine
from show1_jax.errors import InputError
from show1_jax.paths import Checkpoint

MAX_RETRY = 3600  # seconds
MAX_KINDS = 64  # of programs that stay compiled
MAX_ADAPTERS = 100


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
          OSError: if the folder cannot be read or written.
        """
        self.out, self._max_queue = out, max_queue
        self.studio = Studio(config, checkpoint, out / "adapters")
        self.studio.adapters.mkdir(exist_ok=True)
        self.metrics = Metrics(lambda: len(self._queue))
        self._jobs: dict[str, Job] = {}  # oldest first
        self._queue: collections.deque[Job] = collections.deque()
        self._running: list[Job] = []
        self._changed = threading.Condition()
        self._draining = self._closing = False
        self._latest = 0.0  # when the last job was created
        self._speeds = Speeds()
        self._kinds: set[Any] = set()  # of programs that were compiled
        self._seconds: collections.deque[float] = collections.deque(maxlen=20)  # of a video
        self._thread = threading.Thread(target=self._work, name="sampling", daemon=True)
        for job in load_jobs(out):
            self._jobs[job.id] = job
            if job.status == Status.QUEUED:
                self._queue.append(job)

    # What clients can do.

    def submit(self, request: VideoRequest) -> list[Job]:
        """Accepts a request: one job for each video.

        Raises:
          Refused: if it is wrong, the queue is full, or the service is about to end.
        """
        if request.n > self._max_queue:
            raise Refused(f"n is {request.n}, but at most {self._max_queue} videos may wait")
        settings = self.studio.settings(request)
        source = None if request.source is None else self.job(request.source)
        prompt, first = self._subject(request, source)
        words = self.studio.unknown_words(prompt)
        warnings = [f"The checkpoint does not know {', '.join(map(repr, words))}."] if words else []
        with self._changed:
            self._check_room(request.n)
            earlier = self._earlier(settings, source)
            made: list[Job] = []
            try:
                for seed in range(first, first + request.n):
                    self._latest = max(time.time(), self._latest + 2e-6)  # each its own microsecond
                    job = Job.new(self.out, prompt, seed, settings, self._latest)
                    job.warnings, job.source = warnings, request.source
                    made.append(job)
                    if source is not None:
                        job.take(source, earlier)
                    job.save()
            except InputError as error:
                for job in made:
                    job.remove()
                raise Refused(job.told(error), 507) from None
            for job in made:
                self._jobs[job.id] = job
                self._queue.append(job)
            self._changed.notify_all()
        return made

    def job(self, name: str) -> Job:
        """A job by its id, which is then known to be looked at.

        Raises:
          Refused: if there is none.
        """
        job = self._jobs.get(name)
        if job is None or job.status == Status.DELETED:
            raise Refused(f"there is no video {name!r:.40}", 404)
        job.looked_at = time.monotonic()
        return job

    def newest(self, limit: int, after: str | None = None) -> list[Job]:
        """Jobs, newest first.

        Args:
          limit: how many.
          after: the id of the last one that is known already.
        """
        with self._changed:
            found = [job for job in reversed(self._jobs.values()) if job.status != Status.DELETED]
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
            job.end(Status.DELETED)
            del self._jobs[name]
            if not running:  # else the worker removes it
                job.remove()

    def file(self, name: str, stage: str | None, ending: str | None) -> Path:
        """A file to look at.

        Args:
          name: the job's id.
          stage: whose result; None for the last one's, once the job is completed.
          ending: "mp4", "gif" or, for a stage that makes one frame, "png"; "json" for metadata;
            None for "mp4", or "png" of such a stage.

        Raises:
          Refused: if it is not there.
        """
        job = self.job(name)
        if ending == "json":
            files = [job.folder / "000" / "metadata.json"]
        else:
            if stage is None and not job.status == Status.COMPLETED:
                raise Refused(f"the video is {job.status}: ask for a stage that is made", 409)
            if stage is None:
                stage = job.settings.stages[-1]
            if stage not in job.made:
                raise Refused(f"the video has no result of {stage!r:.40}", 404)
            files = job.outputs.shown(0, stage)
        for path in files:
            if ending in (None, path.suffix[1:]) and path.is_file():
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
            self.studio.check_adapter(part)
            with self._changed:
                there = self.studio.adapter_names()
                if path.exists():
                    if not filecmp.cmp(path, part, shallow=False):
                        raise Refused(f"there is another adapter {name}: choose another name", 409)
                elif len(there) >= MAX_ADAPTERS:
                    raise Refused(f"there are {len(there)} adapters already: delete one", 409)
                part.replace(path)
        except InputError as error:
            raise Refused(f"{name} is not used: {str(error).replace(str(part), name)}") from None
        finally:
            part.unlink(missing_ok=True)

    def delete_adapter(self, name: str) -> None:
        """Removes an adapter; videos that wait for it fail.

        Raises:
          Refused: if there is none.
        """
        if name not in self.studio.adapter_names():
            raise Refused(f"there is no adapter {name!r:.40}", 404)
        (self.studio.adapters / name).unlink(missing_ok=True)

    # Starting and ending.

    def start(self) -> None:
        """Starts the worker."""
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
        """Whether the worker has not ended."""
        return self._thread.ident is None or self._thread.is_alive()

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
            raise Refused("the prompt is not valid Unicode") from None
        if seed is None:
            seed = secrets.randbelow(MAX_SEED + 2 - request.n)
        if seed + request.n - 1 > MAX_SEED:
            raise Refused(f"the last seed is more than {MAX_SEED}: give a smaller one")
        return prompt, seed

    def _earlier(self, settings: Settings, source: Job | None) -> list[str]:
        """The stages of a source that a job takes: those before the first that it runs.

        Raises:
          Refused: if a stage that is to run needs others, or the source is gone.
        """
        there: list[str] = []
        if source is not None:
            self.job(source.id)
            names = self.studio.stages
            before = names[: names.index(settings.stages[0])]
            there = [name for name in source.made if name in before]
        missing = self.studio.missing(settings, there)
        if missing:
            raise Refused(
                f"{settings.stages[0]} starts from the result of {missing}: run that stage too, or "
                "give the id of a video that has it as source"
            )
        return there

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
            except Exception:  # noqa: BLE001  (the log has it, and the others are to be made)
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
            batch = alike[: max(sizes, default=self.studio.batch_sizes[0])]
            for job in batch:
                self._queue.remove(job)
                job.change(status=Status.IN_PROGRESS, error=None)
            self._running = batch
            return batch

    def _make(self, batch: list[Job]) -> None:
        batch = [job for job in batch if self._opened(job)]
        if not batch:
            return
        sizes = self.studio.batch_sizes
        size = next((size for size in sizes if size >= len(batch)), sizes[-1])
        engine = self.studio.engine(batch[0].settings, size)
        self._bound_programs(engine)
        watch = Watch(engine, batch, lambda: self._check_wanted(batch), self._speeds, self.metrics)
        prompts, seeds = [job.prompt for job in batch], [job.seed for job in batch]
        stream = engine.stream(
            prompts, seeds, JobResults(batch), watch.progress, preview=watch.preview
        )
        with contextlib.closing(stream):
            for _ in stream:
                pass
        watch.end_stage()

    def _opened(self, job: Job) -> bool:
        """Whether a job's folder can be used; one that cannot fails, and the others go on."""
        try:
            job.outputs.begin([job.prompt], [job.seed])
        except InputError as error:
            job.error = job.told(error)
        return job.error is None

    def _bound_programs(self, engine: Engine) -> None:
        """Frees compiled programs once there are many kinds, since JAX keeps all."""
        self._kinds |= {(engine.batch_size, sampler) for sampler in engine.samplers.values()}
        if len(self._kinds) > MAX_KINDS:
            self._kinds.clear()
            jax.clear_caches()

    def _fail(self, batch: Sequence[Job], why: str) -> None:
        for job in batch:
            if not self._finished(job):
                job.error = job.error or why

    def _finished(self, job: Job) -> bool:
        return job.error is None and set(job.settings.stages) <= set(job.made)

    def _settle(self, batch: Sequence[Job], stopped: bool, seconds: float) -> None:
        """Ends the jobs of a batch, or queues them again if it was stopped."""
        with self._changed:
            self._running = []
            for job in batch:
                if job.status == Status.DELETED:
                    job.remove()
            for job in reversed(batch):
                if job.status == Status.DELETED:
                    continue
                if stopped:
                    job.change(status=Status.QUEUED, stage=None, preview=b"", progress=0.0)
                    self._queue.appendleft(job)
                else:
                    status = Status.COMPLETED if self._finished(job) else Status.FAILED
                    self.metrics.ended(status)
                    missing = None if status == Status.COMPLETED else "it was not made"
                    job.end(status, job.error or missing)
            self._seconds.append(seconds / len(batch))

    def _check_wanted(self, batch: Sequence[Job]) -> None:
        """Raises _Stopped if nobody waits for any of these jobs, or the service ends."""
        if self._closing or all(job.status == Status.DELETED for job in batch):
            raise _Stopped
