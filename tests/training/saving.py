"""How long training waits for a checkpoint, and how long that takes in all.

python -m tests.training.saving --dir DIR --gib 1        # DIR may be `s3` or `gs`: an emulator
"""

import argparse
import contextlib
import json
import statistics
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np

from show1_jax.paths import as_path
from show1_jax.stages import Autoencoder
from show1_jax.training.run import RunFolder
from show1_jax.training.step import TrainState
from tests.training.small import small_config

LEAVES = 300  # as many as a network of some size has, in parameters, average and two moments


def made_up(gib: float, step: int) -> TrainState:
    """A state of so many GiB, in arrays of three sizes."""
    sizes = np.tile([1, 10, 100], LEAVES // 3) / 37 / LEAVES
    shapes = [(max(int(gib * 2**28 * size / 1024), 1), 1024) for size in sizes]
    keys = jax.random.split(jax.random.key(step), len(shapes))
    draw = jax.jit(jax.random.normal, static_argnums=1)
    leaves = {f"{i:03}": draw(keys[i], shape) for i, shape in enumerate(shapes)}
    return jax.block_until_ready(TrainState(jnp.int32(step), leaves, {}, ()))


@contextlib.contextmanager
def place(text: str):
    """The folder that was asked for."""
    if text not in ("s3", "gs"):
        with tempfile.TemporaryDirectory(dir=text) as folder:
            yield as_path(folder)
        return
    from tests.buckets.emulators import BUCKET, emulated, reached

    with emulated(text) as port, reached(text, port):
        yield as_path(f"{text}://{BUCKET}/saving")


def copied(state: TrainState) -> float:
    """Seconds that a copy of a state to host memory takes."""
    begin = time.perf_counter()
    copies = [np.array(leaf, copy=True) for leaf in jax.tree.leaves(state)]
    took = time.perf_counter() - begin
    assert all(copy.flags.owndata for copy in copies)
    return took


def main() -> None:
    """Saves a state several times; prints medians as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dir", required=True)
    parser.add_argument("--gib", type=float, default=1.0)
    parser.add_argument("--times", type=int, default=5)
    given = parser.parse_args()
    config = small_config("vae", keep=1)
    found: dict[str, list[float]] = {"copy": [], "blocked": [], "written": []}
    with place(given.dir) as folder:
        run = RunFolder(folder / "vae", config, Autoencoder.from_config(config), {})
        with contextlib.closing(run):
            for step in range(given.times + 1):
                state = made_up(given.gib, step)
                found["copy"].append(copied(state))
                begin = time.perf_counter()
                run.save(state, [])
                found["blocked"].append(time.perf_counter() - begin)
                run.wait()
                found["written"].append(time.perf_counter() - begin)
    # The first one compiles and starts threads.
    print(json.dumps({k: [round(s, 3) for s in v] for k, v in found.items()}))
    print(json.dumps({k: round(statistics.median(v[1:]), 3) for k, v in found.items()}))


if __name__ == "__main__":
    main()
