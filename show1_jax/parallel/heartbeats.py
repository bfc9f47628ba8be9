"""Names the process that all others wait for: one that hangs, or one whose data is slow.

A thread of each process tells what it does, in a line at the coordinator. The first process looks
at these lines. The coordinator runs in the first process: if that one hangs, each of the others
says so. Steps contain nothing of this, and no process waits for another.
"""

import contextlib
import json
import math
import socket
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging

from show1_jax.parallel.hosts import first

EVERY = 5.0  # seconds from look to look; what follows counts looks
SILENT = 6  # looks without a sign of life, after which a process hangs
STILL = 9  # looks without a step, after which it does, or
STEPS = 5.0  # so many times the median step, if that is longer
COMPARED = 6  # looks, at least, over which waits for data are compared,
COMPARED_STEPS = 5  # and steps
SLOW = 3.0  # a straggler waits so many times as long for its data as the median of the others,
SLOW_SHARE = 0.1  # and for at least this share of a step
STEPPING = ("training", "data")  # what a process does between steps; all else may take long
ENDED = "ended"


class Beat(NamedTuple):
    """What a process tells of itself.

    Attributes:
      number: rises as long as the process lives.
      host: the machine's name.
      step: the last one that it has begun.
      doing: one of `STEPPING`, `ENDED`, or something that may take long.
      waited: seconds that it has waited for data so far.
    """

    number: int
    host: str
    step: int
    doing: str
    waited: float


class Seen(NamedTuple):
    """A process's last beat, and for how many looks its number and its step have not risen.

    Looks, not seconds: whoever looks may have been stopped itself.
    """

    beat: Beat
    silent: int = 0
    still: int = 0

    def then(self, beat: Beat) -> "Seen":
        """What is known one look later, when this is the last beat."""
        old = self.beat
        silent = beat.number == old.number and beat.doing != ENDED
        still = beat.step == old.step and beat.doing in STEPPING and old.doing in STEPPING
        return Seen(beat, silent * (self.silent + 1), still * (self.still + 1))


def hung(seen: Mapping[int, Seen], limit: float) -> list[int]:
    """The processes that the others wait for: silent ones, else those that are steps behind.

    If all have made no step, and none is behind, all of them.

    Args:
      seen: by process.
      limit: looks without a step, after which a process hangs.
    """
    if silent := [process for process, each in seen.items() if each.silent >= SILENT]:
        return silent
    still = [process for process, each in seen.items() if each.still >= limit]
    last = max(each.beat.step for each in seen.values())
    if behind := [process for process in still if seen[process].beat.step < last]:
        return behind
    return still if len(still) == len(seen) else []


def stragglers(
    before: Mapping[int, Beat], after: Mapping[int, Beat], seconds: float
) -> dict[int, str]:
    """The processes that wait much longer for data than the others, and what to say of it.

    Args:
      before: a beat of each process.
      after: a later one, of a later step.
      seconds: that a step takes.
    """
    waits = {i: (after[i].waited - b.waited) / (after[i].step - b.step) for i, b in before.items()}
    found = {}
    for process, wait in waits.items():
        others = statistics.median([own for i, own in waits.items() if i != process])
        if wait > max(SLOW * others, SLOW_SHARE * seconds):
            found[process] = f"{wait:.2f} s a step for its data, the others {others:.2f} s"
    return found


class Lookout:
    """What the first process makes of what all tell."""

    def __init__(self) -> None:
        self._seen: dict[int, Seen] = {}
        self._hung: dict[int, int] = {}  # those that were named: for how many looks they hang
        self._all = False  # whether none makes a step, and none is to blame
        self._slow: dict[int, str] = {}  # those that were named, and what of them
        self._before: Mapping[int, Beat] = {}  # at the last comparison
        self._looks = 0  # since then

    def look(self, beats: Mapping[int, Beat], seconds: float) -> list[str]:
        """What is to be said now; to be called every `EVERY` seconds.

        Args:
          beats: the last of each process.
          seconds: that a step takes; infinite to name silent processes alone.
        """
        old = self._seen
        self._seen = {i: old[i].then(beat) if i in old else Seen(beat) for i, beat in beats.items()}
        said = list(self._hanging(seconds)) if beats else []
        return said + (list(self._waiting(beats, seconds)) if len(beats) > 1 else [])

    def _hanging(self, seconds: float) -> Iterator[str]:
        seen = self._seen
        self._hung = {i: looks + 1 for i, looks in self._hung.items()}
        gone_on = [i for i in self._hung if not (seen[i].silent or seen[i].still)]
        for process in gone_on:
            looks = self._hung.pop(process)
            yield f"{_named(process, seen[process].beat)} goes on after {looks * EVERY:.0f} s"
        found = hung(seen, max(STILL, STEPS * seconds / EVERY))
        silent = any(seen[i].silent >= SILENT for i in found)
        if self._hung and not silent:
            return  # they wait for those
        new = {i: max(seen[i].silent, seen[i].still) for i in found if i not in self._hung}
        before, self._all = self._all, len(found) == len(seen) and not silent
        if self._all:
            if not before:
                step = seen[found[0]].beat.step
                yield f"no process has made a step {_since(min(new.values()))} (step {step:,})"
            return
        self._hung |= new
        for process, looks in new.items():
            what = "has given no sign of life" if silent else "has kept the others waiting"
            yield f"{_named(process, seen[process].beat)} {what} {_since(looks)}"

    def _waiting(self, beats: Mapping[int, Beat], seconds: float) -> Iterator[str]:
        self._looks += 1
        if self._before.keys() == beats.keys():
            steps = min(beat.step - self._before[i].step for i, beat in beats.items())
            if self._looks < COMPARED or steps < COMPARED_STEPS:
                return
            slow = stragglers(self._before, beats, seconds)
            for process in slow.keys() - self._slow.keys():
                yield f"{_named(process, beats[process])} is a straggler: it waits {slow[process]}"
            self._slow = slow
        self._before, self._looks = beats, 0


def _named(process: int, beat: Beat) -> str:
    doing = "waiting for data" if beat.doing == "data" else beat.doing
    return f"process {process} on {beat.host} (step {beat.step:,}, {doing})"


def _since(looks: int) -> str:
    seconds = looks * EVERY
    clock = time.strftime("%H:%M:%S", time.localtime(time.time() - seconds))
    return f"for {seconds:.0f} s, since {clock}"


class Heartbeat:
    """Tells what this process does, and looks at what others tell."""

    def __init__(self, doing: Callable[[], str], waited: Callable[[], float]):
        """Takes what to ask for a beat's `doing` and `waited`; both are asked in a thread."""
        self._doing, self._waited = doing, waited
        self._step = self._count = 0
        self._times = deque([time.monotonic()], maxlen=21)
        self._host = socket.gethostname()

    def step(self, step: int) -> None:
        """This step has begun: its batch is there."""
        self._step = step
        self._times.append(time.monotonic())

    @contextlib.contextmanager
    def beating(self, name: str) -> Iterator[None]:
        """Beats in the context, under a name that no other run of these processes has.

        Does nothing for a single process.
        """
        if jax.process_count() == 1:
            yield
            return
        ended = threading.Event()
        thread = threading.Thread(target=self._run, args=(_Board(name), ended), daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join(2 * EVERY)  # not forever: the coordinator may hang

    def _run(self, board: "_Board", ended: threading.Event) -> None:
        lookout, heard = Lookout(), dict[int, Beat]()
        while True:
            begin, last = time.monotonic(), ended.is_set()
            try:
                if first():
                    board.put(self._beat(last))
                    heard = board.read()
                elif beat := board.read_first():  # else `put` would wait forever
                    heard = {0: beat}
                    board.put(self._beat(last))
            except jax.errors.JaxRuntimeError:
                return  # the coordinator has ended, and this process is about to
            if last:
                return
            for text in lookout.look(heard, self._step_seconds() if first() else math.inf):
                logging.warning("%s", text)
            ended.wait(begin + EVERY - time.monotonic())

    def _beat(self, last: bool) -> Beat:
        self._count += 1
        doing = ENDED if last else self._doing()
        return Beat(self._count, self._host, self._step, doing, self._waited())

    def _step_seconds(self) -> float:
        """The median of the last steps; the time before the first counts as one."""
        return statistics.median(np.diff([*self._times]).tolist() or [0.0])


class _Board:
    """Where each process leaves its last beat: the store of JAX's coordinator."""

    def __init__(self, name: str):
        # JAX has no public interface to it: its own multihost_utils take it from here, too.
        from jax._src.distributed import global_state

        self._client: Any = global_state.client
        self._name = f"show1_jax/heartbeats/{name}"

    def put(self, beat: Beat) -> None:
        """Replaces this process's beat; raises JaxRuntimeError if there is no coordinator."""
        key = f"{self._name}/{jax.process_index()}"
        self._client.key_value_set(key, json.dumps(beat), allow_overwrite=True)

    def read(self) -> dict[int, Beat]:
        """The beats of all processes that have told any; raises like `put`."""
        found = self._client.key_value_dir_get(f"{self._name}/")
        return {int(key.rpartition("/")[2]): Beat(*json.loads(text)) for key, text in found}

    def read_first(self) -> Beat | None:
        """The first process's; None if the coordinator does not answer. Raises like `put`."""
        try:
            text = self._client.blocking_key_value_get(f"{self._name}/0", int(EVERY * 1000))
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" in str(error):
                return None
            raise
        return Beat(*json.loads(text))
