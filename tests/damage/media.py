"""Damages that know what clips, arrays, prompts and captions look like."""

import io
import json
import os
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

from tests.damage.weights import Payload
from tests.damage.wreck import DEEP, Damage, Random, names, pick


def marker(path: Path) -> Path:
    """The file that a payload makes."""
    return next(each for each in path.parents if (each / "outside").is_dir()) / "outside" / "ran"


# Arrays -------------------------------------------------------------------------------------------


def odd_array(path: Path, like: np.ndarray, kind: str) -> np.ndarray:
    """An array like another, but for something."""
    match kind:
        case "objects":
            return np.array([Payload(os.system, f"touch {marker(path)}"), {"a": 1}], object)
        case "texts":
            return np.full(like.shape, "text")
        case "bytes":
            return np.full(like.shape, 200, np.uint8)
        case "complex":
            return like.astype(np.complex64)
        case "not a number":
            return np.full(like.shape, np.nan, np.float32)
        case "infinite":
            return np.full(like.shape, np.inf, np.float32)
        case "huge":
            return np.full(like.shape, 3e38, np.float32)
        case "half precision":
            return like.astype(np.float16)
        case "fewer axes":
            return like[0]
        case "more axes":
            return like[None]
        case "smaller":
            return like[..., :1, :]
        case "one channel":
            return like[..., :1]
        case "empty":
            return like[:0]
        case "scalar":
            return np.float32(1)
        case "structured":
            return np.zeros(3, [("a", "f4"), ("b", "i8")])
        case "dates":
            return np.full(like.shape, np.datetime64("2020-01-01"))
        case "fortran":
            return np.asfortranarray(like)
    raise ValueError(kind)


ARRAYS = (
    "objects", "texts", "bytes", "complex", "not a number", "infinite", "huge", "half precision",
    "fewer axes", "more axes", "smaller", "one channel", "empty", "scalar", "structured", "dates",
    "fortran",
)  # fmt: skip


def _declared(text: str) -> bytes:
    """An array's file that says something else of itself than it holds."""
    header = text.encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(64)


HEADERS = {
    "of a huge shape": "{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000,)}",
    "of a negative shape": "{'descr': '<f4', 'fortran_order': False, 'shape': (-1, 3)}",
    "of a float shape": "{'descr': '<f4', 'fortran_order': False, 'shape': (1.5,)}",
    "of no dtype": "{'descr': 'x9', 'fortran_order': False, 'shape': (1,)}",
    "of nothing": "{",
    "of code": "__import__('os').system('touch ran')",
    "of nested lists": "(" * 90,
}


def _npy(kind: str) -> Damage:
    def damage(path: Path, rng: Random) -> None:
        np.save(path, odd_array(path, np.load(path), kind), allow_pickle=True)

    return damage


NPY: dict[str, Damage] = {kind: _npy(kind) for kind in ARRAYS} | {
    f"header {name}": (lambda path, rng, text=text: path.write_bytes(_declared(text)))
    for name, text in HEADERS.items()
}


def _npz(change: Callable[[dict[str, Any], Path, Random], Any]) -> Damage:
    def damage(path: Path, rng: Random) -> None:
        with np.load(path) as found:
            arrays = dict(found)
        change(arrays, path, rng)
        file = io.BytesIO()
        np.savez(file, allow_pickle=True, **arrays)
        path.write_bytes(file.getvalue())

    return damage


def _value(key: str, value: Any) -> Damage:
    return _npz(lambda arrays, path, rng: arrays.update({key: value}))


def _noise(kind: str) -> Damage:
    return _npz(
        lambda arrays, path, rng: arrays.update(noise=odd_array(path, arrays["noise"], kind))
    )


def _zipped(name: str, content: bytes, method: int = zipfile.ZIP_DEFLATED) -> Damage:
    """Puts a file into the archive, in place of the one of its name."""

    def damage(path: Path, rng: Random) -> None:
        with zipfile.ZipFile(path) as old:
            files = {each: old.read(each) for each in old.namelist()}
        with zipfile.ZipFile(path, "w", method) as new:
            for each, found in (files | {name: content}).items():
                new.writestr(each, found)

    return damage


NOISE: dict[str, Damage] = {
    **{f"noise of {kind}": _noise(kind) for kind in ARRAYS},
    **{f"header {n}": _zipped("noise.npy", _declared(text)) for n, text in HEADERS.items()},
    "another stage": _value("stage", "interpolation"),
    "unknown stage": _value("stage", "../../x"),
    "stages": _value("stage", ["keyframes", "keyframes"]),
    "stage of objects": _value("stage", np.array(["keyframes", None], object)),
    **{
        f"steps {n}": _value("steps", value)
        for n, value in enumerate(
            (0, -1, 10**9, 2**62, float("nan"), float("inf"), [1, 2], "two", 1j, True)
        )
    },
    **{
        f"strength {n}": _value("strength", value)
        for n, value in enumerate((2.0, -1.0, 0.0, float("nan"), float("inf"), [1, 2], "all", 1j))
    },
    "frames that keyframes lack": _value("frames", np.zeros((1, 3, 4, 6, 3), np.float32)),
    "frames of objects": _value("frames", np.array([None])),
    "noise level of a text": _value("noise_level", "high"),
    "noise level that is no number": _value("noise_level", float("nan")),
    "noise level that keyframes lack": _value("noise_level", -5),
    "no noise": _npz(lambda arrays, path, rng: arrays.pop("noise")),
    "no stage": _npz(lambda arrays, path, rng: arrays.pop("stage")),
    "no arrays": _npz(lambda arrays, path, rng: arrays.clear()),
    "bomb": _zipped("noise.npy", bytes(256 << 20)),
    "file outside": _zipped("../../../outside/made.npy", b"x"),
    "text in it": _zipped("noise.npy", b"text"),
}

# Clips --------------------------------------------------------------------------------------------


def write_clip(
    path: Path, frames: np.ndarray, fps: int = 8, format: str = "mp4", audio: bool = False
) -> None:
    """Writes a clip of these frames, which may be none, or sound alone."""
    with av.open(str(path), "w", format=format) as container:
        if audio:
            stream = container.add_stream("aac", rate=8000)
            sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
            sound.rate = 8000
            container.mux(stream.encode(sound))
            container.mux(stream.encode())
            return
        stream = container.add_stream("libx264" if format != "avi" else "mpeg4", rate=fps)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def _clip(frames: int = 24, height: int = 32, width: int = 48, **options: Any) -> Damage:
    def damage(path: Path, rng: Random) -> None:
        write_clip(path, rng.integers(0, 256, (frames, height, width, 3), np.uint8), **options)

    return damage


def _picture(kind: str) -> Damage:
    return lambda path, rng: Image.new("RGB", (48, 32)).save(path, kind)


def _atoms(change: Callable[[bytes, Random], bytes]) -> Damage:
    return lambda path, rng: path.write_bytes(change(path.read_bytes(), rng))


def _part(name: bytes, content: bytes, rng: Random) -> bytes:
    """Damages what follows an atom's name."""
    place = content.find(name)
    end = place + 4 + int(rng.integers(4, 40))
    return content[: place + 4] + rng.bytes(end - place - 4) + content[end:]


ATOMS = [
    name.encode()
    for name in [
        "ftyp",
        "moov",
        "mvhd",
        "tkhd",
        "mdhd",
        "stsd",
        "stts",
        "stsz",
        "stco",
        "avcC",
        "mdat",
        "stsc",
        "elst",
    ]
]
CLIPS: dict[str, Damage] = {
    "no frames": _clip(0),
    "one frame": _clip(1),
    "two frames": _clip(2),
    "sound alone": _clip(audio=True),
    "two pixels": _clip(height=2, width=2),
    "narrow": _clip(height=2, width=640),
    "matroska": _clip(format="matroska"),
    "avi": _clip(format="avi"),
    "stream": _clip(format="mpegts"),
    "slow": _clip(3, fps=1),
    "fast": _clip(fps=1000),
    "still": _picture("PNG"),
    "moving picture": _picture("GIF"),
    "text": _atoms(lambda content, rng: b"a clip\n"),
    "page": _atoms(lambda content, rng: b"<!DOCTYPE html><html></html>"),
    "playlist": _atoms(lambda content, rng: b"#EXTM3U\n#EXTINF:1,\n/etc/hostname\n"),
    "subtitles": _atoms(lambda content, rng: b"1\n00:00:01,000 --> 00:00:02,000\ntext\n"),
    **{
        f"atom {name.decode()}": _atoms(lambda content, rng, name=name: _part(name, content, rng))
        for name in ATOMS
    },
}

# Prompts and captions -----------------------------------------------------------------------------


def _written(text: str | bytes) -> Damage:
    content = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
    return lambda path, rng: path.write_bytes(content)


TEXTS: dict[str, Damage] = {
    "bytes": _written(bytes(range(256)) * 4),
    "UTF-16": _written("a red circle\n".encode("utf-16")),
    "latin": _written("a ré circle\n".encode("latin-1")),
    "a byte order mark": _written(b"\xef\xbb\xbfa red circle\n"),
    "only a byte order mark": _written(b"\xef\xbb\xbf"),
    "blank": _written("\n \n\t\n"),
    "NUL": _written("a\0b\n"),
    "a surrogate": _written("a \ud800 circle\n"),
    "long": _written("red " * 100_000),
    "special": _written("</s> <pad> <unk> <extra_id_0> <|endoftext|>\n"),
    "emoji": _written("\U0001f600 é \u202e \u200b\n"),
    "controls": _written("\x1b[31m red \x07\x0c\x85 \u2028 circle\n"),
    "carriage returns": _written("a red circle\r\ra blue square\r\n"),
}


def _line(value: Any) -> Damage:
    return _written((value if isinstance(value, str) else json.dumps(value)) + "\n")


LINES: dict[str, Damage] = {
    **{
        f"prompt {n}": _line({"prompt": value})
        for n, value in enumerate(
            (None, 5, True, ["a"], {"a": 1}, "", " ", "\ud800", "a\ud800b", "a\0b", "\udfff\ud800")
        )
    },
    "no prompt": _line({"text": "a"}),
    "list": _line(["a"]),
    "text": _line('"a red circle"'),
    "not a number": _line("NaN"),
    "half": _line('{"prompt": "a red'),
    "twice": _line('{"prompt": "a", "prompt": 5}'),
    "nested": _line("[" * DEEP + "]" * DEEP),
    "nested prompt": _line('{"prompt": ' + "[" * DEEP + "]" * DEEP + "}"),
    "digits": _line('{"prompt": ' + "9" * 5000 + "}"),
    "seed": _line({"prompt": "a red circle", "seed": "x"}),
    "good and bad": _written('{"prompt": "a red circle"}\n{"prompt": "\\ud800"}\n'),
}


def _captions(text: str | bytes, name: str = "captions.csv") -> Damage:
    """Another file of captions."""

    def damage(path: Path, rng: Random) -> None:
        path.unlink()
        _written(text)(path.with_name(name), rng)

    return damage


def _file(number: int, name: str) -> Damage:
    """A clip where it should not be, beside a good one."""

    def damage(path: Path, rng: Random) -> None:
        path.unlink()
        rows = [{"file": f"{i}.mp4", "caption": "a"} for i in range(3)]
        rows[1]["file"] = names(path)[number]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        if name.endswith(".csv"):
            text = "file,caption\n" + "".join(f"{row['file']},a\n" for row in rows)
        _written(text)(path.with_name(name), rng)

    return damage


GOOD_ROWS = "file,caption\n0.mp4,a\n1.mp4,b\n2.mp4,c\n"

CAPTIONS: dict[str, Damage] = {
    "no header": _captions(GOOD_ROWS.partition("\n")[2]),
    "header alone": _captions("file,caption\n"),
    "another header": _captions(GOOD_ROWS.replace("caption", "words")),
    "header twice": _captions(GOOD_ROWS.replace("file,caption", "file,caption,file")),
    "open quote": _captions(GOOD_ROWS + '3.mp4,"never closed\n' + "a\n" * 1000),
    "long field": _captions(GOOD_ROWS + "3.mp4," + "a" * 200_000 + "\n"),
    "NUL": _captions(GOOD_ROWS + "3.mp4,a\0b\n"),
    "more fields": _captions(GOOD_ROWS + "3.mp4,a,b,c\n"),
    "fewer fields": _captions(GOOD_ROWS + "3.mp4\n"),
    "latin": _captions(GOOD_ROWS.encode() + b"3.mp4,\xe9\n"),
    "surrogate": _captions(GOOD_ROWS + "3.mp4,\ud800\n"),
    "escaped surrogate": _captions('{"file": "0.mp4", "caption": "\\ud800"}\n' * 3, "c.jsonl"),
    "UTF-16": _captions(GOOD_ROWS.encode("utf-16")),
    "two files": lambda path, rng: path.with_name("more.csv").write_text(GOOD_ROWS),
    "the same clip": _captions("file,caption\n" + "0.mp4,a\n" * 4),
    "a folder as a clip": _captions(GOOD_ROWS + ".,a\n..,b\n"),
    "nested": _captions("[" * DEEP + "]" * DEEP + "\n", "captions.jsonl"),
    "nested caption": _captions(
        '{"file": "0.mp4", "caption": ' + "[" * DEEP + "]" * DEEP + "}\n", "captions.jsonl"
    ),
    "digits": _captions('{"file": ' + "9" * 5000 + ', "caption": "a"}\n', "captions.jsonl"),
    "lists": _captions('["0.mp4", "a"]\n', "captions.jsonl"),
    "odd captions": _captions(
        "".join(
            json.dumps({"file": f"{i % 4}.mp4", "caption": value}) + "\n"
            for i, value in enumerate((None, 5, ["a"], {"a": 1}, "", "a\0b"))
        ),
        "captions.jsonl",
    ),
    **{
        f"name {number} in {name}": _file(number, name)
        for number in range(22)
        for name in ("captions.jsonl", "captions.csv")
        if number % 2 == (name == "captions.csv")
    },
}


def some(damage: Damage, pattern: str) -> Damage:
    """Damages one of the files that a pattern finds."""

    def one(folder: Path, rng: Random) -> None:
        damage(pick(rng, sorted(path for path in folder.glob(pattern) if path.is_file())), rng)

    return one
