"""Checksums of a folder's files, which reveal damage that readers do not notice.

Orbax has checksums only of its index. If a byte of the compressed numbers changes, decompression
may fail, or give wrong numbers.
"""

import json
import zlib
from concurrent.futures import ThreadPoolExecutor

from etils.epath import Path

from show1_jax.errors import InputError
from show1_jax.files import files_in, open_bytes, write_whole

FILE = "checksums.json"
CHUNK = 2**20  # bytes read at once


def write_checksums(folder: Path) -> None:
    """Writes the CRC-32 of each file of a folder into its `checksums.json`.

    Raises:
      OSError: if a file cannot be read or written.
    """
    write_whole(folder / FILE, (json.dumps(_checksums(folder), indent=1) + "\n").encode())


def check_files(folder: Path) -> None:
    """Compares a folder's files with its checksums. A folder without checksums is not checked.

    Raises:
      InputError: if a file is missing or has changed.
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
        raise InputError(f"{path} is damaged; copy the checkpoint again")
    found = _checksums(folder)
    for name, value in expected.items():
        if found.get(name) != value:
            change = "has changed" if name in found else "is missing"
            raise InputError(f"{folder} is damaged: {name} {change}; copy the checkpoint again")


def _checksums(folder: Path) -> dict[str, int]:
    """Computes the checksums of all files except `FILE`, by path within the folder."""
    paths = files_in(folder)
    names = [path.relative_to(folder).as_posix() for path in paths]
    with ThreadPoolExecutor() as pool:
        found = dict(zip(names, pool.map(_checksum, paths), strict=True))
    return {name: value for name, value in found.items() if name != FILE}


def _checksum(path: Path) -> int:
    value, chunk = 0, memoryview(bytearray(CHUNK))
    with open_bytes(path) as file:
        while size := file.readinto(chunk):
            value = zlib.crc32(chunk[:size], value)
    return value
