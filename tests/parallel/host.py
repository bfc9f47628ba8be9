"""A run of one process, which may be one of several and may be sent a signal.

    JAX_NUM_CPU_DEVICES=4 python -m tests.parallel.host '{"workdir": "/tmp/w", "mesh": {"data": 4}}'

Run in processes of their own, for what `train.py` does beyond reading flags.
"""

import json
import math
import os
import signal
import sys
import time
from pathlib import Path

import jax
from ml_collections import ConfigDict

from show1_jax.errors import Preempted
from show1_jax.parallel import hosts, sharding
from show1_jax.training import loop
from show1_jax.training.run import RunFolder


def slow_batches(seconds, make):
    """A data source that takes some seconds more for each batch."""

    class Batches:
        def __init__(self, *arguments):
            self._batches = make(*arguments)

        def __next__(self):
            time.sleep(seconds)
            return next(self._batches)

        def __getattr__(self, name):
            return getattr(self._batches, name)

    return Batches


def main(
    workdir, mesh, join=(None, None, None), send="", after=0, to=(0,), text="cache", pause=None
):
    """Trains in a folder.

    After a step was saved, some processes get a signal. `pause` has each process's seconds that its
    data takes.
    """
    jax.config.update("jax_default_matmul_precision", "highest")
    sharding.MIN_SPLIT_SIZE = 8  # else these networks would be too small to be split
    hosts.join(*join, 60, preemptible=True)
    from tests.training.small import small_config  # makes arrays, which only now it may

    save = RunFolder.save

    def save_and_send(self, state, data):
        save(self, state, data)
        if send and state.step == after and jax.process_index() in to:
            self.wait()
            os.kill(os.getpid(), getattr(signal, send))

    RunFolder.save = save_and_send
    if pause:
        seconds = pause[jax.process_index()]
        loop.data.training_batches = slow_batches(seconds, loop.data.training_batches)
    config = small_config(
        "keyframes", Path(workdir) / "data", batch_size=8, clips=16, steps=20, save_every=4,
        validate_every=10, sample_every=8, validation_batches=1, validation_batch_size=4,
        text=text,
        learning_rate=1e-3,  # at ten times that, rounding grows a thousandfold within ten steps
    )  # fmt: skip
    config.mesh = ConfigDict(mesh)
    devices = jax.devices()[: math.prod(mesh.values())]
    try:
        loop.train(config, Path(workdir), devices)
    except Preempted as preempted:
        print(preempted, flush=True)
        sys.exit(143)


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
