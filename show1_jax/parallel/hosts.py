"""Several processes (hosts) that run one program together, each with its own devices.

Training splits each step over all processes. Sampling gives each process some of the items, and a
mesh of its own devices.

Hidden state: `join` sets the process's handlers for SIGTERM and uncaught exceptions. `wait` counts
its calls by name. `Preemption` has a counter that all of its instances share.
"""

import collections
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
import orbax.checkpoint as ocp
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
    """Connects to the other processes, if there are any.

    If a process does not join within `limit` seconds, the program ends with an error message.

    Args:
      coordinator: `HOST:PORT` of the first process. "auto" takes this and the next two arguments
        from the environment (TPU pods, GKE, SLURM, Open MPI). None for a single process.
      processes: number of processes.
      process: index of this process, from 0.
      limit: seconds to wait for the other processes.
      preemptible: whether the program handles SIGTERM with `Preemption`. Otherwise SIGTERM ends it.

    Raises:
      InputError: if arguments are missing or contradict each other, the environment names no
        processes, or the first process cannot listen at its port.
    """
    explicit = (processes is None, process is None)
    if coordinator is None:
        if explicit != (True, True):
            raise InputError("--processes and --process need --coordinator HOST:PORT")
        return
    if coordinator == "auto":
        if explicit != (True, True):
            raise InputError(
                "--coordinator=auto finds --processes and --process itself; remove them"
            )
        arguments: dict[str, Any] = {}
    else:
        if processes is None or process is None or not 0 <= process < processes:
            raise InputError(
                "--coordinator HOST:PORT needs --processes N and --process I, from 0 to N - 1"
            )
        arguments = {
            "coordinator_address": coordinator,
            "num_processes": processes,
            "process_id": process,
        }
        if process == 0:
            _check_port(coordinator)

    def expire() -> None:
        where = "the processes" + ("" if coordinator == "auto" else f" of {coordinator}")
        print(
            f"error: not all of {where} joined within {limit} s; start every process with the same "
            "--coordinator and a different --process, or raise --join_limit",
            file=sys.stderr,
            flush=True,
        )
        os._exit(1)  # the main thread waits in JAX, and a normal exit would abort it

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
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # undoes the handler of jax.distributed
    sys.excepthook = _abandon


def _check_port(coordinator: str) -> None:
    """Raises InputError if the port is in use or invalid; JAX may crash without a message."""
    dual = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if dual else socket.AF_INET
    try:
        port = int(coordinator.rpartition(":")[2])
        socket.create_server(("", port), family=family, dualstack_ipv6=dual).close()
    except (OSError, ValueError, OverflowError) as error:
        raise InputError(
            f"--coordinator={coordinator}: the first process cannot listen at this port ({error}); "
            "end the program that uses it, such as an earlier run, or give all processes another "
            "port"
        ) from error


def _abandon(*error: Any) -> None:
    """Ends the process after an uncaught error; a normal exit would wait for other processes."""
    sys.__excepthook__(*error)
    sys.stdout.flush()
    os._exit(1)


def first() -> bool:
    """Returns whether this process is the one that writes files and messages."""
    return jax.process_index() == 0


def say(text: str) -> None:
    """Prints a line in the first process only."""
    if first():
        print(text, flush=True)


_LONGEST_WAIT = 24 * 3600 * 1000  # milliseconds
_waits: collections.Counter[str] = collections.Counter()


def wait(name: str) -> None:
    """Waits until all processes have called this function with the same name.

    The processes may arrive up to a day apart: they meet at their coordinator. A collective of
    their devices would fail after 30 seconds on CPUs. If a process dies, the others end.
    """
    if jax.process_count() > 1:
        _waits[name] += 1
        barrier = ocp.multihost.get_barrier_sync_fn()
        barrier(key=f"{name} {_waits[name]}", timeout_ms=_LONGEST_WAIT)


def gather(value: Any) -> list[Any]:
    """Returns the values of all processes, in order. JSON must be able to hold them."""
    if jax.process_count() == 1:
        return [value]
    content = np.frombuffer(json.dumps(value).encode(), np.uint8)
    lengths = np.ravel(multihost_utils.process_allgather(np.array([len(content)])))
    padded = np.pad(content, (0, int(lengths.max()) - len(content)))
    rows = np.reshape(multihost_utils.process_allgather(padded), (len(lengths), -1))
    pairs = zip(rows, lengths, strict=True)
    return [json.loads(row[:length].astype(np.uint8).tobytes()) for row, length in pairs]


def fetch(tree: Any) -> Any:
    """Copies whole arrays to NumPy arrays in every process."""

    def one(leaf: Any) -> np.ndarray:
        if isinstance(leaf, jax.Array) and not (
            leaf.is_fully_addressable or leaf.is_fully_replicated
        ):
            return np.asarray(multihost_utils.process_allgather(leaf, tiled=True))
        return np.asarray(leaf)

    return jax.tree.map(one, tree)


@contextlib.contextmanager
def own_devices(every: bool = False) -> Iterator[None]:
    """With several processes, sets a mesh of only this process's devices.

    Args:
      every: whether of all of them, which share parameters (`fsdp`); else of the first.
    """
    if jax.process_count() == 1:
        yield
        return
    with jax.set_mesh(make_mesh({"fsdp": -1}, jax.local_devices()[: None if every else 1])):
        yield


@contextlib.contextmanager
def first_alone(name: str) -> Iterator[None]:
    """Runs the context in the first process before all others, so that they find what it wrote.

    Sets the mesh of `own_devices` in the context.
    """
    if not first():
        wait(name)
    with own_devices():
        yield
    if first():
        wait(name)


class Preemption:
    """Notices Ctrl-C, and SIGTERM, which clusters send before they take a machine away.

    A second Ctrl-C ends the program without waiting for the step and the checkpoint. With several
    processes, the first Ctrl-C does. If Ctrl-C is ignored, as in background jobs of a shell, it
    stays ignored.
    """

    # JAX stops at a number that is larger than those seen before, so runs of a program share it.
    _asked = itertools.count(1)

    def __init__(self) -> None:
        self._noticed = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Preemption":
        """Sets the signal handlers."""
        # With several processes, JAX handles SIGTERM, so that they all stop after the same step.
        if jax.process_count() == 1 and threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                if number == signal.SIGTERM or signal.getsignal(number) != signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._notice)
        return self

    def __exit__(self, *_: Any) -> None:
        """Restores the signal handlers."""
        for number, handler in self._before.items():
            if handler is not None:  # None if C code set the handler
                signal.signal(number, handler)

    def _notice(self, number: int, frame: FrameType | None) -> None:
        self._noticed = True
        if number == signal.SIGINT:
            os.write(2, b"\nsaving after this step; Ctrl-C again stops at once\n")
            signal.signal(number, self._before[number] or signal.default_int_handler)

    def due(self) -> bool:
        """Returns whether to stop after this step; all processes must call it after each step."""
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(next(self._asked))
        return self._noticed
