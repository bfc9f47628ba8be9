"""Damages that know what a file of weights looks like: safetensors, pickles, their indices."""

import collections
import io
import json
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from tests.damage.wreck import DEEP, VALUES, Damage, Random, names, pick

Header = dict[str, Any]
METADATA = "__metadata__"


def read_safetensors(path: Path) -> tuple[Header, bytes]:
    """Header and tensors."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def write_safetensors(path: Path, header: Header | bytes, tensors: bytes) -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + tensors)


DTYPES = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype(np.int64),
}


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    header, tensors = read_safetensors(path)
    return {
        key: np.frombuffer(tensors[slice(*entry["data_offsets"])], DTYPES[entry["dtype"]]).reshape(
            entry["shape"]
        )
        for key, entry in header.items()
        if key != METADATA
    }


def write_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Without metadata."""
    names = {dtype: name for name, dtype in DTYPES.items()}
    header, tensors = {}, b""
    for key, array in arrays.items():
        begin, tensors = len(tensors), tensors + array.tobytes()
        offsets = [begin, len(tensors)]
        shape = list(array.shape)
        header[key] = {"dtype": names[array.dtype], "shape": shape, "data_offsets": offsets}
    write_safetensors(path, header, tensors)


def _header(change: Callable[[Header, Random], Header | bytes | None]) -> Damage:
    def damage(path: Path, rng: Random) -> None:
        header, tensors = read_safetensors(path)
        changed = change(header, rng)
        write_safetensors(path, header if changed is None else changed, tensors)

    return damage


def _entry(**fields: Any) -> Damage:
    """Puts a value into the entry of a tensor; a function is given the old one."""

    def change(header: Header, rng: Random) -> None:
        entry = header[pick(rng, [key for key in header if key != METADATA])]
        for field, value in fields.items():
            entry[field] = value(entry[field]) if callable(value) else value

    return _header(change)


def _length(value: int) -> Damage:
    return lambda path, rng: path.write_bytes(struct.pack("<Q", value) + path.read_bytes()[8:])


def _overlapping(header: Header, rng: Random) -> None:
    """Two tensors of one size at the same place."""
    entries = [entry for key, entry in header.items() if key != METADATA]
    for first in entries:
        for other in entries:
            if first is not other and first["shape"] == other["shape"]:
                first["data_offsets"] = other["data_offsets"]
                return


def _renamed(name: str) -> Damage:
    def change(header: Header, rng: Random) -> None:
        header[name] = header.pop(pick(rng, [key for key in header if key != METADATA]))

    return _header(change)


def _odd_entry(header: Header, rng: Random) -> None:
    header[pick(rng, [key for key in header if key != METADATA])] = pick(rng, VALUES)


def _values(value: float) -> Damage:
    """Makes all numbers one."""

    def damage(path: Path, rng: Random) -> None:
        header, tensors = read_safetensors(path)
        kinds = {"F16": np.float16, "F32": np.float32}
        for key, entry in header.items():
            if key != METADATA and entry["dtype"] in kinds:
                begin, end = entry["data_offsets"]
                dtype = np.dtype(kinds[entry["dtype"]])
                filled = np.full((end - begin) // dtype.itemsize, value, dtype).tobytes()
                tensors = tensors[:begin] + filled + tensors[end:]
        write_safetensors(path, header, tensors)

    return damage


def metadata(value: Any) -> Damage:
    return _header(lambda header, rng: header.update({METADATA: value}))


def metadata_item(key: str, value: Any) -> Damage:
    def change(header: Header, rng: Random) -> None:
        header.setdefault(METADATA, {})[key] = value

    return _header(change)


def _one_twice(header: Header, rng: Random) -> bytes:
    key = pick(rng, [key for key in header if key != METADATA])
    return json.dumps(header)[:-1].encode() + f', "{key}": {json.dumps(header[key])}}}'.encode()


SAFETENSORS: dict[str, Damage] = {
    "header of 2**63 bytes": _length(2**63),
    "header of 2**64 - 1 bytes": _length(2**64 - 1),
    "header of no bytes": _length(0),
    "header of a gigabyte": _length(2**30),
    "negative shape": _entry(shape=lambda shape: [-size for size in shape]),
    "two negative sizes": _entry(shape=lambda shape: [-1, *shape, -1]),
    "float shape": _entry(shape=lambda shape: [float(size) for size in shape]),
    "bool shape": _entry(shape=lambda shape: [*shape, True]),
    "text as shape": _entry(shape="ab"),
    "null as shape": _entry(shape=None),
    "huge shape": _entry(shape=[2**62, 4]),
    "huge shape of nothing": _entry(shape=[2**62, 0], data_offsets=[0, 0]),
    "nested shape": _entry(shape=lambda shape: [shape]),
    "shape as one number": _entry(shape=lambda shape: [int(np.prod(shape))]),
    "negative offsets": _entry(data_offsets=lambda of: [of[0] - of[1], 0]),
    "float offsets": _entry(data_offsets=lambda of: [float(of[0]), float(of[1])]),
    "bool offsets": _entry(data_offsets=[False, True]),
    "three offsets": _entry(data_offsets=lambda of: [*of, 0]),
    "text as offsets": _entry(data_offsets="ab"),
    "offsets beyond": _entry(data_offsets=lambda of: [of[0] + 2**40, of[1] + 2**40]),
    "reversed offsets": _entry(data_offsets=lambda of: of[::-1]),
    "overlapping offsets": _header(_overlapping),
    "unknown dtype": _entry(dtype="F8"),
    "list as dtype": _entry(dtype=["F32"]),
    "null as dtype": _entry(dtype=None),
    "other dtype": _entry(dtype="I64"),
    "odd entry": _header(_odd_entry),
    "another odd entry": _header(_odd_entry),
    "key with a NUL": _renamed("a\0b"),
    "key of a surrogate": _renamed("\ud800"),
    "key of a path": _renamed("../../x"),
    "tensor twice": _header(_one_twice),
    "list as metadata": metadata(["a"]),
    "number in metadata": metadata_item("format", 5),
    "list as header": _header(lambda header, rng: b"[1, 2]"),
    "nested header": _header(lambda header, rng: b"[" * DEEP + b"]" * DEEP),
    "nested entry": _header(lambda h, rng: b'{"a": ' + b"[" * DEEP + b"]" * DEEP + b"}"),
    "header of bytes": _header(lambda header, rng: bytes(range(256))),
    "not a number": _values(float("nan")),
    "all infinite": _values(float("inf")),
}


class Payload:
    """What runs a command when it is unpickled."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.given = (function, arguments)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.given


def _payload(mark: Path) -> Payload:
    import os

    return Payload(os.system, f"touch {mark}")


def _evaluated(mark: Path) -> Payload:
    return Payload(eval, f"open({str(mark)!r}, 'w')")


def _saved(make: Callable[[Any, dict[str, Any], Path], Any], **options: Any) -> Damage:
    """Saves by PyTorch what is made of it, the state and the file that a payload makes."""

    def damage(path: Path, rng: Random) -> None:
        import torch

        state = torch.load(path, weights_only=True)
        mark = next(each for each in path.parents if (each / "outside").is_dir()) / "outside/ran"
        torch.save(make(torch, state, mark), path, **options)

    return damage


def _raw(make: Callable[[Path], bytes]) -> Damage:
    def damage(path: Path, rng: Random) -> None:
        mark = next(each for each in path.parents if (each / "outside").is_dir()) / "outside/ran"
        path.write_bytes(make(mark))

    return damage


def _first(change: Callable[[Any, Any], Any]) -> Damage:
    """Changes the first tensor."""

    def make(torch: Any, state: dict[str, Any], mark: Path) -> Any:
        key = next(iter(state))
        return state | {key: change(torch, state[key])}

    return _saved(make)


Files = dict[str, bytes]


def _archive(change: Callable[[Files], Any], method: int = zipfile.ZIP_STORED) -> Damage:
    """Writes the zip anew with other files in it."""

    def damage(path: Path, rng: Random) -> None:
        with zipfile.ZipFile(path) as old:
            files = {name: old.read(name) for name in old.namelist()}
        change(files)
        with zipfile.ZipFile(path, "w", method) as new:
            for name, content in files.items():
                new.writestr(name, content)

    return damage


def _bomb(suffix: str) -> Callable[[dict[str, bytes]], None]:
    def change(files: dict[str, bytes]) -> None:
        name = next(name for name in files if name.endswith(suffix))
        files[name] = bytes(256 << 20)

    return change


def _outward(files: dict[str, bytes]) -> None:
    for name in list(files):
        files[f"../../{name}"] = files.pop(name)


def _without(suffix: str) -> Callable[[dict[str, bytes]], None]:
    return lambda files: files.pop(next(name for name in files if name.endswith(suffix)))


def _zip_of_text() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as made:
        made.writestr("a.txt", "text")
    return file.getvalue()


def _sparse(torch: Any, tensor: Any) -> Any:
    return tensor.float().to_sparse()


PICKLES: dict[str, Damage] = {
    "payload": _saved(lambda torch, state, mark: state | {"x": _payload(mark)}),
    "payload alone": _saved(lambda torch, state, mark: _payload(mark)),
    "payload in the old format": _saved(
        lambda torch, state, mark: state | {"x": _payload(mark)},
        _use_new_zipfile_serialization=False,
    ),
    "evaluated payload": _saved(lambda torch, state, mark: {"x": _evaluated(mark)}),
    "plain pickle of a payload": _raw(lambda mark: pickle.dumps(_payload(mark), 2)),
    "plain pickle of an evaluated payload": _raw(lambda mark: pickle.dumps(_evaluated(mark), 4)),
    "plain pickle": _raw(lambda mark: pickle.dumps({"a": np.zeros(3)}, 2)),
    "nested pickle": _raw(lambda mark: b"\x80\x02" + b"(" * DEEP + b"t" * DEEP + b"."),
    "pickle of endless lists": _raw(lambda mark: b"\x80\x02" + b"](" * DEEP + b"e" * DEEP + b"."),
    "pickle that needs memory": _raw(lambda mark: b"\x80\x04\x8d" + struct.pack("<Q", 2**60)),
    "pickle without an end": _raw(lambda mark: b"\x80\x02}q\x00"),
    "zip of text": _raw(lambda mark: _zip_of_text()),
    "text": _raw(lambda mark: b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n"),
    "page": _raw(lambda mark: b"<!DOCTYPE html><html><title>404</title></html>"),
    "list": _saved(lambda torch, state, mark: list(state.values())),
    "nested state": _saved(lambda torch, state, mark: {"state_dict": state}),
    "numbers as keys": _saved(lambda torch, state, mark: dict(enumerate(state.values()))),
    "tuples as keys": _saved(lambda torch, state, mark: {(k, 1): v for k, v in state.items()}),
    "texts as values": _saved(lambda torch, state, mark: state | {next(iter(state)): "text"}),
    "ordered": _saved(lambda torch, state, mark: collections.OrderedDict(state)),
    "set": _saved(lambda torch, state, mark: {1, 2}),
    "old format": _saved(lambda torch, s, mark: s, _use_new_zipfile_serialization=False),
    "complex": _first(lambda torch, tensor: tensor.to(torch.complex64)),
    "sparse": _first(_sparse),
    "transposed": _first(lambda torch, tensor: torch.zeros(3, 2).t()),
    "expanded": _first(lambda torch, tensor: torch.zeros(1).expand(tensor.shape)),
    "parameter": _first(lambda torch, tensor: torch.nn.Parameter(tensor.float())),
    "scalar": _first(lambda torch, tensor: torch.tensor(1.0)),
    "no numbers": _first(lambda torch, tensor: torch.zeros(0)),
    "on no device": _first(lambda torch, tensor: tensor.to("meta")),
    "not a number": _first(lambda torch, tensor: tensor * float("nan")),
    "double": _first(lambda torch, tensor: tensor.double()),
    "bomb of a tensor": _archive(_bomb("data/0"), zipfile.ZIP_DEFLATED),
    "bomb of a pickle": _archive(_bomb("data.pkl"), zipfile.ZIP_DEFLATED),
    "compressed": _archive(lambda files: None, zipfile.ZIP_DEFLATED),
    "names that lead outside": _archive(_outward),
    "no pickle": _archive(_without("data.pkl")),
    "no tensor": _archive(_without("data/0")),
    "no version": _archive(_without("version")),
}


def _mapped(change: Callable[[dict[str, Any], list[Any], Random], None]) -> Damage:
    """Changes the map from keys to files of an index."""

    def damage(path: Path, rng: Random) -> None:
        value = json.loads(path.read_text())
        change(value["weight_map" if "weight_map" in value else "files"], names(path), rng)
        path.write_text(json.dumps(value))

    return damage


def _named(number: int, every: bool) -> Damage:
    def change(mapped: dict[str, Any], odd: list[Any], rng: Random) -> None:
        keys = list(mapped)
        for key in keys if every else [pick(rng, keys)]:
            mapped[key] = odd[number]

    return _mapped(change)


def _moved(mapped: dict[str, Any], odd: list[Any], rng: Random) -> None:
    mapped[pick(rng, mapped)] = pick(rng, sorted(set(mapped.values())))


def named(count: int) -> dict[str, Damage]:
    """In place of a file's name, one that leads elsewhere, for a key or for all of them."""
    return {
        f"name {number}{' everywhere' * every}": _named(number, every)
        for number in range(count)
        for every in (False, True)
    } | {"another file": _mapped(_moved)}
