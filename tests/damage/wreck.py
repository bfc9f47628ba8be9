"""Damages of any file, and of any JSON file. Each takes the file and a random generator."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Random = np.random.Generator
Damage = Callable[[Path, Random], None]
DEEP = 100_000  # far beyond what the interpreter recurses
OUTSIDE = "outside"  # the folder beside that of the inputs which nothing may touch


def pick(rng: Random, of: Any) -> Any:
    """One of a sequence."""
    of = list(of)
    return of[int(rng.integers(len(of)))]


def remove(path: Path) -> None:
    """Whatever is at a path."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _bytes(change: Callable[[bytearray, Random], bytes | bytearray]) -> Damage:
    def damage(path: Path, rng: Random) -> None:
        path.write_bytes(change(bytearray(path.read_bytes()), rng))

    return damage


def _place(content: bytearray, rng: Random) -> slice:
    """A part of a file."""
    first = int(rng.integers(max(len(content), 1)))
    return slice(first, first + int(rng.integers(1, max(len(content) // 4, 2))))


def _flipped(content: bytearray, rng: Random) -> bytearray:
    for place in rng.integers(len(content), size=int(rng.integers(1, 9))):
        content[place] ^= int(rng.integers(1, 256))
    return content


def _zeroed(content: bytearray, rng: Random) -> bytearray:
    part = _place(content, rng)
    content[part] = bytes(len(content[part]))
    return content


def _repeated(content: bytearray, rng: Random) -> bytearray:
    part = _place(content, rng)
    content[part] = content[part] * 2
    return content


def _left_out(content: bytearray, rng: Random) -> bytearray:
    del content[_place(content, rng)]
    return content


def _cut(content: bytearray, rng: Random) -> bytearray:
    return content[: int(rng.integers(len(content)))]


def _instead(make: Callable[[Path], None]) -> Damage:
    def damage(path: Path, rng: Random) -> None:
        remove(path)
        make(path)

    return damage


def _outside(path: Path) -> Path:
    return next(each for each in path.parents if (each / OUTSIDE).is_dir()) / OUTSIDE


def _swapped(path: Path, rng: Random) -> None:
    """With another file of the inputs, or with what is no input at all."""
    others = [each for each in path.parent.rglob("*") if each.is_file() and each != path]
    other = pick(rng, sorted(others)) if others else _outside(path) / "kept.txt"
    content = other.read_bytes()
    if others:
        other.write_bytes(path.read_bytes())
    path.write_bytes(content)


ANY: dict[str, Damage] = {
    "cut short": _bytes(_cut),
    "last byte missing": _bytes(lambda content, rng: content[:-1]),
    "bytes flipped": _bytes(_flipped),
    "bytes flipped again": _bytes(_flipped),
    "a part zero": _bytes(_zeroed),
    "a part twice": _bytes(_repeated),
    "a part left out": _bytes(_left_out),
    "noise": _bytes(lambda content, rng: rng.bytes(len(content))),
    "more at the end": _bytes(lambda content, rng: content + rng.bytes(100)),
    "empty": _instead(Path.touch),
    "missing": _instead(lambda path: None),
    "a folder": _instead(Path.mkdir),
    "a link to nowhere": _instead(lambda path: path.symlink_to("nowhere")),
    "a link to itself": _instead(lambda path: path.symlink_to(path.name)),
    "a link to the outside": _instead(lambda path: path.symlink_to(_outside(path) / "kept.txt")),
    "a link to a folder": _instead(lambda path: path.symlink_to(_outside(path))),
    "swapped": _swapped,
}

# In place of a value.
VALUES = (
    None, True, -1, 0, 1, 0.5, 10**30, -(10**9), float("nan"), float("inf"), -float("inf"), "", "3",
    "text", "\ud800", "a\0b", "../../x", "/x", [], {}, [1, 2], [[[]]], {"a": {"b": 1}}, ["\ud800"],
)  # fmt: skip
# In place of the name of a file; {} is one outside.
NAMES = (
    "../{}", "../../{}", "../../../{}", "../../../../{}", "../../../../../{}", "/{}", "a/../../{}",
    "", ".", "..", "a\0b", "x" * 300, "\ud800.bin", "a\nb.bin", "a.txt", "a/b.bin", 5, None, True,
    0.5, ["x.bin"], {"x.bin": 1},
)  # fmt: skip


def names(path: Path) -> list[Any]:
    """What to put where the name of a file is read, such as ones that lead to the outside."""
    target = f"{OUTSIDE}/made.bin"
    full = str(_outside(path).parent / target)
    return [
        (full if name == "/{}" else name.replace("{}", target)) if isinstance(name, str) else name
        for name in NAMES
    ]


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every container and key of a JSON value."""
    if isinstance(value, dict):
        items: list[tuple[Any, Any]] = list(value.items())
    else:
        items = list(enumerate(value)) if isinstance(value, list) else []
    below = [place for _, each in items for place in places(each)]
    return [(value, key) for key, _ in items] + below


def edited(change: Callable[[Any, Random], Any]) -> Damage:
    """A damage that changes the value of a JSON file."""

    def damage(path: Path, rng: Random) -> None:
        value = json.loads(path.read_text())
        changed = change(value, rng)
        path.write_text(json.dumps(value if changed is None else changed))

    return damage


def _other_value(value: Any, rng: Random) -> None:
    container, key = pick(rng, places(value))
    container[key] = pick(rng, VALUES)


def _no_key(value: Any, rng: Random) -> None:
    container, key = pick(rng, places(value))
    del container[key]


def _not_finite(value: Any, rng: Random) -> None:
    numbers = [(c, k) for c, k in places(value) if type(c[k]) in (int, float)] or places(value)
    container, key = pick(rng, numbers)
    container[key] = pick(rng, (float("nan"), float("inf"), 1e308, -1, 0, 2**63))


def _no_text(value: Any, rng: Random) -> None:
    texts = [(c, k) for c, k in places(value) if isinstance(c[k], str)] or places(value)
    container, key = pick(rng, texts)
    container[key] = pick(rng, ("\ud800", "", "a\0b", 5, None, ["a"], {"a": 1}, "../x"))


def _odd_key(value: Any, rng: Random) -> None:
    key, new = pick(rng, ("\ud800", "", "a\0b", "../x", "new")), pick(rng, VALUES)
    value.append({key: new}) if isinstance(value, list) else value.update({key: new})


def _root(value: Any, rng: Random) -> Any:
    return pick(rng, ([], [value], "text", 5, {}, [[1, 2]], False))


def _twice(path: Path, rng: Random) -> None:
    text = path.read_text()
    value, new = json.loads(text), json.dumps(pick(rng, VALUES))
    if isinstance(value, dict):
        path.write_text(text.replace("{", f"{{{json.dumps(pick(rng, value))}: {new},", 1))
    else:
        path.write_text(text.replace("[", f"[{new},", 1))


def _text(make: Callable[[str, Random], str | bytes]) -> Damage:
    def damage(path: Path, rng: Random) -> None:
        made = make(path.read_text(), rng)
        path.write_bytes(made if isinstance(made, bytes) else made.encode())

    return damage


def _nested(text: str, rng: Random) -> str:
    value = json.loads(text)
    container, key = pick(rng, places(value))
    container[key] = "HERE"
    return json.dumps(value).replace('"HERE"', "[" * DEEP + "]" * DEEP)


JSON: dict[str, Damage] = {
    **{f"another value {number}": edited(_other_value) for number in range(1, 8)},
    "a key missing": edited(_no_key),
    "another key missing": edited(_no_key),
    "a number that is none": edited(_not_finite),
    "another number that is none": edited(_not_finite),
    "a text that is none": edited(_no_text),
    "another text that is none": edited(_no_text),
    "an odd key": edited(_odd_key),
    "another root": edited(_root),
    "a key twice": _twice,
    "nested": _text(lambda text, rng: "[" * DEEP + "]" * DEEP),
    "a nested value": _text(_nested),
    "latin": _text(lambda text, rng: text.replace("e", "\u00e9").encode("latin-1", "replace")),
    "UTF-16": _text(lambda text, rng: text.encode("utf-16")),
    "a byte order mark": _text(lambda text, rng: text.encode("utf-8-sig")),
    "digits": _text(lambda text, rng: '{"a": ' + "9" * 5000 + "}"),
    "more than one value": _text(lambda text, rng: text + text),
}
