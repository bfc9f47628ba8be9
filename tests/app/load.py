"""Loads the service and prints figures.

    python -m tests.app.load [--requests 50] [--clients 10] [--jobs 0] [--steps keyframes=…]

Starts the service on the embedded checkpoint, posts requests from several clients at once, kills it
in the middle, starts it again, and compares every video with what `sample.py` makes of the same
prompt and seed. With `--jobs 200` it goes on with videos of one stage and watches the memory.
"""

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

from show1_jax.media import read_mp4
from show1_jax.shapes.scenes import caption, combinations
from tests.app.serving import ROOT, Server, serving

STEPS = "5"


def prompts(count: int) -> list[str]:
    every = [caption(combination) for combination in combinations()]
    return [every[i * 37 % len(every)] for i in range(count)]


def post_all(server: Server, bodies: list[dict], clients: int) -> list[tuple[int, object]]:
    """Posts from several clients at once; the answers, in order."""
    answers: list = [None] * len(bodies)

    def client(own: range) -> None:
        for i in own:
            answers[i] = server.call("/v1/videos", "POST", bodies[i])

    threads = [
        threading.Thread(target=client, args=(range(i, len(bodies), clients),))
        for i in range(clients)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


def sampled(asked: list[tuple[str, int]], out: Path, *flags: str) -> float:
    """What `sample.py` makes of prompts and seeds in one job; returns seconds."""
    file = out.with_suffix(".jsonl")
    lines = (json.dumps({"prompt": prompt, "seed": seed}) for prompt, seed in asked)
    file.write_text("\n".join(lines))
    begin = time.monotonic()
    subprocess.run(
        [sys.executable, "sample.py", "--prompts", str(file), "--out", str(out), *flags],
        cwd=ROOT, check=True, capture_output=True,
    )  # fmt: skip
    return time.monotonic() - begin


def differences(folder: Path, other: Path) -> tuple[float, float]:
    """How two items' results differ, in levels of 255: the most of exact ones, the mean of clips.

    H.264 leaves out other things of a clip when one pixel is rounded another way.
    """
    exact, clips = [], []
    for path in sorted(folder.glob("*.npy")):
        own, reference = (np.clip(np.load(each / path.name), -1, 1) for each in (folder, other))
        exact.append(np.abs(own - reference).max() * 127.5)
    for path in sorted(folder.glob("*.mp4")):
        own, reference = (read_mp4(each / path.name).astype(int) for each in (folder, other))
        clips.append(np.abs(own - reference).mean())
    return float(max(exact)), float(max(clips))


def load(requests: int, clients: int, out: Path, steps: str) -> dict[str, float]:
    """Posts, kills, starts again, and compares; returns what it prints."""
    flags = ("--config.batch_size=4", "--steps", steps)
    asked = [(prompt, seed) for seed, prompt in enumerate(prompts(requests))]
    bodies = [{"prompt": prompt, "seed": seed} for prompt, seed in asked]
    begin = time.monotonic()
    with serving(out / "service", *flags) as server:
        answers = post_all(server, bodies, clients)
        accepted = [answer["id"] for status, answer in answers if status == 202]
        refused = [status for status, _ in answers if status != 202]
        print(f"{len(accepted)} accepted, {len(refused)} refused {sorted(set(refused))}")
        while server.metric('show1_videos_total{status="completed"}') < requests / 4:
            time.sleep(0.5)
        server.end(signal.SIGKILL)
    killed = time.monotonic()
    with serving(out / "service", *flags) as server:
        videos = server.wait(accepted)
        seconds = time.monotonic() - begin
        status = [video["status"] for video in videos]
        print(f"after kill -9 and a restart: {status.count('completed')} completed, "
              f"{status.count('failed')} failed; {seconds:.0f} s in all, killed after "
              f"{killed - begin:.0f} s")  # fmt: skip
        _, listed = server.call("/v1/videos?limit=1000")
        doubled = len({video["id"] for video in listed["data"]} ^ set(accepted))
        print(f"{doubled} lost or doubled; SIGTERM ends it with status {server.end()}")
    alone = sampled(asked, out / "batch", *flags)
    print(f"sample.py with all prompts in one job: {alone:.0f} s")
    own = sampled(asked[:1], out / "one", "--steps", steps)
    print(f"sample.py with one prompt: {own:.0f} s, so {requests} calls {own * requests:.0f} s")
    by_item = {(video["prompt"], video["seed"]): video["id"] for video in videos}
    found = [
        differences(out / "service" / by_item[item] / "000", out / "batch" / f"{i:03d}")
        for i, item in enumerate(asked)
        if item in by_item
    ]
    exact, clips = (max(each) for each in zip(*found, strict=True))
    print(
        f"from sample.py exact results differ by {exact:.4f} levels of 255 at most, clips by "
        f"{clips:.3f} in the mean"
    )
    return {
        "accepted": len(accepted),
        "completed": status.count("completed"),
        "doubled": doubled,
        "exact": exact,
        "clips": clips,
    }


def memory(jobs: int, out: Path, steps: str) -> list[tuple[float, float]]:
    """Watches the resident memory (MiB) and the compiled programs: after a tenth, and after all."""
    stages, found = ["keyframes"], []
    with serving(out / "memory", "--steps", steps) as server:
        for count in range(1, jobs + 1):
            body = {"prompt": prompts(jobs)[count - 1], "seed": count, "stages": stages}
            _, answer = server.call("/v1/videos", "POST", body)
            server.wait([answer["id"]])
            if count in (1, 5, jobs // 10, jobs):
                resident = server.metric("process_resident_memory_bytes") / 2**20
                compiled = server.metric("show1_compiled_programs")
                print(f"after job {count}: {resident:.0f} MiB, {compiled:.0f} programs compiled")
                found.append((resident, compiled))
    return found[-2:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=50)
    parser.add_argument("--clients", type=int, default=10)
    parser.add_argument("--jobs", type=int, default=0)
    parser.add_argument("--steps", default=STEPS)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if args.requests:
            load(args.requests, args.clients, Path(folder), args.steps)
        if args.jobs:
            memory(args.jobs, Path(folder), args.steps)


if __name__ == "__main__":
    main()
