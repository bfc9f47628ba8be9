"""Where programs are run on buckets that have faults: inputs, commands, and what they left."""

import contextlib
import functools
import io
import json
import os
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

from show1_jax import files
from show1_jax.checkpoints.store import load_params
from show1_jax.paths import as_path
from tests import programs
from tests.buckets.emulators import BUCKET, Faults, emulated, environment
from tests.data.videos import write_clip, write_shard
from tests.programs import CONTEXT, PRELOADED
from tests.training.small import assert_same

ROOT = Path(__file__).parents[2]
PATIENCE = 180  # seconds from a fault, after which a program is killed
LONG = 600  # seconds from the start, likewise
STEPS = 6
CLIPS = 24
PROMPTS = "a small red circle moving left\na large blue square moving up\n"
CONFIG = "tests/training/interrupted.py"
STAGE = "show-1-base"


class World:
    """Emulators, inputs and what programs make of them without faults; made when asked for.

    If it is `quick`, programs need not import what they use: see `tests.programs`.
    """

    def __init__(self, folder, quick):
        self.folder, self.quick = Path(folder), quick
        if quick:
            os.environ.update(settings(self))  # JAX's are read when it is imported
            CONTEXT.set_forkserver_preload([*PRELOADED, "show1_jax.buckets"])
        self._stack = contextlib.ExitStack()
        self._lock = threading.RLock()
        self._put = {}

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._stack.close()

    @functools.cache  # noqa: B019 - there is one world
    def port(self, scheme):
        """Of an emulator, to which this process is led as well."""
        port = self._stack.enter_context(emulated(scheme))
        for name, value in environment(scheme, port).items():
            os.environ[name] = value
        return port

    def put(self, scheme, name):
        """Copies an input to a bucket, once; returns where it is."""
        with self._lock:
            self.port(scheme)
            target = as_path(f"{scheme}://{BUCKET}/inputs/{name}")
            if (scheme, name) not in self._put:
                source = as_path(getattr(self, name))
                files.copy_folder(source, target)
                self._put[scheme, name] = target
            return target

    @functools.cached_property
    def prompts(self):
        """A folder with a file of prompts."""
        folder = self.folder / "prompts"
        folder.mkdir()
        (folder / "prompts.txt").write_text(PROMPTS)
        return folder

    @functools.cached_property
    def clips(self):
        """Two shards of clips."""
        folder = self.folder / "clips"
        video = self.folder / "clip.mp4"
        write_clip(video, 12, 4, height=16, width=64)
        for shard in range(2):
            members = {
                f"{number:06}": {"mp4": video.read_bytes(), "txt": f"a red circle {number % 4}"}
                for number in range(shard * CLIPS // 2, (shard + 1) * CLIPS // 2)
            }
            write_shard(folder / f"{shard:05}.tar", members)
        return folder

    @functools.cached_property
    def encoders(self):
        """A checkpoint of text encoders alone."""
        from show1_jax.shapes import text_encoder

        text_encoder.make(self.folder / "encoders")
        return self.folder / "encoders"

    @functools.cached_property
    def trained(self):
        """What training makes, which sampling reads."""
        workdir = self.folder / "straight"
        self._finish("train", workdir, self.encoders, self.clips)
        return workdir / "checkpoint"

    @functools.cached_property
    def sampled(self):
        """What sampling makes."""
        out = self.folder / "sampled"
        self._finish("sample", out, self.trained, self.prompts)
        return out

    @functools.cached_property
    def release(self):
        """A released folder."""
        shutil.copytree(ROOT / "tests" / "release" / STAGE, self.folder / "release")
        return self.folder / "release"

    @functools.cached_property
    def converted(self):
        """What conversion makes."""
        self._finish("convert", self.folder / "converted", self.release)
        return self.folder / "converted"

    def _finish(self, program, *places):
        ended = subprocess.run(
            command(program, *places), cwd=ROOT, env=settings(self), capture_output=True, text=True
        )
        assert ended.returncode == 0, ended.stderr


def settings(world):
    """Environment variables of all programs."""
    own = ("AWS_", "GOOGLE_", "STORAGE_", "TENSORSTORE_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(own)}
    return kept | {
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "JAX_COMPILATION_CACHE_DIR": str(world.folder / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }


def command(program, result, *inputs):
    """The command line of a program."""
    if program == "sample":
        checkpoint, prompts = inputs
        return [
            sys.executable, "sample.py", f"--config={CONFIG}", f"--checkpoint={checkpoint}",
            f"--prompts={prompts}/prompts.txt", f"--out={result}", "--stages=keyframes",
            "--steps=2",
        ]  # fmt: skip
    if program == "train":
        checkpoint, clips = inputs
        train = "--config.train.keyframes"
        return [
            sys.executable, "train.py", f"--config={CONFIG}:keyframes", f"--workdir={result}",
            f"--config.checkpoint={checkpoint}", f"{train}.dataset={clips}",
            f"{train}.data_dir={result}/data", f"{train}.steps={STEPS}", f"{train}.save_every=2",
            f"{train}.log_every=1",
        ]  # fmt: skip
    return [sys.executable, "-m", "show1_jax.convert", *inputs, result]


class Site:
    """One program and one fault.

    Attributes:
      faults: the proxy that the program reaches its bucket through.
      result: what the program writes.
      inputs: what it reads.
      environment: its environment variables.
      error: whether the program has to end in one.
    """

    INPUTS = {  # noqa: RUF012
        "sample": ("trained", "prompts"),
        "train": ("encoders", "clips"),
        "convert": ("release",),
    }

    def __init__(self, world, name, program, scheme, error=False):
        self.world, self.program, self.scheme, self.error = world, program, scheme, error
        self.port = world.port(scheme)
        self.faults = Faults(self.port)
        self.folder = Path(tempfile.mkdtemp(prefix=name, dir=world.folder))
        self.place = as_path(f"{scheme}://{BUCKET}/{self.folder.name}")
        self.result = self.place / "result"
        self.inputs = [as_path(f"{scheme}://{BUCKET}/inputs/{each}") for each in self._names]
        self.environment = settings(world) | environment(scheme, self.faults.port)
        self._files = 0

    @property
    def _names(self):
        return self.INPUTS[self.program]

    def put(self):
        """Puts the inputs into the bucket, where other sites read them, too."""
        self.inputs = [self.world.put(self.scheme, name) for name in self._names]

    def own(self, index):
        """Copies an input to a place where it can be damaged; returns that."""
        place = self.place / self._names[index]
        files.copy_folder(as_path(getattr(self.world, self._names[index])), place)
        self.inputs[index] = place
        return place

    def start(self, **more):
        """Starts the program."""
        return Process(self, command(self.program, self.result, *self.inputs), **more)

    def run(self, **more):
        """Runs the program."""
        return self.start(**more).finish()

    def right(self):
        """Raises AssertionError unless the result is that of a run without faults."""
        if self.program == "sample":
            for item, _ in enumerate(PROMPTS.splitlines()):
                name = f"{item:03}/keyframes.npy"
                found = np.load(io.BytesIO((self.result / name).read_bytes()))
                np.testing.assert_array_equal(found, np.load(self.world.sampled / name))
                assert (self.result / f"{item:03}" / "keyframes.mp4").read_bytes()
            return
        theirs = self.world.trained if self.program == "train" else self.world.converted.parent
        ours = self.result / "checkpoint" if self.program == "train" else self.result.parent
        names = [STAGE] if self.program == "train" else [self.result.name]
        other = STAGE if self.program == "train" else self.world.converted.name
        for network in ("unet", "text_encoder"):
            own = ours / names[0] / network / "params"
            assert_same(load_params(own), load_params(as_path(theirs / other / network / "params")))
        assert (ours / names[0] / "model_index.json").is_file()

    def unfinished(self):
        """What looks finished though it is not, after an error; "" for nothing."""
        if self.program == "convert":
            found = files.files_in(self.result)
            return f"{found[0]} is there" if found else ""
        if self.program == "sample":
            for path in self.result.glob("*/metadata.json"):
                for stage in json.loads(path.read_text())["stages"]:
                    np.load(io.BytesIO((path.parent / f"{stage}.npy").read_bytes()))
            return ""
        unet = self.result / "checkpoint" / STAGE / "unet"
        if (unet / "config.json").is_file():
            load_params(unet / "params")
        for done in (self.result / "keyframes" / "checkpoints").glob("*/commit_success.txt"):
            if done.parent.name.isdigit():
                load_params(done.parent / "state")
        return ""

    def close(self):
        self.faults.close()


class Process:
    """A program that runs.

    Attributes:
      status: its exit status; None while it runs, or if it was killed for taking too long.
      seconds: from the first fault, or else the first request or its start, to its end.
    """

    def __init__(self, site, arguments, limit=None, environment=None):
        site._files += 1
        self._site, self._path = site, site.folder / f"said-{site._files}"
        self.begun, self.status, self.seconds = time.monotonic(), None, 0.0
        changed = site.environment | (environment or {})
        files = [f"{self._path}.{name}" for name in ("out", "err")]
        for file in files:
            Path(file).touch()
        given = (list(map(str, arguments)), changed, files)
        # What has imported JAX does not see its variables any more.
        own = limit or any(name.startswith("JAX") for name in environment or {})
        quick = site.world.quick and not own
        self._process = _Forked(*given) if quick else _Started(*given, limit)

    @property
    def out(self):
        return Path(f"{self._path}.out").read_text()

    @property
    def err(self):
        return Path(f"{self._path}.err").read_text()

    def until(self, condition):
        """Waits until something is so."""
        while not condition():
            assert self._process.status() is None, f"it has ended: {self.err}"
            assert time.monotonic() - self.begun < PATIENCE, "that took too long"
            time.sleep(0.05)

    def kill(self):
        self._process.kill()

    def finish(self):
        """Waits until it has ended, or kills it."""
        faults = self._site.faults
        while (status := self._process.status()) is None:
            begin = faults.broken[0][0] if faults.broken else self.begun
            patience = PATIENCE if self._site.error else LONG
            if time.monotonic() - begin > patience or time.monotonic() - self.begun > LONG:
                self.kill()
                break
            time.sleep(0.05)
        self.status = status
        begun = max(self.begun, faults.begun or 0)
        self.seconds = time.monotonic() - (faults.broken[0][0] if faults.broken else begun)
        return self


class _Started:
    """A process of its own from the start."""

    def __init__(self, arguments, environment, files, limit):
        full = (lambda: _limit_files(limit)) if limit else None
        with open(files[0], "w") as out, open(files[1], "w") as err:
            self._process = subprocess.Popen(
                arguments, cwd=ROOT, env=environment, stdout=out, stderr=err, preexec_fn=full
            )

    def status(self):
        return self._process.poll()

    def kill(self):
        self._process.kill()
        self._process.wait()


class _Forked:
    """A process that has imported already what programs import."""

    def __init__(self, arguments, environment, files):
        given = (arguments[1 + (arguments[1] == "-m") :], str(ROOT), environment, files, None)
        self._process = CONTEXT.Process(target=programs._child, args=given)
        self._process.start()

    def status(self):
        return self._process.exitcode

    def kill(self):
        self._process.kill()
        self._process.join()


def _limit_files(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


@contextlib.contextmanager
def black_hole():
    """A port where connections are never answered: packets to it are dropped."""
    with contextlib.ExitStack() as stack:
        server = socket.socket()
        stack.callback(server.close)
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        for _ in range(4):  # that fill its queue
            client = socket.socket()
            stack.callback(client.close)
            client.setblocking(False)
            client.connect_ex(server.getsockname())
        yield server.getsockname()[1]
