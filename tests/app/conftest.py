"""Services on the embedded checkpoint, whose engines sample in no time."""

import threading
import time

import numpy as np
import pytest
from starlette.testclient import TestClient

from show1_jax.app.http import make_app
from show1_jax.app.service import Service
from show1_jax.config_files import load_config
from show1_jax.engine import Engine, Made
from show1_jax.errors import InputError

PROMPT = "a small red circle moving left on a black background"


BATCH = "--config.batch_size=4"


class Sampling:
    """Stands for `Engine.stream`: notes what is asked for, and waits where it is told to.

    Attributes:
      batches: the seeds that were sampled together.
      made: stage and seed of each result, in order.
      gate: sampling goes on while it is set.
      begun: is set when sampling begins.
      error: what it raises, if anything.
      failing: seeds whose first stage fails.
      stop_after: a result after which the gate closes.
    """

    def __init__(self):
        self.batches, self.made = [], []
        self.gate, self.begun = threading.Event(), threading.Event()
        self.gate.set()
        self.error, self.failing, self.stop_after = None, set(), None

    def stream(self, engine, prompts, seeds, results, progress, items=None, preview=None):
        self.batches.append(list(seeds))
        self.begun.set()
        if self.error is not None:
            raise self.error
        failed = set()
        for name, stage in engine.stages.items():
            settings = engine.made_by[name]
            for step in range(3):
                progress(name, step, 2)
                while not self.gate.is_set():
                    progress(name, step, 2)
                    time.sleep(0.01)
                rows = [i for i in range(len(seeds)) if not results.done(i, name, settings)]
                if step and preview:
                    seen = np.zeros((len(rows), *stage.shape))
                    preview(name, rows, lambda seen=seen: seen)
            for i in rows:
                if seeds[i] in self.failing or i in failed:
                    failed.add(i)
                    results.fail(i, name, InputError("the result is not finite"))
                    continue
                frames = np.full(stage.shape, seeds[i] / 100, np.float32)
                results.save(i, name, frames, settings)
                self.made.append((name, seeds[i]))
                if self.made[-1] == self.stop_after:
                    self.gate.clear()
                yield Made(i, name, frames)


@pytest.fixture
def sampling(monkeypatch):
    fake = Sampling()

    def stream(engine, *args, **options):
        return fake.stream(engine, *args, **options)

    monkeypatch.setattr(Engine, "stream", stream)
    return fake


@pytest.fixture
def make_service(tmp_path, sampling):
    """Makes services on one output folder, and ends them."""
    made = []

    def make(max_queue=100, start=True, **changes):
        flags = [f"--config.{key}={value}" for key, value in changes.items()]
        config, _ = load_config("tiny", flags if "batch_size" in changes else [*flags, BATCH])
        out = tmp_path / "out"
        out.mkdir(exist_ok=True)
        service = Service(config, config.checkpoint, out, max_queue)
        made.append(service)
        if start:
            service.start()
        return service

    yield make
    sampling.gate.set()
    for service in made:
        service.close()


@pytest.fixture
def service(make_service):
    return make_service()


@pytest.fixture
def client(service):
    return TestClient(make_app(service, max_upload=2**20))


def wait(service, *names, status=("completed", "failed")):
    """Waits until jobs have a status."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        jobs = [service.job(name) for name in names]
        if all(job.status in status for job in jobs):
            return jobs
        time.sleep(0.01)
    raise AssertionError([(job.id, job.status, job.stage) for job in jobs])
