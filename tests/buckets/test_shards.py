"""Jobs that do not know of each other share out the items of a bucket, and some are killed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from show1_jax import files
from show1_jax.errors import InputError
from show1_jax.generate import merge_shards
from show1_jax.paths import as_path
from show1_jax.shapes.scenes import caption, combinations
from tests.buckets.emulators import BUCKET, emulated, environment, reached

ROOT = Path(__file__).parents[2]
SHARDS = 8
KILLED = {1: 0.3, 4: 0.6, 6: 0.05}  # shards, and how much of their items they have made by then


def sample(out, settings, *flags):
    command = [sys.executable, "sample.py", f"--out={out}", *flags]
    return subprocess.Popen(
        command, cwd=ROOT, env=os.environ | settings, stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("count", "flags"), [(1000, ["--stages=keyframes"]), (40, [])], ids=["keyframes", "all stages"]
)
def test_eight_jobs_make_what_one_makes(tmp_path, count, flags):
    prompts = [caption(each, i) for i in range(3) for each in combinations()][:count]
    (tmp_path / "prompts.txt").write_text("\n".join(prompts))
    flags = [f"--prompts={tmp_path / 'prompts.txt'}", *flags]
    cache = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache")}
    alone = sample(tmp_path / "one", cache, *flags)
    assert alone.wait() == 0, alone.stderr.read()
    last = json.loads((tmp_path / "one" / "manifest.jsonl").read_text().splitlines()[-1])["stage"]

    with emulated("s3") as port, reached("s3", port):
        out, settings = as_path(f"s3://{BUCKET}/out"), environment("s3", port) | cache
        for shard in range(SHARDS):
            process = sample(out, settings, *flags, f"--shard={shard}/{SHARDS}")
            if shard in KILLED:
                own = out / f"manifest-{shard}-of-{SHARDS}.jsonl"
                wanted = KILLED[shard] * count / SHARDS
                while files.read_log(own).count(last.encode()) < wanted:
                    assert process.poll() is None, process.stderr.read()
                    time.sleep(0.5)
                process.send_signal(signal.SIGKILL)
            assert process.wait() == (-signal.SIGKILL if shard in KILLED else 0)
        with pytest.raises(InputError) as missing:
            merge_shards(out)
        print(missing.value)
        lacking = int(str(missing.value).partition(" ")[0])
        assert 0 < lacking <= len(KILLED) * -(-count // SHARDS)
        for shard in KILLED:
            process = sample(out, settings, *flags, f"--shard={shard}/{SHARDS}")
            assert process.wait() == 0, process.stderr.read()
        assert f"{count} item(s) in {out} are complete" in merge_shards(out)

        lines = [json.loads(line) for line in files.read_log(out / "manifest.jsonl").splitlines()]
        results = [(line["item"], line["stage"]) for line in lines]
        assert len(results) == len(set(results)) == len({s for _, s in results}) * count
        files.copy_folder(out, as_path(tmp_path / "eight"))
    one, eight = tmp_path / "one", tmp_path / "eight"
    for path in [*one.rglob("*.npy")]:
        made, same = np.load(eight / path.relative_to(one)), np.load(path)
        np.testing.assert_allclose(made, same, atol=2e-4, err_msg=str(path))
    names = ({str(path.relative_to(each)) for path in each.rglob("*")} for each in (one, eight))
    assert next(names) == next(names)
