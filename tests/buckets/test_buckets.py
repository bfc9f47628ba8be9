"""Files, logs, locks, results and parameters in buckets, against emulators on this machine."""

import contextlib
import gc
import json
import os
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src import compiler  # what it gives XLA can be asked for nowhere else
from jax.experimental.compilation_cache import compilation_cache

from show1_jax import files, lock
from show1_jax.adapters.files import Adapter, load_adapter, save_adapter
from show1_jax.checkpoints.store import StoredParams, discard, save_params
from show1_jax.compilation import use_compilation_cache
from show1_jax.errors import InputError
from show1_jax.outputs import Outputs
from show1_jax.paths import as_path
from show1_jax.stages.inversion import Noise, load_noise, save_noise
from tests.buckets.emulators import BUCKET, Faults, emulated, reached
from tests.data.test_shards import content, opened, write_shards
from tests.data.test_shards import records as shard_records

XLA_CACHES = "jax_persistent_cache_enable_xla_caches"


@pytest.fixture(scope="module", params=["gs", "s3"])
def faults(request):
    """The proxy in front of an emulator, which this process uses from then on."""
    with emulated(request.param) as port:
        faults = Faults(port)
        faults.scheme = request.param
        with reached(request.param, faults.port):
            yield faults
        faults.close()


@pytest.fixture
def folder(faults, request, monkeypatch):
    """A folder of its own for each test; faults pass without a pause."""
    faults.broken.clear()
    monkeypatch.setattr("show1_jax.buckets.time.sleep", lambda seconds: None)
    monkeypatch.setattr("show1_jax.buckets._given_up", {})
    yield as_path(f"{faults.scheme}://{BUCKET}/{request.node.name.split('[')[0]}")
    faults.clear()


def test_objects_are_files_and_prefixes_are_folders(folder):
    assert not folder.exists()
    assert list(folder.iterdir()) == []
    files.write_whole(folder / "a" / "one.json", b"1")
    files.write_whole(folder / "two.json", b"0123456789")
    assert sorted(path.name for path in folder.iterdir()) == ["a", "two.json"]
    assert (folder / "a").is_dir()
    assert (folder / "two.json").is_file()
    assert [path.name for path in folder.glob("*/*.json")] == ["one.json"]
    assert files.read_range(folder / "two.json", 3, 4) == b"3456"
    assert files.read_range(folder / "two.json", 8, 4) == b"89"
    assert files.size_of(folder / "two.json") == 10
    files.move(folder / "a", folder / "b")
    assert files.files_in(folder) == [folder / "b" / "one.json", folder / "two.json"]
    files.remove(folder)
    assert not folder.exists()
    with pytest.raises(FileNotFoundError) as found:
        (folder / "two.json").read_bytes()
    assert found.value.strerror == "there is no such object or bucket"


def test_folders_are_copied_between_buckets_and_disks(folder, tmp_path):
    for name in ("config.json", "params/0", "left/out"):
        files.write_whole(folder / name, name.encode())
    there, back = files.Path(tmp_path / "there"), folder / "back"
    files.copy_folder(folder, there, without=["left"])
    assert (tmp_path / "there" / "params" / "0").read_bytes() == b"params/0"
    assert not (tmp_path / "there" / "left").exists()
    files.copy_folder(there, back)
    assert [path.name for path in files.files_in(back)] == ["config.json", "0"]
    with files.on_disk(back) as local:
        assert (local / "params" / "0").read_text() == "params/0"


def test_what_fails_for_a_moment_is_repeated_and_counted(folder, faults, caplog):
    from show1_jax import buckets

    files.write_whole(folder / "x", b"1")
    before = buckets.retries()
    for kind in (503, 429, 500, "drop"):
        faults.add(kind, times=2)
        assert (folder / "x").read_bytes() == b"1"
        faults.clear()
        faults.add(kind, times=2)
        files.write_whole(folder / "x", b"1")
        faults.clear()
    assert buckets.retries() >= before + 8
    assert "attempt 2 of 6" in caplog.text


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (403, "the credentials have no right to do this"),
        (503, "the bucket answered 503"),
        (400, "the bucket answered 400"),
    ],
)
def test_what_stays_wrong_is_an_error_like_that_of_a_disk(folder, faults, fault, reason):
    faults.add(fault)
    for call in (
        lambda: files.write_whole(folder / "x", b"1"),
        lambda: (folder / "x").read_bytes(),
    ):
        with pytest.raises(OSError, match=r"\[Errno") as found:
            call()
        assert found.value.strerror.startswith(reason)


def test_a_silent_bucket_is_asked_once_and_not_by_each_request(folder, faults, monkeypatch):
    from show1_jax import buckets

    files.write_whole(folder / "x", b"1")
    faults.add("drop")
    with pytest.raises(OSError, match="does not answer"):
        (folder / "x").read_bytes()
    faults.clear()
    served = faults.served
    with pytest.raises(OSError, match=r"does not answer .*; run the same command again"):
        (folder / "x").exists()
    files.remove(folder)
    assert faults.served == served
    monkeypatch.setattr(buckets, "REST_SECONDS", 0.0)
    assert (folder / "x").read_bytes() == b"1"
    assert not buckets._given_up


def test_what_follows_an_error_is_repeated_once_until_there_is_an_answer(folder, faults):
    files.write_whole(folder / "x", b"1")
    for count in (6, 2):
        faults.add(503)
        before = len(faults.broken)
        with pytest.raises(OSError, match="503; run the same command again"):
            (folder / "x").read_bytes()
        assert len(faults.broken) == before + count
        faults.clear()
    assert (folder / "x").read_bytes() == b"1"
    faults.add(503, times=4)
    assert (folder / "x").read_bytes() == b"1"


def test_downloads_are_repeated_and_counted_here_alone(folder, faults, tmp_path):
    from show1_jax import buckets

    files.write_whole(folder / "x", b"0123")
    before = buckets.retries()
    content = "^/download/" if faults.scheme == "gs" else ""
    faults.add(503, methods="GET", path=content, times=2)
    (folder / "x").copy(tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == b"0123"
    assert buckets.retries() == before + 2


def test_a_folder_that_cannot_be_removed_is_left_at_once(folder, faults):
    files.write_whole(folder / "x", b"1")
    faults.add(403, methods="DELETE|POST")
    served = faults.served
    discard(folder)
    assert faults.served < served + 10


def test_a_cache_of_programs_that_is_out_of_reach_is_left_out(folder, faults, caplog):
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    try:
        jax.config.update("jax_compilation_cache_dir", str(folder))
        use_compilation_cache()
        assert jax.config.jax_compilation_cache_dir == str(folder)
        faults.add(403)
        use_compilation_cache()
        assert not jax.config.jax_compilation_cache_dir
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
    assert f"{folder}: the credentials have no right" in caplog.text


@pytest.mark.parametrize("mode", ["w", "wb"])
def test_what_is_not_written_to_its_end_is_not_written(folder, faults, mode):
    path, content = folder / mode, "half" if mode == "w" else b"half"
    with contextlib.suppress(KeyError), path.open(mode) as file:
        file.write(content)
        raise KeyError
    file = path.open(mode)
    file.write(content)
    del file
    faults.add(403)
    file = path.open(mode)
    file.write(content)
    with pytest.raises(PermissionError):
        file.close()
    faults.clear()
    del file
    gc.collect()
    assert not path.exists()
    with path.open(mode) as file:
        file.write(content)
    assert path.read_bytes() == b"half"


def test_a_log_grows_over_several_objects(folder, monkeypatch):
    monkeypatch.setattr(files, "PART_BYTES", 20)
    path = folder / "metrics.jsonl"
    log = files.Log(path, kept=b"")
    for number in range(5):
        log.add(b'{"n": %d}\n' % number)
    assert len(files.log_parts(path)) == 2
    files.Log(path).add(b'{"n": 5}\n')
    numbers = [json.loads(line)["n"] for line in files.read_log(path).splitlines()]
    assert numbers == list(range(6))
    files.Log(path, kept=b"again\n")
    assert files.read_log(path) == b"again\n"


def test_only_one_program_has_a_lock(folder, monkeypatch):
    monkeypatch.setattr(lock, "BEAT_SECONDS", 0.05)
    monkeypatch.setattr(lock, "DEAD_SECONDS", 20.0)
    with lock.locked(folder, "--workdir"), pytest.raises(InputError, match="in use by another"):
        lock.locked(folder, "--workdir").__enter__()
    assert not (folder / lock.FILE).exists()
    # One that was killed is gone at once on its own machine,
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    own = {"host": lock.socket.gethostname(), "process": dead.pid, "token": "x", "time": 0}
    files.write_whole(folder / lock.FILE, json.dumps(own).encode())
    with lock.locked(folder, "--workdir"):
        pass
    # and on others when it has shown no sign of life.
    monkeypatch.setattr(lock, "DEAD_SECONDS", 0.2)
    files.write_whole(folder / lock.FILE, json.dumps(own | {"host": "another"}).encode())
    with lock.locked(folder, "--workdir"):
        assert json.loads((folder / lock.FILE).read_bytes())["process"] == os.getpid()


def test_a_lock_shows_signs_of_life(folder, monkeypatch):
    monkeypatch.setattr(lock, "BEAT_SECONDS", 0.02)
    monkeypatch.undo()
    monkeypatch.setattr(lock, "BEAT_SECONDS", 0.02)
    with lock.locked(folder, "--out"):
        first = (folder / lock.FILE).read_bytes()
        for _ in range(200):
            if (folder / lock.FILE).read_bytes() != first:
                break
            time.sleep(0.02)
        assert (folder / lock.FILE).read_bytes() != first


def test_results_of_two_shards(folder):
    frames = np.linspace(-1, 1, 2 * 4 * 6 * 3, dtype=np.float32).reshape(2, 4, 6, 3)
    prompts, settings = ["a red circle"] * 4, {"fps": 2, "steps": 3}
    for shard in range(2):
        outputs = Outputs(folder, f"{shard}-of-2")
        outputs.begin(prompts, [0] * 4, range(shard, 4, 2))
        for item in range(shard, 4, 2):
            outputs.save(item, "keyframes", frames, settings)
    again = Outputs(folder)
    assert again.items() == [("a red circle", 0)] * 4
    assert again.done(3, "keyframes", settings)
    np.testing.assert_array_equal(again.load(3, "keyframes"), frames)
    assert again.merge() == (["keyframes"], {})
    assert [path.name for path in folder.glob("manifest*")] == ["manifest.jsonl"]
    assert all(path.is_file() for path in again.shown(0, "keyframes"))


def test_parameters_are_what_was_written(folder):
    params = {"a": {"kernel": jnp.arange(12.0).reshape(3, 4)}, "b": jnp.ones(5, jnp.bfloat16)}
    save_params(folder / "params", params)
    found = StoredParams(folder / "params").read()
    np.testing.assert_array_equal(found["a"]["kernel"], params["a"]["kernel"])
    assert found["b"].dtype == jnp.bfloat16
    data = [path for path in files.files_in(folder / "params") if path.parent.name == "d"]
    data[0].write_bytes(data[0].read_bytes()[:-1])
    with pytest.raises(InputError, match=r"is damaged: .* has changed; copy the checkpoint again"):
        StoredParams(folder / "params")


def test_what_is_repeated_for_arrays_is_told(folder, faults, caplog):
    save_params(folder / "params", {"a": jnp.arange(12.0)})
    stored = StoredParams(folder / "params", check=False)
    faults.add(503, path=r"params(/|%2F).*d(/|%2F)", times=1)
    np.testing.assert_array_equal(stored.read()["a"], jnp.arange(12.0))
    assert len(faults.broken) == 1
    assert "1 requests repeated" in caplog.text


def test_shards_are_read_and_indexed_where_they_are(folder, faults, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    local = write_shards(tmp_path / "clips")
    found = shard_records(opened(local, tmp_path / "data"))
    expected = {caption: content(record) for caption, record in found.items()}
    files.copy_folder(files.Path(local), folder / "clips")
    for _ in range(2):
        faults.add(503, path="000", times=3)
        dataset = opened(str(folder / "clips"), folder / "data", {"width": (0, None)})
        records = shard_records(dataset)
        assert {caption: content(record) for caption, record in records.items()} == expected
    assert [path.name for path in files.files_in(folder / "data")] == ["index"]


def test_an_adapter_and_the_noise_of_a_clip_are_what_was_written(folder):
    params = {"conv_in": {"kernel": np.zeros((3, 3, 3, 8), np.float32)}}
    change = np.full((3, 3, 3, 8), 0.25, np.float32)
    save_adapter(folder / "clip.safetensors", Adapter({"conv_in/kernel": (change,)}))
    found = load_adapter(folder / "clip.safetensors", params)
    np.testing.assert_array_equal(found.changes["conv_in/kernel"][0], change)
    with pytest.raises(InputError, match="there is no adapter"):
        load_adapter(folder / "another.safetensors", params)
    noise = Noise("keyframes", np.ones((1, 2, 3, 4, 3), np.float32), 50, 1.0, None, None)
    save_noise(folder / "keyframes.noise.npz", noise)
    again = load_noise(folder / "keyframes.noise.npz")
    np.testing.assert_array_equal(again.noise, noise.noise)
    assert again._replace(noise=0) == noise._replace(noise=0)
    with pytest.raises(InputError, match="there is no such object or bucket"):
        load_noise(folder / "another.npz")


def test_compiled_programs_are_kept_in_a_bucket(folder, monkeypatch):
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in (*names, XLA_CACHES)}
    monkeypatch.delenv(XLA_CACHES.upper(), raising=False)
    hits = []

    def listen(event, **_):
        hits.append(event == "/jax/compilation_cache/cache_hits")

    jax.monitoring.register_event_listener(listen)
    try:
        jax.config.update("jax_compilation_cache_dir", str(folder / "compiled"))
        use_compilation_cache()
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        options = compiler.get_compile_options(1, 1)
        build = options.executable_build_options  # kept: what they give is of no use after them
        # XLA cannot write to buckets.
        assert build.debug_options.xla_gpu_per_fusion_autotune_cache_dir == ""
        for found in (False, True):
            compilation_cache.reset_cache()
            assert jax.jit(lambda x: jnp.sin(x) * 41)(0.0) == 0
            assert any(hits) is found
        assert files.files_in(folder / "compiled")
    finally:
        jax.monitoring.unregister_event_listener(listen)
        for name, value in before.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()
