"""Checksums of a folder's files, which show damage that no reader notices.

An Orbax checkpoint has checksums of its index alone: where a byte of the compressed numbers
flips, decompression may fail, or give other numbers.
"""

import json
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from show1_jax.errors import InputError

FILE = "checksums.json"
CHUNK = 2**24  # bytes read at once


def write_checksums(folder: Path) -> None:
    """Writes the CRC-32 of each file of a folder into its `checksums.json`.

    Raises:
      OSError: if a file cannot be read or written.
    """
    temporary = folder / f"{FILE}.tmp"
    temporary.write_text(json.dumps(_checksums(folder), indent=1) + "\n")
    temporary.rename(folder / FILE)


def check_files(folder: Path) -> None:
    """Compares a folder's files with its checksums; a folder without any is not checked.

    Raises:
      InputError: if a file is missing, or is not what it was.
      OSError: if a file cannot be read.
    """
    path = folder / FILE
    if not path.is_file():
        return
    try:
        expected = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        expected = None
    if not isinstance(expected, dict):
        raise InputError(f"{path} is damaged")
    found = _checksums(folder)
    for name, value in expected.items():
        if found.get(name) != value:
            change = "is not what was written" if name in found else "is missing"
            raise InputError(f"{folder} is damaged: {name} {change}")


def _checksums(folder: Path) -> dict[str, int]:
    """By path within the folder, of all files but that of the checksums."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    names = [path.relative_to(folder).as_posix() for path in paths]
    with ThreadPoolExecutor() as pool:
        found = dict(zip(names, pool.map(_checksum, paths), strict=True))
    return {name: value for name, value in found.items() if not name.startswith(FILE)}


def _checksum(path: Path) -> int:
    value = 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            value = zlib.crc32(chunk, value)
    return value
