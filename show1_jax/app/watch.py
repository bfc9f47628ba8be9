"""Progress, time left and previews of running jobs."""

import io
import math
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from absl import logging
from PIL import Image

from show1_jax.app.jobs import Job, Status
from show1_jax.app.metrics import Metrics
from show1_jax.engine import Engine
from show1_jax.media import to_uint8

PREVIEW_SHARE = 0.05  # of the time that previews may take
PREVIEW_SECONDS = 0.5  # between two, at least
LOOKED_AT = 10.0  # seconds for which somebody who asked for a job is taken to look at it


class Speeds:
    """How long a unit of work of each stage takes: the mean of the latest, weighted by halves."""

    def __init__(self) -> None:
        """Knows nothing yet."""
        self._seconds: dict[str, float] = {}
        self.of_previews: dict[str, float] = {}  # seconds of one, by stage

    def note(self, stage: str, work: float, seconds: float) -> None:
        """Remembers how long some work took."""
        own = seconds / work
        self._seconds[stage] = (self._seconds.get(stage, own) + own) / 2

    def expected(self, work: Mapping[str, float]) -> float | None:
        """Seconds that work in stages takes; None if one of them was never run."""
        if any(stage not in self._seconds for stage in work):
            return None
        return sum(self._seconds[stage] * units for stage, units in work.items())


class Watch:
    """Updates the jobs of a batch while they are sampled."""

    def __init__(
        self,
        engine: Engine,
        batch: Sequence[Job],
        check: Callable[[], None],
        speeds: Speeds,
        metrics: Metrics,
    ) -> None:
        """Begins to watch.

        Args:
          engine: samples them.
          batch: the jobs.
          check: called as work advances. It may raise an exception to stop the work.
          speeds: learns from them.
          metrics: counts stages.
        """
        self._batch, self._check, self._speeds, self._metrics = batch, check, speeds, metrics
        self._work = {name: _work_of(engine, name) for name in engine.stages}
        self._fps = {name: engine.loaded.known[name].fps for name in engine.stages}
        made = set.intersection(*(set(job.made) for job in batch))
        self._left = {name: units for name, units in self._work.items() if name not in made}
        self._total = sum(self._left.values())
        self._finished = 0.0
        self._stage, self._begin = "", time.monotonic()
        self._latest: tuple[float, int] | None = None  # time and steps of the last segment
        self._previewed = 0.0  # when
        self._blind: set[str] = set()  # stages whose previews fail

    def progress(self, stage: str, done: int, steps: int, doing: str = "", /) -> None:
        """See `engine.StageProgress`."""
        self._check()
        now = time.monotonic()
        if stage in self._work:
            if stage != self._stage:
                self.end_stage()
                self._stage, self._begin, self._latest = stage, now, None
            unit = self._work[stage] / steps if steps else 0.0
            if not doing:
                if self._latest is not None and done > self._latest[1]:
                    work = (done - self._latest[1]) * unit
                    self._speeds.note(stage, work, now - self._latest[0])
                self._latest = now, done
        share = done / steps if stage in self._work and steps else 0.0
        fields = {"stage": stage, "done": done, "steps": steps, "doing": doing}
        fields |= self._overall(stage, share)
        for job in self._batch:
            if job.status != Status.DELETED:
                job.change(**fields)

    def _overall(self, stage: str, share: float) -> dict[str, float | None]:
        """Progress in percent and seconds left."""
        own = self._work.get(stage, 0.0)
        finished = self._finished + share * own
        left = dict(self._left)
        if stage in left:
            left[stage] = (1 - share) * own
        percent = 100 * finished / self._total if self._total else 0.0
        return {"progress": min(percent, 99.0), "seconds_left": self._speeds.expected(left)}

    def end_stage(self) -> None:
        """Counts the stage that was run until now."""
        if not self._stage:
            return
        seconds = time.monotonic() - self._begin
        self._metrics.stage(self._stage, seconds, len(self._batch))
        self._finished += self._left.pop(self._stage, 0.0)
        self._stage = ""

    def preview(self, stage: str, items: Sequence[int], look: Callable[[], np.ndarray], /) -> None:
        """See `engine.Preview`."""
        now = time.monotonic()
        wanted = {
            item for item in items if now - self._batch[item].looked_at < LOOKED_AT
        } - self._deleted()
        pause = self._speeds.of_previews.get(stage, 0.0) / PREVIEW_SHARE
        if (
            not wanted
            or stage in self._blind
            or now - self._previewed < max(PREVIEW_SECONDS, pause)
        ):
            return
        try:
            seen = look()
            for item, frames in dict(zip(items, seen, strict=True)).items():
                if item in wanted:
                    picture = webp(to_uint8(frames), self._fps[stage])
                    self._batch[item].change(preview=picture)
        except Exception:  # noqa: BLE001  (such as a lack of memory, which the video may not need)
            logging.exception("%s is sampled without previews", stage)
            self._blind.add(stage)
        self._previewed = time.monotonic()
        self._speeds.of_previews[stage] = self._previewed - now

    def _deleted(self) -> set[int]:
        return {i for i, job in enumerate(self._batch) if job.status == Status.DELETED}


def _work_of(engine: Engine, name: str) -> float:
    """How much a stage has to do: steps, each of so many elements, twice if it is guided."""
    stage, sampler = engine.stages[name], engine.samplers[name]
    own = math.prod(stage.batch_shape) * (2 if sampler.guided else 1)
    return float(stage.step_count(sampler.solver) * own)


def webp(frames: np.ndarray, fps: float) -> bytes:
    """Frames `(frames, height, width, 3)` uint8, or one frame, as an animated WebP picture."""
    several = frames if frames.ndim == 4 else frames[None]
    first, *others = (Image.fromarray(frame) for frame in several)
    file = io.BytesIO()
    first.save(
        file, "WEBP", save_all=True, append_images=others, loop=0,
        duration=round(1000 / fps), quality=80, method=0,
    )  # fmt: skip
    return file.getvalue()
