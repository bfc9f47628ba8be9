r"""Writes shards of animated emoji, a small set of captioned clips to try training with.

    python examples/emoji_shards.py --dir clips/emoji
    python train.py --config configs/tiny.py:keyframes --workdir runs/emoji \
        --config.train.keyframes.init=keyframes --config.keyframes.fps=4 \
        --config.train.keyframes.dataset=clips/emoji

The clips are Microsoft's Fluent Emoji as LobeHub publishes them (MIT) in four npm packages of some
160 MB: animated WebPs of 256x256, named by the code points of the emoji, whose Unicode names are
the captions.
"""

import argparse
import base64
import hashlib
import io
import json
import re
import struct
import sys
import tarfile
import tempfile
import unicodedata
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

REGISTRY = "https://registry.npmjs.org"
PACKAGE = "@lobehub/fluent-emoji-anim-{}"
EACH = 200  # clips of a shard
SKIN = {
    0x1F3FB: "light", 0x1F3FC: "medium-light", 0x1F3FD: "medium", 0x1F3FE: "medium-dark",
    0x1F3FF: "dark",
}  # fmt: skip
JOINERS = (0x200D, 0xFE0F, 0x20E3)
FIRST_LETTER, LAST_LETTER = 0x1F1E6, 0x1F1FF  # of flags


def main() -> None:
    """Downloads the packages, one after the other, and writes their shards."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--dir", type=Path, required=True, help="folder for the shards")
    parser.add_argument(
        "--packages", type=int, nargs="+", choices=(1, 2, 3, 4), default=[1, 2, 3, 4]
    )
    args = parser.parse_args()
    for number in args.packages:
        with tempfile.TemporaryFile() as file:
            download(PACKAGE.format(number), file)
            print(f"package {number}: {write_shards(file, args.dir, number)} clips", flush=True)


def download(package: str, file: BinaryIO) -> None:
    """Writes the newest version of an npm package to a file, and checks its digest."""
    with urllib.request.urlopen(f"{REGISTRY}/{package}/latest") as answer:
        about = json.load(answer)["dist"]
    kind, _, expected = about["integrity"].partition("-")
    digest = hashlib.new(kind)
    with urllib.request.urlopen(about["tarball"]) as answer:
        while content := answer.read(1 << 20):
            digest.update(content)
            file.write(content)
    if base64.b64encode(digest.digest()).decode() != expected:
        sys.exit(f"{about['tarball']} was not downloaded whole; start again")
    file.seek(0)


def write_shards(package: BinaryIO, folder: Path, number: int) -> int:
    """Writes the animations of a package as shards; returns how many there are."""
    folder.mkdir(parents=True, exist_ok=True)
    clips = list(animations(package))
    for first in range(0, len(clips), EACH):
        path = folder / f"{number}{first // EACH:04}.tar"
        partial = path.with_suffix(".partial")
        with tarfile.open(partial, "w") as shard:
            for key, video, about in clips[first : first + EACH]:
                add(shard, f"{key}.json", json.dumps(about).encode())
                add(shard, f"{key}.webp", video)
                add(shard, f"{key}.txt", about["captions"][0].encode())
        partial.rename(path)
    return len(clips)


def add(shard: tarfile.TarFile, name: str, content: bytes) -> None:
    """Adds a member."""
    info = tarfile.TarInfo(name)
    info.size = len(content)
    shard.addfile(info, io.BytesIO(content))


def animations(package: BinaryIO) -> Iterator[tuple[str, bytes, dict]]:
    """Key, content and metadata of each animated WebP of a package."""
    with tarfile.open(fileobj=package, mode="r:gz") as members:
        for member in members:
            found = re.search(r"([0-9a-f-]+)\.webp$", member.name)
            file = members.extractfile(member)
            if not found or file is None:
                continue
            content = file.read()
            durations = frame_durations(content)
            if len(durations) > 1:
                name = caption(found[1])
                captions = [f"an animated emoji of {name}", f"{name} on a white background"]
                seconds = sum(durations) / 1000
                about = {"captions": captions, "duration": seconds, "frames": len(durations)}
                yield found[1], content, about


def frame_durations(content: bytes) -> list[int]:
    """How long the frames of a WebP are shown, in milliseconds; none of a still picture."""
    durations, place = [], 12
    while place + 8 <= len(content):
        kind, size = struct.unpack_from("<4sI", content, place)
        if kind == b"ANMF":
            durations.append(int.from_bytes(content[place + 20 : place + 23], "little"))
        place += 8 + size + size % 2
    return durations


def caption(key: str) -> str:
    """What an emoji shows, from code points such as `1f44b-1f3fd`."""
    codes = [int(code, 16) for code in key.split("-")]
    flag = [chr(ord("A") + code - FIRST_LETTER) for code in codes
            if FIRST_LETTER <= code <= LAST_LETTER]  # fmt: skip
    if flag:
        return f"the flag of {''.join(flag)}"
    names = [
        unicodedata.name(chr(code), "").lower()
        for code in codes
        if code not in JOINERS and code not in SKIN
    ]
    text = " and ".join(name for name in names if name)
    tones = [SKIN[code] for code in codes if code in SKIN]
    return text + (f" with {tones[0]} skin" if tones else "")


if __name__ == "__main__":
    main()
