"""What encoding prompts with T5-XXL takes: seconds, and memory of the process.

    python -m tests.text.t5_xxl [--dir DIR]

Makes T5 in its true size with random weights as it is released, converts it, and encodes two
prompts as sampling does on this machine, reading layer by layer. DIR needs 26 GB for some
minutes; what is written there is removed at the end. It prints

- read: seconds in which the files can be read from one end to the other;
- compute: seconds of the same encoding with the weights of one layer, which are in memory, for all
  24. Its programs are compiled before;
- encode: seconds of the encoding, in a process that has done nothing yet: it checks the files,
  compiles, and reads and computes each layer;
- the encoding's share of both, and its peak of memory.

Files are dropped from the page cache before they are read. Ends with status 1 if the encoding takes
more than `MAX_RATIO` of reading and computing, or more than `MAX_MEMORY`.
"""

import argparse
import concurrent.futures
import dataclasses
import multiprocessing
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from show1_jax.checkpoints.layout import params_folder
from show1_jax.checkpoints.released import StageFolder
from show1_jax.checkpoints.store import StoredParams
from show1_jax.configs import show1
from show1_jax.memory import return_freed_memory
from show1_jax.parallel.mesh import sampling_dtype
from show1_jax.text.encoding import TextEncoder, load_encoder

MAX_MEMORY = 3 * 2**30
MAX_RATIO = 1.3
PROMPTS = ["a panda besides the waterfall is holding a sign that says show 1", ""]


class Measured(NamedTuple):
    """What an encoding took.

    Attributes:
      size: bytes of the files.
      read: seconds of reading them.
      compute: seconds of computing.
      encode: seconds of both, layer by layer.
      memory: bytes that the process had at its peak.
    """

    size: int
    read: float
    compute: float
    encode: float
    memory: int

    @property
    def ratio(self) -> float:
        """The seconds of the encoding as a share of those of reading and computing."""
        return self.encode / (self.read + self.compute)

    def __str__(self) -> str:
        return (
            f"read {self.read:.1f} s ({self.size / 1e9:.1f} GB), compute {self.compute:.1f} s, "
            f"encode {self.encode:.1f} s: {self.ratio:.2f} of both; peak of the process "
            f"{self.memory / 2**30:.2f} GiB"
        )


class OneLayer(StoredParams):
    """Parameters of which one layer is in memory, and stands for all."""

    def __init__(self, stored: StoredParams):
        names = ("token_embedding", "relative_bias", "block_0", "final_norm")
        self._kept = stored.read(names)

    def check(self) -> None:
        pass

    def read(self, names: Collection[str] | None = None) -> Any:
        assert names is not None
        return {n: self._kept["block_0" if n.startswith("block_") else n] for n in names}


def measure(folder: Path) -> Measured:
    """Measures an encoding of `PROMPTS`.

    Args:
      folder: of a converted stage that has T5.
    """
    files = [path for path in params_folder(folder / "text_encoder").rglob("*") if path.is_file()]
    read = _read(files)
    compute = _alone(_compute, folder)
    _forget(files)
    encode, memory = _alone(_encode, folder)
    return Measured(sum(file.stat().st_size for file in files), read, compute, encode, memory)


def _alone(function: Callable[[Path], Any], folder: Path) -> Any:
    """What a function returns in a process of its own, whose memory is not this one's."""
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, context) as pool:
        return pool.submit(function, folder).result()


def _forget(files: Collection[Path]) -> None:
    """Drops files from the page cache."""
    for file in files:
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _read(files: Collection[Path]) -> float:
    _forget(files)
    buffer = bytearray(2**24)
    begin = time.perf_counter()
    for file in files:
        with file.open("rb", buffering=0) as opened:
            while opened.readinto(buffer):
                pass
    return time.perf_counter() - begin


def _encoder(folder: Path) -> TextEncoder:
    return_freed_memory()
    config = show1.get_config()
    dtype = sampling_dtype(config.dtype)
    return load_encoder(StageFolder(folder), dtype, config.text.t5_tokens)


def _seconds(encoder: TextEncoder) -> float:
    begin = time.perf_counter()
    rows = encoder(PROMPTS, show1.get_config().batch_size)
    assert np.isfinite(rows).all()
    return time.perf_counter() - begin


def _compute(folder: Path) -> float:
    encoder = _encoder(folder)
    encoder = dataclasses.replace(encoder, params=OneLayer(encoder.params))
    _seconds(encoder)
    return min(_seconds(encoder) for _ in range(2))


def _encode(folder: Path) -> tuple[float, int]:
    begin = time.perf_counter()
    _seconds(_encoder(folder))
    seconds = time.perf_counter() - begin
    (peak,) = re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return seconds, int(peak) * 1024


def main() -> None:
    from show1_jax.convert import convert
    from tests.checkpoints.real_sizes import T5, build_t5

    description, _, text = (__doc__ or "").partition("\n\n")
    kind = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=description, epilog=text, formatter_class=kind)
    parser.add_argument("--dir", type=Path, help="where to write 26 GB (default: a new folder)")
    args = parser.parse_args()
    # So that the files are removed then, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
    if args.dir is not None:
        Path(args.dir).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="t5-xxl-", dir=args.dir) as name:
        folder = Path(name)
        build_t5(folder / "source")
        convert(folder / "source", folder / "checkpoint")
        shutil.rmtree(folder / "source")
        load = os.getloadavg()[0]
        measured = measure((folder / "checkpoint" / T5).parent)
    print(f"{measured}\n{os.cpu_count()} CPUs, load before it {load:.1f}")
    missed = measured.ratio > MAX_RATIO or measured.memory > MAX_MEMORY
    sys.exit(missed and f"more than {MAX_RATIO} of both, or than {MAX_MEMORY / 2**30:.0f} GiB")


if __name__ == "__main__":
    main()
