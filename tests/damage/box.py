"""Where one damaged input is tried, and what is asked of the program that is given it."""

import dataclasses
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import av
import numpy as np

from tests import programs
from tests.damage.wreck import OUTSIDE

LIMIT = 60.0
MEMORY = 12 << 30
# What may stand before the last line: progress bars, what is logged, and warnings.
BEFORE = re.compile(
    r"\s*$|.*\d%\||.*\d \w+ \[|.*\w/s\]|.*: \d+:\d\d$|.*\[\d+:\d\d\]$|"
    r"[IWE]\d{4} \d\d:|(?i:warning:)|.*is for timesteps"
)
CURSOR = re.compile(r"\x1b\[[A-Z]")  # with which progress bars go to another line
# What is no output: temporary files, and the caches of libraries.
ELSEWHERE = re.compile(r"tmp/|.*__pycache__|home/\.(cache|config)(/(matplotlib|fontconfig)(/|$)|$)")
UNFINISHED = re.compile(r"\.tmp|\.partial|^\.|\.orbax-checkpoint-tmp")


@dataclasses.dataclass(frozen=True)
class Box:
    """The folders of one try.

    in/        what is damaged
    out/       in which the program is told to write `result`, and nothing else
    outside/   what nobody named, as HOME, the working folder and TMPDIR are not
    """

    folder: Path

    @property
    def given(self) -> Path:
        """Where the inputs are."""
        return self.folder / "in"

    @property
    def result(self) -> Path:
        """What the program is told to write."""
        return self.folder / "out" / "result"

    @property
    def ran(self) -> Path:
        """The file that a payload makes when it runs."""
        return self.folder / OUTSIDE / "ran"

    def make(self) -> None:
        """Makes the folders."""
        for name in ("in", "out", OUTSIDE, "home", "here", "tmp"):
            (self.folder / name).mkdir(parents=True)
        (self.folder / OUTSIDE / "kept.txt").write_text("This stays as it is.\n" * 20)

    def run(self, command: tuple[object, ...], limit: float) -> subprocess.CompletedProcess:
        """Runs a program in it; raises `subprocess.TimeoutExpired`."""
        home, temporary = self.folder / "home", self.folder / "tmp"
        own = {"HOME": str(home), "TMPDIR": str(temporary), "COLUMNS": "80"}
        here = self.folder / "here"
        environment = {k: v for k, v in os.environ.items() if not k.startswith("XDG_")} | own
        return programs.run(*command, cwd=here, environment=environment, limit=limit, memory=MEMORY)


def contents(folder: Path) -> dict[str, str]:
    """What is in a folder, by path: files by their bytes, links by where they lead."""
    found: dict[str, str] = {}
    for root, folders, files in os.walk(folder):
        for name in [*folders, *files]:
            path = Path(root, name)
            if path.is_symlink():
                what = f"link to {os.readlink(path)}"
            elif path.is_dir():
                what = "folder"
            else:
                what = hashlib.sha256(path.read_bytes()).hexdigest()
            found[str(path.relative_to(folder))] = what
    return found


def complaint(done: subprocess.CompletedProcess) -> str | None:
    """What is wrong with how a program ended; None if nothing is.

    With status 0 it has worked. Else the last line of stderr says why it has not, after "error: ",
    and before it are only progress bars, warnings and empty lines. A traceback is never there.
    """
    lines = re.split(r"[\n\r]+", CURSOR.sub("", done.stderr).strip())
    if "Traceback" in done.stderr or "Exception ignored" in done.stderr:
        return f"traceback: {lines[-1]}"
    if done.returncode == 0:
        return None
    if done.returncode < 0:
        return f"killed by signal {-done.returncode}"
    if not lines[-1].startswith("error: "):
        return f"the last line is no error: {lines[-1]}"
    if odd := [line for line in lines[:-1] if not BEFORE.match(line)]:
        return f"more than one line: {odd[0]}"
    return None


def written(
    box: Box, before: Mapping[str, str], after: Mapping[str, str], refused: bool, whole: bool
) -> str | None:
    """What is wrong with what a program has written; None if nothing is.

    Args:
      box: where it ran.
      before: contents of the box.
      after: likewise.
      refused: whether it has not worked.
      whole: whether all of its result or nothing has to be there.
    """
    inside = "out/result"
    # Where a conversion that fails leaves the networks that it has finished, and says so.
    kept = f"{inside}.partial"
    if refused:
        after = {path: made for path, made in after.items() if not path.startswith(kept)}
    for path in sorted(before.keys() | after.keys()):
        if before.get(path) == after.get(path) or ELSEWHERE.match(path):
            continue
        if path == inside or path.startswith(f"{inside}/"):
            continue
        return f"wrote {path}, which was {before.get(path)} and is {after.get(path)}"
    new = [p for p in after if p.startswith(inside) and before.get(p) != after[p]]
    if refused and whole and new:
        return f"refused, but left {new[0]}"
    for path in new:
        if UNFINISHED.search(Path(path).name):
            return f"left {path}, which is unfinished"
        # What is copied as it is may be as broken as it was.
        made = after[path] != "folder" and after[path] not in before.values()
        if made and (reason := _broken(box.folder / path)):
            return f"left {path}, which is broken: {reason}"
    return None


def _broken(path: Path) -> str | None:
    """Why a file cannot be read; None if it can, or is of another kind."""
    content = path.read_bytes()
    try:
        match path.suffix:
            case ".json":
                json.loads(content)
            case ".jsonl":
                for line in content.decode().splitlines():
                    json.loads(line)
            case ".npy" | ".npz":
                np.load(io.BytesIO(content))
            case ".mp4":
                with av.open(io.BytesIO(content)) as container:
                    next(container.decode(video=0))
    except (ValueError, EOFError, OSError, StopIteration) as error:
        return str(error) or type(error).__name__
    return None


def clear(box: Box) -> None:
    """Removes it."""
    shutil.rmtree(box.folder, ignore_errors=True)
