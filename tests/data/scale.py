"""A large set of clips, and two processes that train on it: time, memory, open files, order.

    python -m tests.data.scale --dir DIR

makes 200,000 tiny clips with a million captions in 200 shards (kept in DIR), indexes them by two
processes from nothing, starts both again, and reads three epochs. Ends with an error if an item
is missing or read twice, or a restored iterator differs.
"""

import argparse
import contextlib
import io
import json
import os
import resource
import shutil
import socket
import subprocess
import sys
import tarfile
import threading
import time
from pathlib import Path

import numpy as np

BEGUN = time.monotonic()
PROCESSES, EPOCHS = 2, 3
CAPTIONS = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dir", type=Path, required=True)
    parser.add_argument("--clips", type=int, default=200_000)
    parser.add_argument("--shards", type=int, default=200)
    parser.add_argument("--batch", type=int, default=1000)
    parser.add_argument("--process", type=int)
    parser.add_argument("--port", type=int)
    parser.add_argument("--epochs", type=int, default=0)
    args = parser.parse_args()
    if args.process is not None:
        train(args)
        return
    make(args.dir / "shards", args.clips, args.shards)
    shutil.rmtree(args.dir / "data", ignore_errors=True)
    print("building the index:")
    run(args, epochs=0)
    print("with the index:")
    run(args, epochs=EPOCHS)
    check(args)


def make(folder: Path, clips: int, shards: int) -> None:
    """Writes the shards, unless they are there. All have the same few clips."""
    from tests.data.videos import write_clip

    folder.mkdir(parents=True, exist_ok=True)
    write_clip(folder / "clip.mp4", 3, 10, height=16, width=64)
    video = (folder / "clip.mp4").read_bytes()
    (folder / "clip.mp4").unlink()
    each = clips // shards
    for shard in range(shards):
        path = folder / f"{shard:05}.tar"
        if path.exists():
            continue
        partial = path.with_suffix(".partial")
        with tarfile.open(partial, "w") as file:
            for number in range(shard * each, shard * each + each):
                texts = [f"{number} is what this clip shows, word {k}" for k in range(CAPTIONS)]
                about = {"caption": texts[0], "captions": texts, "duration": 1 + number % 60}
                about["video_metadata"] = {"width": 320 + number % 1000, "height": 240}
                members = {"json": json.dumps(about).encode(), "mp4": video,
                           "txt": texts[0].encode()}  # fmt: skip
                for extension, content in members.items():
                    info = tarfile.TarInfo(f"{number:09}.{extension}")
                    info.size = len(content)
                    file.addfile(info, io.BytesIO(content))
        partial.rename(path)
    size = sum(path.stat().st_size for path in folder.iterdir())
    print(
        f"{clips:,} clips, {clips * CAPTIONS:,} captions, {shards} shards, {size / 2**30:.1f} GiB"
    )


def run(args: argparse.Namespace, epochs: int) -> None:
    """Runs all processes; each prints its figures."""
    with contextlib.closing(socket.socket()) as found:
        found.bind(("localhost", 0))
        port = found.getsockname()[1]
    command = [sys.executable, "-m", "tests.data.scale", f"--dir={args.dir}", f"--port={port}"]
    command += [f"--epochs={epochs}", f"--batch={args.batch}"]
    running = [subprocess.Popen([*command, f"--process={i}"]) for i in range(PROCESSES)]
    if any([process.wait() for process in running]):
        sys.exit("a process failed")


def train(args: argparse.Namespace) -> None:
    """One of the processes."""
    import jax

    from show1_jax.configs import tiny
    from show1_jax.data import clips, files
    from show1_jax.data.clip import ClipSpec
    from show1_jax.parallel import hosts
    from show1_jax.parallel.mesh import make_mesh
    from show1_jax.training import data

    hosts.join(f"localhost:{args.port}", PROCESSES, args.process, 60, preemptible=False)
    settings = tiny.get_config("vae").train.vae
    settings.update(dataset=(str(args.dir / "shards"),), data_dir=str(args.dir / "data"))
    settings.update(batch_size=args.batch, threads=4)
    settings.filters = {"duration": (1, None)}
    spec = ClipSpec(1, 8, 8)
    with jax.set_mesh(make_mesh({"data": -1})), Watch() as watch:
        begin = time.monotonic()
        dataset = data.open_dataset(settings)
        opened = time.monotonic() - begin
        batches = data.training_batches(settings, dataset, spec, None)
        next(batches)
        first = time.monotonic() - BEGUN
        batches.close()
        if args.epochs:
            # What decoding takes is known, and would take most of the time here.
            blank = np.zeros((1, 8, 8, 3), np.uint8)
            clips.read = lambda record, spec, rng: (
                bool(files.read_range(record["path"], record["offset"], record["size"])) * blank
            )
            batches = data.training_batches(settings, dataset, spec, None)
            read_epochs(args, batches, settings, dataset)
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    print(
        f"  process {args.process}: opened in {opened:.1f} s, first batch of {args.batch} clips "
        f"{first:.1f} s after the start; at most {watch.memory:.2f} GiB above its baseline of "
        f"{watch.baseline:.2f} GiB, {watch.files} open files; largest worker {children:.2f} GiB",
        flush=True,
    )
    hosts.wait("the end")


def read_epochs(args, batches, settings, dataset) -> None:
    """Saves which clips each batch has; compares them with those of a restored iterator."""
    from show1_jax.data.clip import ClipSpec
    from show1_jax.training import data

    count = args.epochs * (len(dataset.split("train")[0].records) // args.batch)
    middle, more = count // 2, 20
    found, begin = [], time.monotonic()
    for number in range(count):
        if number == middle:
            state = json.loads(json.dumps(batches.get_state()))
        found.append([int(caption.split()[0]) for caption in next(batches)["caption"]])
    seconds = time.monotonic() - begin
    batches.close()
    restored = data.training_batches(settings, dataset, ClipSpec(1, 8, 8), None)
    restored.set_state(state)
    again = [[int(c.split()[0]) for c in next(restored)["caption"]] for _ in range(more)]
    restored.close()
    if again != found[middle : middle + more]:
        sys.exit("the restored iterator differs")
    np.save(args.dir / f"items{args.process}.npy", np.array(found, np.int32))
    clips = np.size(found)
    print(f"  process {args.process}: {clips / seconds:,.0f} clips a second without decoding")


def check(args: argparse.Namespace) -> None:
    """Compares what the processes read."""
    parts = [np.load(args.dir / f"items{process}.npy") for process in range(PROCESSES)]
    whole = np.concatenate(parts, axis=1)
    each = len(whole) // EPOCHS
    epochs = [whole[i * each : (i + 1) * each].ravel() for i in range(EPOCHS)]
    for number, epoch in enumerate(epochs):
        if len(np.unique(epoch)) != len(epoch):
            sys.exit(f"epoch {number + 1} has an item twice")
        if not np.array_equal(np.sort(epoch), np.sort(epochs[0])):
            sys.exit(f"epoch {number + 1} has other items")
    if any(np.array_equal(epochs[0], epoch) for epoch in epochs[1:]):
        sys.exit("two epochs have the same order")
    same = np.mean(epochs[0] == epochs[2])
    print(
        f"{EPOCHS} epochs of {len(epochs[0]):,} clips: disjoint in {PROCESSES} processes, each "
        f"clip once; the third has {same:.3%} of the first one's places; restored exactly"
    )


class Watch:
    """Memory and open files of this process, ten times a second."""

    def __enter__(self) -> "Watch":
        self.baseline, self.memory, self.files = _memory(), 0.0, 0
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._end.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._end.wait(0.1):
            self.memory = max(self.memory, _memory() - self.baseline)
            self.files = max(self.files, len(os.listdir("/proc/self/fd")))


def _memory() -> float:
    """Resident memory in GiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**30


if __name__ == "__main__":
    main()
