"""Where the wall time of a run goes, over all its restarts."""

import time
from collections.abc import Mapping, Sequence

KINDS = ("training", "compiling", "saving", "data", "validation", "start", "repeated", "idle")
"""What the time of a run goes to; at any time it is one of them.

training: steps, from when their batch is there.
compiling: the first step after a start.
saving: what training waits for while checkpoints are saved, and the export in the end.
data: waiting for batches. Devices may still be at the step before.
validation: losses of the validation split, and samples.
start: opening the dataset, captions, restoring, initialising, the first batch.
repeated: training that was lost with an interruption.
idle: from the last numbers that an interrupted run wrote to its restart.
"""

_NAMES = {kind: "goodput" if kind == "training" else f"time/{kind}" for kind in KINDS}
_TOTAL = "wall_seconds"


class Stopwatch:
    """Adds up what each kind of work takes; the sum is the time since the run was begun."""

    def __init__(self) -> None:
        self.kind = "start"
        self._began = time.time()
        self._since = time.perf_counter()
        self._seconds = dict.fromkeys(KINDS, 0.0)
        self._read = (0.0, 0.0)  # seconds of training and of data at the last reading
        self._steps = 0  # since then

    def enter(self, kind: str) -> None:
        """What is done from now on is of that kind, one of `KINDS`."""
        now = time.perf_counter()
        self._seconds[self.kind] += now - self._since
        self.kind, self._since = kind, now

    def count(self) -> None:
        """Counts a step of training."""
        self._steps += 1

    def go_on(self, lines: Sequence[Mapping[str, float]], step: int) -> None:
        """Adds what the run took before it was interrupted.

        Args:
          lines: all that it wrote to metrics.jsonl, also of steps after its checkpoint.
          step: of the checkpoint; what came after it is repeated.
        """
        told = [line for line in lines if {_TOTAL, "unix_time", *_NAMES.values()} <= line.keys()]
        if not told:
            return
        last = told[-1]
        for kind, name in _NAMES.items():
            self._seconds[kind] += last[name] * last[_TOTAL]
        kept = [line["goodput"] * line[_TOTAL] for line in told if line["step"] <= step]
        lost = last["goodput"] * last[_TOTAL] - (kept[-1] if kept else 0.0)
        self._seconds["training"] -= lost
        self._seconds["repeated"] += lost
        self._seconds["idle"] += max(self._began - last["unix_time"], 0.0)  # clocks may differ
        self._read = (self._seconds["training"], self._seconds["data"])

    @property
    def waited(self) -> float:
        """Seconds of waiting for data; the current wait is left out."""
        return self._seconds["data"]

    def read(self, examples_per_step: int) -> dict[str, float]:
        """Speeds since the last reading, and where the time went since the run was begun.

        Args:
          examples_per_step: of the batch.

        Returns:
          Steps and examples a second of training and waiting for data; `data_wait`, the share of
          waiting in that; `wall_seconds` since the run was begun; `goodput`, the share of training
          in that; and as `time/KIND` those of all other kinds.
        """
        self.enter(self.kind)
        training, waited = (
            self._seconds[kind] - before
            for kind, before in zip(("training", "data"), self._read, strict=True)
        )
        passed, total = max(training + waited, 1e-9), max(sum(self._seconds.values()), 1e-9)
        numbers = {
            "steps_per_second": self._steps / passed,
            "examples_per_second": self._steps * examples_per_step / passed,
            "data_wait": waited / passed,
            _TOTAL: total,
            **{_NAMES[kind]: seconds / total for kind, seconds in self._seconds.items()},
        }
        self._read = (self._seconds["training"], self._seconds["data"])
        self._steps = 0
        return numbers

    def sentence(self) -> str:
        """Where the time went, for people; shares below 0.5 % are left out."""
        self.enter(self.kind)
        total = max(sum(self._seconds.values()), 1e-9)
        shares = {kind: seconds / total for kind, seconds in self._seconds.items()}
        training = shares.pop("training")
        others = sorted(shares.items(), key=lambda item: -item[1])
        told = "".join(f", {share:.0%} {kind}" for kind, share in others if share >= 0.005)
        hours, seconds = divmod(int(total), 3600)
        clock = f"{hours}:{seconds // 60:02}:{seconds % 60:02}"
        return f"of {clock}, {training:.0%} was training{told}"
