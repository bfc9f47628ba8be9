"""Several processes, each with devices of its own, that run one program together.

Training spreads each step over all of them. Sampling gives each of them some
of the items, with meshes of its own devices.
"""

import contextlib
import itertools
import json
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from show1_jax.errors import InputError
from show1_jax.parallel.mesh import make_mesh


def join(
    coordinator: str | None,
    processes: int | None,
    process: int | None,
    limit: int,
    preemptible: bool,
) -> None:
    """Meets the other processes, if there are any.

    Args:
      coordinator: `HOST:PORT` of the first process; "auto" to take this and the
        other two from the environment (TPU pods, GKE, SLURM, Open MPI); None
        for one process.
      processes: how many there are.
      process: which of them this is, from 0.
      limit: seconds to wait for the others; after that the program ends with a line.
      preemptible: whether the program asks `Preemption` for SIGTERM, which ends it otherwise.

    Raises:
      InputError: if the arguments do not go together, the environment names no others, or the
        first process cannot listen where it should.
    """
    explicit = (processes is None, process is None)
    if coordinator is None:
        if explicit != (True, True):
            raise InputError("--processes and --process need --coordinator HOST:PORT")
        return
    if coordinator == "auto":
        if explicit != (True, True):
            raise InputError("--coordinator=auto finds --processes and --process by itself")
        arguments: dict[str, Any] = {}
    else:
        if processes is None or process is None or not 0 <= process < processes:
            raise InputError(
                "--coordinator HOST:PORT needs --processes N and --process I, of 0 to N - 1"
            )
        arguments = {
            "coordinator_address": coordinator,
            "num_processes": processes,
            "process_id": process,
        }
        if process == 0:
            _check_port(coordinator)

    def expire() -> None:
        where = "the processes of this job" if coordinator == "auto" else f"{coordinator}"
        print(
            f"error: {where} could not all be reached within {limit} s: start every process, with "
            "the same --coordinator and a --process of its own, or raise --join_limit",
            file=sys.stderr,
            flush=True,
        )
        os._exit(1)  # the main thread waits inside of JAX, which would end in an abort

    watch = threading.Timer(limit, expire)
    watch.daemon = True
    watch.start()
    try:
        jax.distributed.initialize(**arguments, initialization_timeout=limit + 60)
    except ValueError as error:
        raise InputError(
            f"--coordinator={coordinator}: {error}; give --coordinator HOST:PORT, --processes and "
            "--process"
        ) from error
    finally:
        watch.cancel()
    if not preemptible:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # JAX listens where processes share a program
    sys.excepthook = _abandon


def _check_port(coordinator: str) -> None:
    """Raises InputError if nobody can listen there, of which JAX may die without a word."""
    dual = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if dual else socket.AF_INET
    try:
        port = int(coordinator.rpartition(":")[2])
        socket.create_server(("", port), family=family, dualstack_ipv6=dual).close()
    except (OSError, ValueError, OverflowError) as error:
        raise InputError(
            f"--coordinator={coordinator}: the first process cannot listen at that port ({error}); "
            "end what does, such as an earlier try, or give every process another port"
        ) from error


def _abandon(*error: Any) -> None:
    """Ends after an error that nothing caught: the usual way out would wait for the others."""
    sys.__excepthook__(*error)
    sys.stdout.flush()
    os._exit(1)


def first() -> bool:
    """Whether this process is the one that writes and tells."""
    return jax.process_index() == 0


def say(text: str) -> None:
    """Prints a line, once for all processes."""
    if first():
        print(text, flush=True)


def wait(name: str) -> None:
    """Returns when every process has come to the wait of this name."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def gather(value: Any) -> list[Any]:
    """What each process has, of values that JSON can hold, in their order."""
    if jax.process_count() == 1:
        return [value]
    content = np.frombuffer(json.dumps(value).encode(), np.uint8)
    lengths = np.ravel(multihost_utils.process_allgather(np.array([len(content)])))
    padded = np.pad(content, (0, int(lengths.max()) - len(content)))
    rows = np.reshape(multihost_utils.process_allgather(padded), (len(lengths), -1))
    pairs = zip(rows, lengths, strict=True)
    return [json.loads(row[:length].astype(np.uint8).tobytes()) for row, length in pairs]


def fetch(tree: Any) -> Any:
    """The whole of each array, as NumPy's, in every process."""

    def one(leaf: Any) -> np.ndarray:
        if isinstance(leaf, jax.Array) and not (
            leaf.is_fully_addressable or leaf.is_fully_replicated
        ):
            return np.asarray(multihost_utils.process_allgather(leaf, tiled=True))
        return np.asarray(leaf)

    return jax.tree.map(one, tree)


@contextlib.contextmanager
def own_devices() -> Iterator[None]:
    """Where processes share a mesh, sets one of this process's first device instead."""
    if jax.process_count() == 1:
        yield
        return
    with jax.set_mesh(make_mesh({}, jax.local_devices()[:1])):
        yield


@contextlib.contextmanager
def first_alone(name: str) -> Iterator[None]:
    """Lets the first process through before the others: what it writes, they find.

    Within, each computes on its `own_devices`.
    """
    if not first():
        wait(name)
    with own_devices():
        yield
    if first():
        wait(name)


class Preemption:
    """Notices SIGTERM, which clusters send before they take a machine away, and Ctrl-C.

    A second Ctrl-C does not wait for the step and the checkpoint, nor does the first of a program
    of several processes. Where Ctrl-C is ignored, as shells do for what they start in the
    background, it stays so.
    """

    # JAX stops at a later number than it has seen: over all runs of a program they only rise.
    _asked = itertools.count(1)

    def __init__(self) -> None:
        self._noticed = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Preemption":
        """Begins to listen."""
        # With several processes JAX listens, so that they all stop after the same step.
        if jax.process_count() == 1 and threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                if number == signal.SIGTERM or signal.getsignal(number) != signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._notice)
        return self

    def __exit__(self, *_: Any) -> None:
        """Leaves the signals to whoever had them before."""
        for number, handler in self._before.items():
            if handler is not None:  # set by no Python code
                signal.signal(number, handler)

    def _notice(self, number: int, frame: FrameType | None) -> None:
        self._noticed = True
        if number == signal.SIGINT:
            os.write(2, b"\nsaving after this step; Ctrl-C again stops at once\n")
            signal.signal(number, self._before[number] or signal.default_int_handler)

    def due(self) -> bool:
        """Whether to stop after this step; every process asks after each step."""
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(next(self._asked))
        return self._noticed
