"""Damage to a folder's files, one file at a time."""

from collections.abc import Iterator
from pathlib import Path


def _flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


WAYS = {
    "truncated": lambda content: content[: len(content) // 2],
    "flipped": _flipped,
    "zeroed": lambda content: bytes(len(content)),
}


def each_damaged(folder: Path, way: str) -> Iterator[Path]:
    """Damages each file in turn and mends it when the next one is asked for."""
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        if content := path.read_bytes():
            path.write_bytes(WAYS[way](content))
            yield path
            path.write_bytes(content)
