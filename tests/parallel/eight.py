"""What 8 devices make, against what one makes of the same.

    JAX_NUM_CPU_DEVICES=8 python -m tests.parallel.eight same '{"data": 8}' 2 keyframes translation
    JAX_NUM_CPU_DEVICES=8 python -m tests.parallel.eight resumed WORKDIR
    JAX_NUM_CPU_DEVICES=8 python -m tests.parallel.eight exchanged gathered attention encoded padded

Run in a process of its own, since how many devices a process has is settled
when it starts. Ends with an assertion if they differ.
"""

import contextlib
import dataclasses
import functools
import json
import math
import re
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

import show1_jax
from show1_jax import cascade as cascade_module
from show1_jax import invert as invert_module
from show1_jax.aot.programs import training_program
from show1_jax.media import write_mp4
from show1_jax.models.ops import attention as op
from show1_jax.models.t5 import T5Config, T5Encoder
from show1_jax.parallel import sharding
from show1_jax.parallel.frames import over_frames
from show1_jax.parallel.mesh import AXES, make_mesh
from show1_jax.stages.sampling import apply
from show1_jax.text.encoding import encode_packed
from show1_jax.training import loop
from show1_jax.training.metrics import Metrics
from show1_jax.training.optimizer import make_optimizer
from show1_jax.training.run import RunFolder
from show1_jax.training.step import Recipe, compile_step, init_state
from show1_jax.training.tasks import pixels
from tests.stages.test_stages import random_params
from tests.training.small import by_path, made_up_batch, small_config, small_task

KEY = jax.random.key(1)
BATCH = 8


def outcome(sizes, devices, part, levels):
    """Everything that a step and a sample of a part lead to, and how its parameters were split."""
    # Each clip's dropout is its own.
    task, params, constants = small_task(
        part, levels, **({} if part == "vae" else {"dropout": True})
    )
    batch = made_up_batch(task, BATCH)
    with jax.set_mesh(make_mesh(sizes, devices)):
        params, constants = (
            jax.device_put(tree, sharding.shardings(tree)) for tree in (params, constants)
        )
        batch = sharding.put_batch(batch)
        clip = np.asarray(
            task.sample(params, constants, batch, sharding.put_batch(jnp.arange(BATCH)))
        )
        # Not Adam: it makes as much of a gradient of rounding errors as of any other.
        optimizer = optax.sgd(1.0)
        state = init_state(optimizer, params, {})
        split = {axis for leaf in jax.tree.leaves(params) for axis in leaf.sharding.spec if axis}
        where = sharding.shardings(state)
        step = compile_step(Recipe(task.prepare, task.loss, optimizer), KEY, where)
        state, metrics = step(state, constants, batch)
        assert jax.tree.leaves(where) == [leaf.sharding for leaf in jax.tree.leaves(state)]
    return {"clip": clip, **metrics, **by_path(state.trained)}, split


def same(sizes, levels, *parts):
    """A step and a clip of each part, its U-Net of so many levels."""
    sizes, levels = json.loads(sizes), int(levels)
    for part in parts:
        (expected, _), (found, split) = (
            outcome(*given, part, levels) for given in (({}, jax.devices()[:1]), (sizes, None))
        )
        # Eight devices cannot share the autoencoder's four channels.
        if part != "vae":
            assert split == {axis for axis in ("fsdp", "tensor") if sizes.get(axis, 1) > 1}
        for name, array in expected.items():
            array = np.asarray(array)
            error = np.abs(np.asarray(found[name]) - array).max() / max(np.abs(array).max(), 1e-9)
            assert error < 1e-5, f"{part} on {sizes}: {name} differs by {error:.1e}"
        print(f"{part} on {sizes}: {len(expected)} arrays equal")


def exchanged():
    """What devices send each other for a call of a network whose clips they share by frames."""
    task, params, _ = small_task("keyframes")
    sample = jnp.zeros((1, 8, 8, 16, 3))
    text = jnp.zeros((1, 5, params["text_projection"]["kernel"].shape[0]))
    with jax.set_mesh(make_mesh({"frames": 8})):
        call = jax.jit(functools.partial(apply, task.module))
        program = call.lower({"params": params}, sample, jnp.zeros(1, int), text).compile()
    found = set(re.findall(r"all-to-all|all-gather|collective-permute", program.as_text()))
    assert found == {"all-to-all"}, found
    print(*found)


def gathered():
    """What devices send each other for a step whose parameters are split."""
    config = small_config("keyframes", batch_size=BATCH, dropout=True)
    config.train.keyframes.remat = "nothing_saveable"
    config.keyframes.unet.layers = (0,)
    with jax.set_mesh(make_mesh({"fsdp": 8})):
        program = training_program(config, "keyframes")
        text = program.lower().compile().as_text()
    pattern = r" \(?\w+\[([\d,]+)\][^=]* (?:all-gather|all-to-all|collective-permute)\("
    found = {tuple(map(int, sides.split(","))) for sides in re.findall(pattern, text)}
    shapes = {leaf.shape for leaf in jax.tree.leaves(program.parameters)}
    vectors = BATCH * config.keyframes.unet.time_embed_dim * 2  # one for each clip may be sent
    others = {shape for shape in found - shapes if math.prod(shape) > vectors}
    assert found & shapes
    assert not others, others
    print(f"{len(found & shapes)} shapes of parameters gathered")


def attention():
    """The kernel that the compiler cannot split: for a batch, for mapped clips, within frames."""

    def call(*arrays):
        return op.attention(*arrays, implementation="splash")

    def mapped(*arrays):
        return sharding.over_clips(lambda *one: call(*(x[None] for x in one))[0], 4)(*arrays)

    keys = jax.random.split(KEY, 3)
    for name, function, sizes in (
        ("a batch", call, {"data": 2, "fsdp": 2, "tensor": 2}),
        ("mapped clips", mapped, {"data": 2, "fsdp": 2, "tensor": 2}),
        ("frames", lambda *a: _per_frame(call, *a), {"data": 2, "frames": 2, "tensor": 2}),
    ):
        lead = (4, 6) if name == "frames" else (4,)
        arrays = [
            jax.random.normal(key, (*lead, length, 4, 8))
            for key, length in zip(keys, (20, 30, 30), strict=True)
        ]
        flat = [x.reshape(-1, *x.shape[-3:]) for x in arrays]
        expected = op.attention(*flat, implementation="xla").reshape(arrays[0].shape)
        with jax.set_mesh(make_mesh(sizes)):
            found = jax.jit(function)(*sharding.put_batch(arrays))
        np.testing.assert_allclose(found, expected, atol=1e-5)
        print(f"{name}: equal")


def encoded():
    """T5 is the same whatever the devices send each other, and they send the smaller."""
    t5 = T5Encoder(T5Config(50, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=8))
    params, rng = random_params(t5), np.random.default_rng(0)
    kernels = {leaf.shape for leaf in jax.tree.leaves(params["block_0"]) if leaf.ndim == 2}
    for clips, length, kind, tensor in (
        (8, 4, "activations", 1),
        (16, 60, "parameters", 1),
        (8, 4, "its choice", 2),
    ):
        mask = np.arange(length) < rng.integers(1, length + 1, (clips, 1))
        packed = np.stack([rng.integers(0, 50, (clips, length)), mask], axis=1).astype(np.int32)
        expected = encode_packed(t5, params, packed)
        with jax.set_mesh(make_mesh({"data": 2, "fsdp": -1, "tensor": tensor})):
            own = jax.device_put(params, sharding.shardings(params))
            given = sharding.put_batch(packed)
            program = jax.jit(functools.partial(encode_packed, t5)).lower(own, given).compile()
            found = program(own, given)
        np.testing.assert_allclose(found, expected, rtol=2**-9, atol=2**-10)
        assert found.sharding.is_equivalent_to(given.sharding, 3)
        gathered = re.findall(r" \(?\w+\[([\d,]+)\][^=]* all-gather\(", program.as_text())
        shapes = {tuple(map(int, sides.split(","))) for sides in gathered}
        if tensor == 1:  # else it is the compiler's choice
            assert bool(shapes & kernels) == (kind == "parameters"), shapes
        print(f"{kind} are sent")


def _per_frame(call, *arrays):
    """Attention within each frame, of clips that are spread by their frames."""

    def part(packed):
        query, key, value = jnp.split(packed, [20, 50], axis=2)
        flat = [x.reshape(-1, *x.shape[-3:]) for x in (query, key, value)]
        return call(*flat).reshape(query.shape)

    return over_frames(part, jnp.concatenate(arrays, axis=2))


def padded():
    """A batch that does not divide lies on every device, its last clip again where none is."""
    given = {"video": np.arange(3 * 4).reshape(3, 4), "seed": np.arange(3)}
    with jax.set_mesh(make_mesh({"data": 4, "fsdp": 2})):
        found = sharding.put_padded(given)
        divides = sharding.put_padded(np.arange(16))
    for name, array in given.items():
        assert [shard.data.shape[0] for shard in found[name].addressable_shards] == [1] * 8
        np.testing.assert_array_equal(found[name], array[[0, 1, 2, 2, 2, 2, 2, 2]])
    np.testing.assert_array_equal(divides, np.arange(16))
    print("three clips on eight devices")


def pieces():
    """Each device goes through its own rows piece by piece, and receives nobody else's."""
    rows, sizes = jnp.arange(32.0).reshape(32, 1), []

    def function(x):
        sizes.append(len(x))
        return jnp.sin(sharding.constrain_batch(x))

    with jax.set_mesh(make_mesh({"data": 4, "fsdp": 2})):
        given = sharding.put_batch(rows)
        program = jax.jit(lambda x: sharding.in_pieces(function, 2, x)).lower(given).compile()
        found = program(given)
        assert found.sharding.is_equivalent_to(given.sharding, 2)
    np.testing.assert_allclose(found, jnp.sin(rows), rtol=1e-6)
    assert set(sizes) == {16}  # two on each device
    assert not re.search(r"all-|collective-", program.as_text())
    print("pieces of their own")


def sampled():
    """All processes sample, with the parameters as training has split them; the first writes."""
    task, params, constants = small_task("keyframes")
    batch, received = made_up_batch(task, loop.SAMPLED), []

    def sample(params, constants, batch, seeds):
        received.append(params)
        return pixels(batch)

    with (
        tempfile.TemporaryDirectory() as name,
        jax.set_mesh(make_mesh({"data": 2, "fsdp": 2, "tensor": 2})),
        pytest.MonkeyPatch.context() as patch,
    ):
        folder, where = Path(name), sharding.shardings(params)
        optimizer = make_optimizer(small_config("keyframes").train.keyframes)
        state = init_state(optimizer, jax.device_put(params, where), {})
        run = SimpleNamespace(
            task=dataclasses.replace(task, sample=sample),
            constants=constants,
            validation=[batch],
            folder=SimpleNamespace(folder=folder),
        )
        patch.setattr(jax, "process_count", lambda: 2)
        for process in range(2):
            patch.setattr(jax, "process_index", lambda process=process: process)
            loop.Run._sample(run, state, process, Metrics(folder, 0, process == 0))
        assert {path.name for path in (folder / "samples").iterdir()} == {
            "00000000.png",
            "00000000.mp4",
        }
    assert len(received) == 2
    for own in received:
        assert jax.tree.map(lambda leaf: leaf.sharding, own) == where
    print("sampled where they lie")


def resumed(workdir):
    """A run that goes on on another mesh, and then on one device."""
    workdir = Path(workdir)
    config = small_config("vae", workdir / "data", batch_size=8, clips=16, steps=6, save_every=1)
    slices = {"slices": 2, "data": 2, "fsdp": 4}
    every = {"data": 1}, slices, {"fsdp": 2, "tensor": 2}, {"slices": 4, "data": 4}, {"data": 1}
    config.mesh = ConfigDict(every[0])
    loop.train(config, workdir / "straight", jax.devices()[:1])
    for sizes, last in zip(every[1:], (2, 3, 5, None), strict=True):
        config.mesh = ConfigDict(sizes)
        devices = jax.devices()[: math.prod(size for axis, size in sizes.items() if axis in AXES)]
        with interruption(last):
            loop.train(config, workdir / "resumed", devices)
    straight, found = (
        [line["loss"] for line in lines(workdir / name) if "loss" in line]
        for name in ("straight", "resumed")
    )
    np.testing.assert_allclose(found, straight, rtol=1e-5)
    print(f"{len(found)} losses equal")


@contextlib.contextmanager
def interruption(step):
    """Ends a run in the step after `step`, if that is one."""
    save = RunFolder.save

    def stop(self, state, data):
        save(self, state, data)
        if state.step == step:
            self.wait()
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunFolder, "save", stop)
        with pytest.raises(KeyboardInterrupt) if step else contextlib.nullcontext():
            yield


def door(workdir):
    """Networks that stay in memory do so on all devices; inversion takes one."""
    clip = Path(workdir) / "clip.mp4"
    write_mp4(clip, np.full((40, 20, 32, 3), 90, np.uint8), 7.5)
    cascade = show1_jax.load(stages=["keyframes"], keep_weights=True)
    given = {"steps": 1, "progress": False}
    (first,) = cascade("a small red circle", **given)
    noise = cascade.invert(clip, steps=1, progress=False)
    (again,) = cascade("a small red circle", **given)
    np.testing.assert_array_equal(first.frames, again.frames)
    assert first.stages["keyframes"].base is None
    assert noise.noise.shape == (1, 8, 10, 16, 3)
    later = show1_jax.load(stages=["keyframes"], devices=jax.devices()[2:4])
    invert = invert_module.inverting_engine
    with pytest.MonkeyPatch.context() as patch:
        used = []
        patch.setattr(
            cascade_module, "inverting_engine", lambda *of: used.append(of[3]) or invert(*of)
        )
        later.invert(clip, steps=1, progress=False)
    assert used[0][0] == jax.devices()[2]
    print("the door is open on all devices")


def lines(workdir):
    """What metrics.jsonl says."""
    text = (workdir / "vae" / "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


if __name__ == "__main__":
    assert jax.device_count() == 8
    jax.config.update("jax_default_matmul_precision", "highest")
    sharding.MIN_SPLIT_SIZE = 8  # else these networks would be too small to be split
    if sys.argv[1] in (alone := {f.__name__: f for f in (same, resumed, door)}):
        alone[sys.argv[1]](*sys.argv[2:])
    else:
        together = {
            f.__name__: f
            for f in (exchanged, gathered, attention, encoded, padded, pieces, sampled)
        }
        for name in sys.argv[1:]:
            together[name]()
