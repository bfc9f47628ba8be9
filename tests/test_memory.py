"""Sampling networks that are as large as a machine's memory."""

import dataclasses
import gc
import shutil
import subprocess
import sys
import weakref
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from show1_jax import generate, memory
from show1_jax.checkpoints.released import StageFolder
from show1_jax.checkpoints.store import StoredParams
from show1_jax.configs import show1, tiny
from show1_jax.engine import Engine
from show1_jax.errors import InputError, out_of_memory_as_error
from show1_jax.text import encoding
from show1_jax.text.encoding import load_encoder
from tests.conftest import RELEASE, assert_close
from tests.text.test_encoding import PROMPTS

KEPT = """
import sys
import numpy as np
from show1_jax.memory import return_freed_memory
from tests.test_memory import resident

if sys.argv[1] == "yes":
    return_freed_memory()
before = resident()
np.ones(2**23, np.uint8)  # glibc keeps what is smaller than this from here on
arrays = [np.ones(2**22, np.uint8) for _ in range(50)]
last = np.ones(2**21, np.uint8)  # behind them, and not freed
del arrays
print(resident() - before)
"""


REUSED = """
import numpy as np
from show1_jax.memory import return_freed_memory, reuse_freed_memory
from tests.test_memory import resident

return_freed_memory()
before = resident()
with reuse_freed_memory():
    np.ones(2**26, np.uint8)
    print(resident() - before)
print(resident() - before)
"""


def resident() -> float:
    """MiB of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20


def small_config():
    result = tiny.get_config()
    result.keyframes.update(frames=2, height=8, width=16, steps=1)
    return result.lock()


@pytest.mark.skipif(sys.platform != "linux", reason="of glibc")
def test_freed_arrays_go_back_to_the_system():
    kept, returned = (
        float(
            subprocess.run(
                [sys.executable, "-c", KEPT, answer], check=True, capture_output=True, text=True
            ).stdout
        )
        for answer in ("no", "yes")
    )
    assert returned < 20
    assert kept > 100 or kept < 20  # other C libraries do so unasked


@pytest.mark.skipif(sys.platform != "linux", reason="of glibc")
def test_freed_arrays_are_kept_for_the_next_ones_where_that_is_faster():
    command = [sys.executable, "-c", REUSED]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    kept, returned = map(float, done.stdout.split())
    assert returned < 20
    assert kept > 60 or kept < 20  # as above


def test_sampling_gives_freed_memory_back(monkeypatch):
    called = []
    monkeypatch.setattr(generate, "return_freed_memory", lambda: called.append(True))
    generate.prepare(small_config(), str(tiny.CHECKPOINT), {})
    assert called
    assert memory.return_freed_memory.__module__ == "show1_jax.memory"


def test_two_layers_of_t5_are_in_memory_at_a_time(converted_release, monkeypatch):
    folder = StageFolder(converted_release / "show-1-base")
    whole = sum(leaf.nbytes for leaf in jax.tree.leaves(load_whole(folder)))
    monkeypatch.setattr(StoredParams, "read", watched(StoredParams.read, sizes := []))
    encoder = load_encoder(folder, "float32")
    told = []
    rows = encoder(PROMPTS, 2, lambda *of: told.append(of))
    expected = load_file(RELEASE / "expected_text.safetensors")["t5.embeddings"]
    assert rows.dtype == np.float32
    assert_close(rows, expected, 2e-5)
    layers = encoder.module.config.num_layers
    # The tables, the layers and the last norm, each once however many batches there are.
    assert len(sizes) == layers + 2
    assert sum(sizes) == whole
    assert max(sizes) < whole / 2
    assert told == [(done, layers) for done in range(layers + 1)]


def test_t5_by_layers_is_the_whole_to_the_last_bit(converted_release):
    folder = StageFolder(converted_release / "show-1-base")
    by_layer = load_encoder(folder, "float32")
    assert isinstance(by_layer.params, StoredParams)
    whole = dataclasses.replace(by_layer, params=load_whole(folder))
    np.testing.assert_array_equal(by_layer(PROMPTS[:3]), whole(PROMPTS[:3]))


def test_t5_computes_in_bfloat16_where_the_others_do_in_float16(converted_release):
    encoder = load_encoder(StageFolder(converted_release / "show-1-base"), "float16", whole=True)
    assert encoder.module.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(encoder.params) if leaf.ndim > 1} == {
        jnp.dtype(jnp.bfloat16)
    }
    expected = load_file(RELEASE / "expected_text.safetensors")["t5.embeddings"]
    assert_close(encoder(PROMPTS), expected, 6e-2)
    clip = load_encoder(StageFolder(converted_release / "show-1-sr2"), "float16")
    assert jnp.dtype(clip.module.dtype) == jnp.float16


def test_a_small_t5_is_kept_for_many_calls_and_a_large_one_is_not(converted_release, monkeypatch):
    folder = StageFolder(converted_release / "show-1-base")
    assert not isinstance(load_encoder(folder, "float32", whole=True).params, StoredParams)
    monkeypatch.setattr(encoding, "MAX_BYTES_ON_CPU", folder.size("text_encoder") - 1)
    assert isinstance(load_encoder(folder, "float32", whole=True).params, StoredParams)


def test_what_fails_while_a_layer_is_read_ahead_is_told(converted_release, monkeypatch):
    encoder = load_encoder(StageFolder(converted_release / "show-1-base"), "float32")
    read = StoredParams.read

    def fail(self, names=None):
        if "block_1" in names:
            raise InputError("block_1 is damaged")
        return read(self, names)

    monkeypatch.setattr(StoredParams, "read", fail)
    with pytest.raises(InputError, match="block_1 is damaged"):
        encoder(PROMPTS[:1])


def test_files_that_are_read_by_layer_are_checked_meanwhile(converted_release, tmp_path):
    copy = StageFolder(tmp_path / "show-1-base")
    shutil.copytree(converted_release / "show-1-base", copy.folder)
    encoder = load_encoder(copy, "float32")
    encoder(PROMPTS[:1])
    largest = max((copy.folder / "text_encoder/params").rglob("*"), key=lambda p: p.stat().st_size)
    damaged = bytearray(largest.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    largest.write_bytes(damaged)
    encoder = load_encoder(copy, "float32")
    with pytest.raises(InputError, match=f"{largest.name} has changed; copy the checkpoint again"):
        encoder(PROMPTS[:1])


def load_whole(folder: StageFolder):
    return folder.params("text_encoder", folder.module("text_encoder", "float32"), "float32")


def watched(read, sizes):
    """`read`, which notes how many bytes it gives, and that at most one before is there."""
    given = []

    def watch(self, names=None):
        gc.collect()
        alive = [any(leaf() is not None for leaf in leaves) for leaves in given]
        assert sum(alive) <= 1
        params = read(self, names)
        leaves = jax.tree.leaves(params)
        given.append([weakref.ref(leaf) for leaf in leaves])
        sizes.append(sum(leaf.nbytes for leaf in leaves))
        return params

    return watch


def test_layers_are_compiled_once(converted_release):
    encoder = load_encoder(StageFolder(converted_release / "show-1-base"), "float32")
    encoder(PROMPTS[:2], 2)
    with jax.no_tracing():
        encoder([*PROMPTS[:2], "another"], 2)


@pytest.mark.parametrize("error", [MemoryError(), jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED")])
def test_short_memory_is_one_line_wherever_networks_are_read(error, monkeypatch):
    def fail(*_):
        raise error

    engine = Engine(small_config(), tiny.CHECKPOINT, ["keyframes"])
    with monkeypatch.context() as patch, jax.set_mesh(engine.mesh):
        patch.setattr(StoredParams, "read", fail)
        with pytest.raises(InputError, match=r"keyframes does not fit .* memory: end other"):
            engine.params("keyframes")
        with pytest.raises(InputError, match="the text encoder does not fit"):
            engine.encode(["a red circle"])


@pytest.mark.parametrize(
    ("error", "caught"),
    [
        (RuntimeError("std::bad_alloc"), True),
        (RuntimeError("can't start new thread"), True),
        (OSError(12, "Cannot allocate memory"), True),
        (RuntimeError("INTERNAL"), False),
        (OSError(13, "Permission denied"), False),
    ],
)
def test_only_errors_about_memory_become_input_errors(error, caught):
    with (
        pytest.raises(InputError if caught else type(error)) as found,
        out_of_memory_as_error("it", "do this"),
    ):
        raise error
    assert isinstance(found.value, InputError) == str(found.value).endswith("memory: do this")


def test_what_is_read_compiled_and_run_is_told():
    told = []
    config = small_config()
    engine = Engine(config, tiny.CHECKPOINT, ["keyframes"])

    class Nothing:
        def __getattr__(self, name):
            return lambda *_: False

    engine.run(["a red circle"], [0], Nothing(), lambda *of: told.append(of))
    assert [(of[0], of[3].split()[0]) for of in told if len(of) > 3 and of[3]] == [
        ("t5", "reading"),
        ("keyframes", "reading"),
        ("keyframes", "compiling"),
    ]
    assert told[-1][:3] == ("keyframes", 1, 1)


def test_cpus_compute_in_float32_unless_told_otherwise():
    config = tiny.get_config()
    config.dtype = show1.get_config().dtype
    engine = Engine(config, tiny.CHECKPOINT, ["keyframes"])
    assert engine.samplers["keyframes"].unet.dtype == jnp.float32
    assert engine.made_by["keyframes"]["dtype"] == "float32"
    config.dtype = "bfloat16"
    engine = Engine(config, tiny.CHECKPOINT, ["keyframes"])
    assert engine.samplers["keyframes"].unet.dtype == jnp.bfloat16
    assert engine.made_by["keyframes"]["dtype"] == "bfloat16"
