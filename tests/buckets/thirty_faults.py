"""Breaks buckets in many ways while programs use them, and judges what they make of it.

    python -m tests.buckets.thirty_faults                      # all, in about half an hour
    python -m tests.buckets.thirty_faults --only forbidden     # those with this in their name
    python -m tests.buckets.thirty_faults --list

Each program is a process of its own, on an emulator behind a proxy. It has to end in one line of
error within a minute of the fault, and to leave nothing that looks finished; or to go on, say what
it repeated, and make what it makes without faults. What is to happen is part of each case.
"""

import argparse
import concurrent.futures
import dataclasses
import re
import sys
import tempfile
from collections.abc import Callable

from show1_jax import files
from tests.buckets.emulators import BUCKET, environment, free_port
from tests.buckets.site import STAGE, Process, Site, World, black_hole
from tests.damage.box import BEFORE

LIMIT = 60.0  # seconds from a fault to the end
READ, WRITE = "GET|HEAD", "PUT|POST"
PROGRAMS = ("sample", "train", "convert")
AT_ONCE = 2
ERROR, RIGHT = "error", "right"


@dataclasses.dataclass(frozen=True)
class Case:
    """A fault.

    Attributes:
      name: of the fault.
      program: which program meets it.
      scheme: of the bucket.
      expected: `ERROR`, or `RIGHT` if the result has to be that of a run without faults.
      says: what the line of error, or the log, has to say.
      act: runs the program in a site; returns the process that is judged.
    """

    name: str
    program: str
    scheme: str
    expected: str
    says: str
    act: Callable[[Site], Process]


@dataclasses.dataclass
class Outcome:
    """What came of a case; `complaint` is "" if it is as it has to be."""

    case: Case
    complaint: str
    seconds: float
    line: str
    said: str


CASES: list[Case] = []


def case(name, programs, schemes, expected, says, act):
    """Adds a case for each of some programs, all with each scheme or with alternating ones."""
    for number, program in enumerate(programs):
        for scheme in schemes.split() if " " in schemes else [schemes.split("/")[number % 2]]:
            CASES.append(Case(name, program, scheme, expected, says, act))


def burst(methods):
    """Two faults of each kind, with good answers between them."""

    def act(site):
        site.put()
        for number, status in enumerate((503, 429, 500)):
            site.faults.add(status, methods, times=2, after=3 + 4 * number)
        return site.run()

    return act


def broken(kind, methods="GET|HEAD|POST|PUT|DELETE", **more):
    """A fault of one kind."""

    def act(site):
        site.put()
        site.faults.add(kind, methods, **more)
        return site.run()

    return act


def unreached(port):
    """No bucket at a port, which a context gives."""

    def act(site):
        with port() as number:
            return site.run(environment=environment(site.scheme, number))

    return act


class _Closed:
    def __enter__(self):
        return free_port()

    def __exit__(self, *_):
        pass


def damaged(index, change):
    """An input of which a file is changed: `change` gets where it is."""

    def act(site):
        site.put()
        change(site.own(index))
        return site.run()

    return act


def removed(name):
    return lambda place: (place / name).unlink()


def truncated(name):
    def change(place):
        found = [path for path in files.files_in(place) if re.search(name, str(path))]
        found[0].write_bytes(found[0].read_bytes()[: files.size_of(found[0]) // 2])

    return change


def one_parameter_file(place):
    found = [path for path in files.files_in(place / STAGE / "unet") if path.parent.name == "d"]
    found[0].unlink()


def other_bucket(site):
    """Names a bucket that does not exist, for all that is read."""
    site.inputs = [type(each)(str(each).replace(BUCKET, "no-bucket")) for each in site.inputs]
    return site.run()


def other_result(site):
    """Names a bucket that does not exist, for what is written."""
    site.put()
    site.result = type(site.result)(str(site.result).replace(BUCKET, "no-bucket"))
    ended = site.run()
    site.result = site.place / "result"
    return ended


def two_writers(site):
    """Two programs write to one place; the second is judged, and the first has to be right."""
    site.put()
    site.faults.add(0.1)  # so that the first takes a while
    first = site.start()
    first.until(_held(site).is_file)
    second = site.run()
    assert first.finish().status == 0, first.err
    site.right()
    return second


def killed_owner(site):
    """A program is killed while it writes; the next takes its lock, if any, and is judged."""
    site.put()
    site.faults.add(0.1)
    first = site.start()
    if site.program == "train":
        done = site.result / "keyframes" / "checkpoints"
        first.until(lambda: list(done.glob("*/commit_success.txt")))
    first.until(_held(site).is_file)
    first.kill()
    site.faults.clear()
    assert _held(site).is_file()
    return site.run()


def _held(site):
    """What is there while a program works: its lock, but of sampling, which shares its folder."""
    return {
        "sample": site.result / "items.jsonl",
        "train": site.result / "keyframes" / "lock",
        "convert": site.place / "result.partial" / "lock",
    }[site.program]


def no_credentials(site):
    """No keys in the environment; of GCS the emulator would not ask for any."""
    site.put()
    if site.scheme == "gs":
        site.faults.add(401)
    site.environment = {k: v for k, v in site.environment.items() if "KEY" not in k}
    site.environment |= {"HOME": str(site.folder)}
    return site.run()


def in_save(kind, **more):
    """A fault while the second checkpoint is saved; the same command goes on to the end."""

    def act(site):
        site.put()
        site.faults.add(kind, WRITE, r"checkpoints(/|%2F)4", **more)
        first = site.run()
        if first.status != 0:
            complaint, _ = judge(dataclasses.replace(ENDED, program=site.program), first, site)
            assert not complaint, complaint
            site.faults.clear()
            again = site.run()
            assert again.status == 0, again.err
            assert "goes on from step" in again.out, again.out
            site.right()
        return first

    return act


def compiled_in(place):
    """The cache of compiled programs is somewhere else."""

    def act(site):
        site.put()
        with black_hole() as port:
            text = place(site)
            if place is out_of_reach:
                site.environment |= environment("s3" if site.scheme == "gs" else "gs", port)
            return site.run(environment={"JAX_COMPILATION_CACHE_DIR": text})

    return act


def out_of_reach(site):
    return f"{'s3' if site.scheme == 'gs' else 'gs'}://{BUCKET}/compiled"


def forbidden_cache(site):
    site.faults.add(403, path="compiled")
    return str(site.place / "compiled")


def below_a_file(site):
    (site.folder / "file").write_text("")
    return str(site.folder / "file" / "compiled")


def no_cache_folder(site):
    """The folder for what can be made again is below a file, as on a disk that is read-only."""
    site.put()
    return site.run(environment={"XDG_CACHE_HOME": below_a_file(site)})


def full_disk(site):
    """Files on the disk end at 64 KB; what is written to buckets goes through it."""
    site.put()
    return site.run(limit=2**16, environment={"JAX_COMPILATION_CACHE_DIR": ""})


ENDED = Case("", "", "", ERROR, "", no_credentials)
REPEATED = r"attempt \d of \d"
NO_RIGHT = "no right"
SILENT = "does not answer"

case("bursts of 503, 429 and 500 on reads", PROGRAMS, "gs/s3", RIGHT, REPEATED, burst(READ))
case("bursts of 503, 429 and 500 on writes", PROGRAMS, "s3/gs", RIGHT, REPEATED, burst(WRITE))
case("forbidden to read", PROGRAMS, "gs/s3", ERROR, NO_RIGHT, broken(403, READ))
case("forbidden to write", PROGRAMS, "s3/gs", ERROR, NO_RIGHT, broken(403, WRITE))
case("503 forever", PROGRAMS, "gs/s3", ERROR, "answered 503", broken(503))
case("503 forever on writes", PROGRAMS, "s3/gs", ERROR, "503", broken(503, WRITE))
case("503 forever after a while", PROGRAMS, "s3/gs", ERROR, "503", broken(503, after=40))
case("connections dropped", PROGRAMS, "gs/s3", RIGHT, REPEATED, broken("drop", times=3, after=6))
case("connections dropped forever", ["sample"], "s3/gs", ERROR, SILENT, broken("drop"))
case("closed port", PROGRAMS, "s3/gs", ERROR, SILENT, unreached(_Closed))
case("black hole", PROGRAMS, "gs/s3", ERROR, SILENT, unreached(black_hole))
case("one request hangs", PROGRAMS, "s3/gs", RIGHT, REPEATED, broken("hang", times=1, after=8))
case("all requests hang after a while", ["sample", "train"], "gs/s3", ERROR, SILENT,
     broken("hang", after=40))  # fmt: skip
case("answers take 0.5 s", PROGRAMS, "gs/s3", RIGHT, "", broken(0.5))
case("no bucket to read", PROGRAMS, "gs/s3", ERROR, "no-bucket", other_bucket)
case("no bucket to write", PROGRAMS, "s3/gs", ERROR, "no-bucket", other_result)
case("no credentials", ["sample", "train"], "s3/gs", ERROR, "credentials", no_credentials)
case("no checkpoint", ["sample", "train"], "gs/s3", ERROR, "checkpoint|encoders|trained",
     damaged(0, files.remove))  # fmt: skip
case("no released folder", ["convert"], "s3/gs", ERROR, "release", damaged(0, files.remove))
case("one parameter file is missing", ["sample"], "gs s3", ERROR, "is missing",
     damaged(0, one_parameter_file))  # fmt: skip
case("no file of prompts", ["sample"], "gs s3", ERROR, "prompts.txt", damaged(1, files.remove))
case("a shard is missing", ["train"], "gs/s3", ERROR, "00001.tar", lambda site: _lost_shard(site))
case("truncated parameters", ["sample"], "gs s3", ERROR, "has changed",
     damaged(0, truncated(r"unet/params/.*/d/|unet/params/d/")))  # fmt: skip
case("truncated config.json", ["sample"], "s3/gs", ERROR, "config.json",
     damaged(0, truncated("unet/config.json")))  # fmt: skip
case("truncated weights", ["convert"], "gs/s3", ERROR, "diffusion_pytorch_model",
     damaged(0, truncated("unet/diffusion_pytorch_model.*n$")))  # fmt: skip
case("truncated shard", ["train"], "s3/gs", RIGHT, "00001.tar is damaged",
     damaged(1, truncated("00001.tar")))  # fmt: skip
case("two writers", ["train", "convert"], "gs/s3", ERROR, "in use by another", two_writers)
case("two writers", ["sample"], "gs s3", RIGHT, "", two_writers)
case("owner of the lock was killed", PROGRAMS, "s3/gs", RIGHT, "", killed_owner)
case("503s in a save", ["train"], "gs s3", RIGHT, "repeated", in_save(503, times=4))
case("forbidden to save", ["train"], "gs s3", ERROR, "go on from step 2", in_save(403))
# The emulator of GCS has an object for each array, of which some at a time are given up.
case("503 forever in a save", ["train"], "s3", ERROR, "go on from step 2", in_save(503))
case("saves hang", ["train"], "s3", ERROR, "go on from step 2", in_save("hang"))
case("all requests hang in training", ["train"], "s3", ERROR, SILENT,
     broken("hang", path="keyframes", after=60))  # fmt: skip
case("cache of programs out of reach", ["sample", "train"], "gs/s3", RIGHT, "compiled",
     compiled_in(out_of_reach))  # fmt: skip
case("cache of programs is forbidden", ["sample"], "gs/s3", RIGHT, "compiled",
     compiled_in(forbidden_cache))  # fmt: skip
case("cache of programs cannot be written", ["train"], "gs/s3", RIGHT, "compiled",
     compiled_in(below_a_file))  # fmt: skip
case("cache folder cannot be made", ["sample", "train"], "gs/s3", RIGHT, "", no_cache_folder)
case("disk is full", ["convert", "train"], "s3/gs", ERROR, "large|space", full_disk)


def _lost_shard(site):
    """Shards are named, and one of them is gone."""
    site.put()
    place = site.own(1)
    (place / "00001.tar").unlink()
    site.inputs[1] = place / "{00000..00001}.tar"
    return site.run()


def judge(case, ended, site):
    """What is wrong with how a program has ended, or ""; and its line."""
    lines = [line for line in ended.err.splitlines() if line.strip()]
    errors = [line for line in lines if not re.match(f"{BEFORE.pattern}|WARNING:", line)]
    line = errors[-1] if errors else ""
    if "Traceback" in ended.err:
        return "a traceback", line
    if ended.status is None:
        return "it did not end", line
    if case.expected == RIGHT:
        if ended.status:
            return f"status {ended.status}", line
        said = ended.err + ended.out
        if case.says and not re.search(case.says, said):
            return f"it does not say {case.says!r}", line
        return _wrong(site.right) if "truncated" not in case.name else "", line
    if ended.status not in (1, 2):
        return f"status {ended.status}", line
    if len(errors) != 1 or not line.startswith("error: "):
        return f"{len(errors)} lines", line
    if not re.search(case.says, line):
        return f"it does not say {case.says!r}", line
    if not re.search(r"(gs|s3)://|/", line):
        return "it names no path", line
    if not re.search(r"[;:,] [a-z]", line):
        return "it does not say what to do", line
    if ended.seconds > LIMIT:
        return f"{ended.seconds:.0f} s", line
    return _wrong(site.unfinished) if case.name != "two writers" else "", line


def _wrong(look):
    try:
        return look() or ""
    except Exception as error:  # noqa: BLE001 - whatever a broken result makes of it
        return f"{type(error).__name__}: {str(error).splitlines()[0]:.200}"


def attempt(case, world):
    """Runs a case."""
    site = Site(
        world, re.sub(r"\W+", "-", f"{case.name}-{case.program}"), case.program, case.scheme
    )
    try:
        ended = case.act(site)
        complaint, line = judge(case, ended, site)
        said = f"{ended.out}\n{ended.err}"
        return Outcome(case, complaint, ended.seconds, line, said)
    except Exception as error:  # noqa: BLE001 - told, and the other cases go on
        return Outcome(case, f"{type(error).__name__}: {error}"[-600:], 0.0, "", "")
    finally:
        site.close()


def main():
    """Runs cases; returns 1 if one is not as it has to be."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="a pattern of names, FAULT PROGRAM SCHEME")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--long", action="store_true", help="prints all that programs said")
    parser.add_argument("--quick", action="store_true", help="forks programs after their imports")
    args = parser.parse_args()
    chosen = [
        each for each in CASES
        if re.search(args.only, f"{each.name} {each.program} {each.scheme}")
    ]  # fmt: skip
    if args.list:
        print(*(f"{each.name} {each.program} {each.scheme}" for each in chosen), sep="\n")
        return 0
    with tempfile.TemporaryDirectory() as folder, World(folder, args.quick) as world:
        with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
            running = [pool.submit(attempt, each, world) for each in chosen]
            for future in concurrent.futures.as_completed(running):
                found = future.result()
                tell(found, args.long)
        outcomes = [future.result() for future in running]
    print("\n| fault | program | bucket | outcome | seconds | line |\n|---|---|---|---|---|---|")
    for found in outcomes:
        print("| " + " | ".join(row(found)) + " |")
    failed = [found for found in outcomes if found.complaint]
    print(f"\n{len(outcomes) - len(failed)} of {len(outcomes)} are as they have to be")
    return 1 if failed or not outcomes else 0


def row(found):
    """A line of the table."""
    case = found.case
    outcome = case.expected if not found.complaint else f"WRONG: {found.complaint}"
    line = re.sub(r"\s+", " ", found.line).replace("|", "/")
    return case.name, case.program, case.scheme, outcome, f"{found.seconds:.0f}", line


def tell(found, long):
    """Prints an outcome at once."""
    print(*row(found), sep="  ", flush=True)
    if long or found.complaint:
        print("    " + found.said[-3000:].replace("\n", "\n    "), flush=True)


if __name__ == "__main__":
    sys.exit(main())
