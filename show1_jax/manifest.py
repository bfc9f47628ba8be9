"""Manifests of sampling: a line for each result that was made, or removed, or failed and why.

`manifest.jsonl` is of one process. Several that share a folder write `manifest-NAME.jsonl` each,
until they are merged. The last line of a result is what became of it.
"""

import json
import time
from collections.abc import Iterable
from typing import Any

from etils.epath import Path

from show1_jax import stages
from show1_jax.files import Log, log_parts, read_log

NAME = "manifest"

Result = tuple[int, str]
"""An item and a stage."""


def path(folder: Path, part: str = "") -> Path:
    """The manifest of a process, or of the only one."""
    return folder / f"{NAME}{part and '-'}{part}.jsonl"


def line(item: int, stage: str, prompt: str, seed: int, **more: Any) -> bytes:
    """A line on a result, now; `error` or `removed` in `more` say that it is not there."""
    known = {"item": item, "stage": stage, "prompt": prompt, "seed": seed}
    return (json.dumps(known | more | {"time": round(time.time(), 3)}) + "\n").encode()


def noted(folder: Path, own: Path) -> set[Result]:
    """The results that the merged manifest and a process's own say are there.

    Raises:
      OSError: if one cannot be read.
    """
    last = _last({path(folder), own})
    return {key for key, found in last.items() if not found.keys() & {"error", "removed"}}


def merge(folder: Path) -> dict[Result, dict[str, Any]]:
    """Makes one manifest of all in a folder.

    Returns:
      The last line of each result.

    Raises:
      OSError: if one cannot be read or written.
    """
    parts, whole = list(folder.glob(f"{NAME}*.jsonl")), path(folder)
    last = _last(parts)
    order = sorted(last, key=lambda result: (result[0], stages.names().index(result[1])))
    Log(whole, "".join(json.dumps(last[result]) + "\n" for result in order).encode())
    for part in parts:
        for file in log_parts(part) if part != whole else ():
            file.unlink()
    return last


def _last(paths: Iterable[Path]) -> dict[Result, dict[str, Any]]:
    """The last line of each result."""
    lines = [found for each in sorted(paths) for found in _lines(each)]
    return {
        (found["item"], found["stage"]): found
        for found in sorted(lines, key=lambda found: found["time"])
    }


def _lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a manifest that are whole: the last may have been cut off."""
    found = []
    for text in read_log(path).splitlines():
        try:
            one = json.loads(text)
        except (ValueError, RecursionError):
            continue
        kinds = {"item": int, "stage": str, "time": float}
        if (
            isinstance(one, dict)
            and all(type(one.get(key)) is kind for key, kind in kinds.items())
            and one["stage"] in stages.names()
        ):
            found.append(one)
    return found
