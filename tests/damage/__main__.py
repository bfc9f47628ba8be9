"""Tries damaged inputs on the programs that read them.

    python -m tests.damage                       # 300 of them, the same for the same --seed
    python -m tests.damage --case noise-007      # one of them again, and what it says

Each has to end in one line and a status other than 0, or to work: without a traceback, within a
minute, without writing anything but what it was told to, and without running what a pickle asks
for. See `box.complaint` and `box.written` for what exactly is asked.
"""

import argparse
import collections
import concurrent.futures
import dataclasses
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tests import programs
from tests.damage.box import LIMIT, Box, clear, complaint, contents, written
from tests.damage.good import Good
from tests.damage.kinds import KINDS, Case, Kind, cases


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What came of a case: "worked", "refused" or "failed", and why."""

    case: Case
    what: str
    why: str
    command: str
    said: str
    seconds: float


def attempt(case: Case, good: Good, seed: int, limit: float, keep: bool = False) -> Outcome:
    """Damages an input, runs the program, and judges what it did."""
    kind, box = KINDS[case.kind], Box(good.folder.parent / case.name)
    rng = np.random.default_rng((seed, zlib.crc32(case.kind.encode()), case.number))
    clear(box)
    box.make()
    goods = _goods(kind, good)
    target = box.result if kind.there else box.given
    if kind.there:
        shutil.copytree(goods, target)
    else:
        shutil.copytree(goods, target, dirs_exist_ok=True)
    kind.damages[case.damage](target, rng)
    command = kind.command(box, rng)
    before, begin = contents(box.folder), time.perf_counter()
    try:
        done = box.run(command, limit)
    except subprocess.TimeoutExpired as error:
        why, said = f"still running after {limit:g} s", str(error.stderr)
        status = None
    else:
        status, said = done.returncode, done.stderr
        why = complaint(done) or ""
    seconds = time.perf_counter() - begin
    if box.ran.exists():
        why = "the payload ran"
    why = why or written(box, before, contents(box.folder), status != 0, kind.whole) or ""
    what = "failed" if why else "refused" if status else "worked"
    text = " ".join(repr(part) if " " in part else part for part in map(str, command))
    if not keep:
        clear(box)
    return Outcome(case, what, why, text, said, seconds)


def _goods(kind: Kind, good: Good) -> Path:
    """What a case is made from; beside it is what else the program is given."""
    for name in kind.beside:
        good(name)
    return good(kind.good)


def try_all(
    chosen: Sequence[Case],
    good: Good,
    seed: int,
    limit: float,
    keep: bool = False,
    at_once: int = 2,
) -> list[Outcome]:
    """Tries cases, a few at a time, and says how far it is."""
    outcomes = []
    with concurrent.futures.ThreadPoolExecutor(at_once) as pool:
        tried = [pool.submit(attempt, case, good, seed, limit, keep) for case in chosen]
        for number, future in enumerate(concurrent.futures.as_completed(tried), 1):
            outcome = future.result()
            outcomes.append(outcome)
            if outcome.what == "failed" or not number % 50:
                print(f"{number}/{len(chosen)}  {describe(outcome, 0)}", flush=True)
    return sorted(outcomes, key=lambda each: each.case.name)


def describe(outcome: Outcome, lines: int) -> str:
    """One line, and the last of what the program said."""
    case = outcome.case
    said = outcome.said.strip().splitlines()[-lines:] if lines else []
    head = f"{case.name} ({case.damage}): {outcome.what} {outcome.why} {outcome.seconds:.1f} s"
    return "\n    ".join([head, *([outcome.command] if lines else []), *said])


def table(outcomes: Sequence[Outcome]) -> str:
    """Cases by kind."""
    counts = collections.Counter((each.case.kind, each.what) for each in outcomes)
    rows = [("kind", "cases", "refused", "worked", "failed")]
    for kind in [*sorted({each.case.kind for each in outcomes}), "all"]:
        own = [
            sum(n for (k, w), n in counts.items() if kind in (k, "all") and w == what)
            for what in ("refused", "worked", "failed")
        ]
        rows.append((kind, *map(str, [sum(own), *own])))
    return "\n".join(f"{row[0]:12}" + "".join(f"{cell:>9}" for cell in row[1:]) for row in rows)


def prepare(cache: Path) -> None:
    """Has all programs that are started share what is compiled and imported."""
    os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    # Whatever is printed on the way to the outcome.
    more = ["torch", "torch._subclasses.fake_tensor", "transformers", "tests.damage.good"]
    programs.CONTEXT.set_forkserver_preload([*programs.PRELOADED, *more])


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.damage", description=__doc__)
    parser.add_argument("--count", type=int, default=300, help="how many; 0 for all damages once")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", action="append", default=[], choices=KINDS, metavar="KIND")
    parser.add_argument("--case", action="append", default=[], help="such as noise-007")
    parser.add_argument("--keep", type=Path, help="a folder in which to leave all files")
    parser.add_argument("--limit", type=float, default=LIMIT, help="seconds for each")
    parser.add_argument("--lines", type=int, default=12, help="of what each failed one said")
    args = parser.parse_args()
    folder = (args.keep or Path(tempfile.mkdtemp(prefix="damage-"))).absolute()
    (folder / "good").mkdir(parents=True, exist_ok=True)
    prepare(folder / "compiled")
    only = args.only or sorted({name.rpartition("-")[0] for name in args.case})
    largest = max((int(name.rpartition("-")[2]) for name in args.case), default=0)
    if args.case:
        found = (case for kind in only for case in cases(args.seed, largest + 1, [kind]))
        chosen = [case for case in found if case.name in args.case]
    else:
        chosen = cases(args.seed, args.count or None, only)
    begin = time.perf_counter()
    try:
        good = Good(folder / "good")
        outcomes = try_all(chosen, good, args.seed, args.limit, args.keep is not None)
    finally:
        if not args.keep:
            shutil.rmtree(folder, ignore_errors=True)
    failed = [each for each in outcomes if each.what == "failed"]
    for each in outcomes if args.case else failed:
        print(f"\n{describe(each, args.lines)}")
    print(f"\n{table(outcomes)}\n\n{time.perf_counter() - begin:.0f} s")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
