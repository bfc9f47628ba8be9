"""The sharding table, and that what is computed does not depend on it."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh, PartitionSpec

from show1_jax.parallel import sharding
from show1_jax.parallel.mesh import AXES
from show1_jax.parallel.sharding import (
    fsdp_hint,
    in_kernel_order,
    in_pieces,
    parameter_spec,
    piece_count,
)
from show1_jax.stages import parts

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("path", "shape", "spec"),
    [
        # Large: the longest side that is left and divides; the later of equals.
        ("up_0/resnet_0/conv1/kernel", (3, 3, 320, 640), (None, None, "fsdp", "tensor")),
        ("up_0/resnet_0/conv2/kernel", (3, 3, 640, 320), (None, None, "tensor", "fsdp")),
        ("up_0/temporal_conv_0/conv3/kernel", (3, 640, 640), (None, "fsdp", "tensor")),
        ("mid/attention_0/to_q/kernel", (512, 512), ("fsdp", "tensor")),
        ("mid/attention_0/to_out/kernel", (512, 512), ("tensor", "fsdp")),
        ("block_3/ff_gate/kernel", (4096, 10240), ("fsdp", "tensor")),
        ("text_projection/kernel", (4096, 1280), ("fsdp", None)),
        ("conv_in/kernel", (3, 3, 7, 2048), (None, None, None, "fsdp")),
        # The state of the optimizer ends in the parameter's path.
        ("optimizer/1/0/mu/mid/attention_0/to_q/kernel", (512, 512), ("fsdp", "tensor")),
        # Small, or of no even side.
        ("up_0/resnet_0/conv1/bias", (640,), ("tensor",)),
        ("up_0/resnet_0/conv2/bias", (640,), (None,)),
        ("up_0/resnet_0/norm1/scale", (640,), (None,)),
        ("mid/attention_0/to_q/kernel", (513, 511), (None, None)),
        ("step", (), ()),
    ],
)
def test_the_table(path, shape, spec):
    mesh = AbstractMesh((2, 4, 1, 2), AXES)
    assert parameter_spec(mesh, path, shape) == PartitionSpec(*spec)


def test_a_size_of_fsdp_that_splits_little_is_said_with_one_that_splits_more(monkeypatch):
    params = {
        "wide": jax.ShapeDtypeStruct((3, 1280, 1280), jnp.float32),
        "narrow": jax.ShapeDtypeStruct((3, 640, 640), jnp.float32),
        "bias": jax.ShapeDtypeStruct((333,), jnp.float32),
    }

    def hint(fsdp, params):
        mesh = AbstractMesh((1, fsdp, 1, 1), AXES)
        monkeypatch.setattr(jax.sharding, "get_mesh", lambda: mesh)
        return fsdp_hint(params)

    found = hint(256, params)
    assert "leaves 20% of the parameters whole" in found
    assert "none of their sides is divisible by 256; set mesh.fsdp=128, and mesh.data" in found
    assert hint(128, params) == hint(1, params) == ""
    # What `tensor` splits along the only side that divides is not split again.
    mesh = AbstractMesh((1, 256, 1, 2), AXES)
    monkeypatch.setattr(jax.sharding, "get_mesh", lambda: mesh)
    side = {"to_q": {"kernel": jax.ShapeDtypeStruct((640, 1280), jnp.float32)}}
    assert "leaves 100% of the parameters whole" in fsdp_hint(side)
    odd = {"odd": jax.ShapeDtypeStruct((1001, 1001), jnp.float32)}
    assert hint(8, odd) == ""
    assert hint(8, {"bias": params["bias"]}) == ""


@pytest.mark.parametrize(
    ("batch", "at_once", "pieces"), [(14, 14, 1), (14, 13, 2), (14, 6, 7), (2, 1, 2), (5, 4, 5)]
)
def test_pieces_are_equal_and_no_larger_than_asked(batch, at_once, pieces):
    assert piece_count(batch, at_once) == pieces
    sizes = set()

    def function(x, none, tree):
        sizes.add(len(x))
        assert none is None
        return x + tree["y"], x[:, :1]

    x, y = jnp.arange(3.0 * batch).reshape(batch, 3), jnp.ones((batch, 1))
    total, first = jax.jit(lambda x, y: in_pieces(function, at_once, x, None, {"y": y}))(x, y)
    assert (total == x + 1).all()
    assert (first == x[:, :1]).all()
    assert sizes == {batch // pieces}


def test_kernels_of_convolutions_are_ordered_for_gpus(monkeypatch):
    params = {
        "conv": jnp.arange(3 * 3 * 4 * 5.0).reshape(3, 3, 4, 5),
        "frames": jnp.arange(3 * 4 * 5.0).reshape(3, 4, 5),
        "dense": jnp.arange(4 * 5.0).reshape(4, 5),
    }
    assert in_kernel_order(params) is params
    copies = jax.tree.map(jnp.array, params)
    monkeypatch.setattr(sharding, "current_platform", lambda: ("gpu", 9.0))
    ordered = in_kernel_order(copies)
    assert copies["conv"].is_deleted()
    multiply = jax.jit(lambda params: jax.tree.map(lambda x: jnp.ones(4) @ x, params))
    orders = {"conv": (3, 0, 1, 2), "frames": (2, 0, 1), "dense": (0, 1)}
    ((formats,), _) = multiply.lower(ordered).compile().input_formats
    shapes = in_kernel_order(
        {k: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding) for k, x in params.items()}
    )
    expected, found = multiply(params), multiply(ordered)
    for name, order in orders.items():
        assert ordered[name].format.layout.major_to_minor == order
        assert formats[name].layout.major_to_minor == order  # a program takes it as it is
        if name != "dense":
            assert shapes[name].format.layout.major_to_minor == order
        assert (found[name] == expected[name]).all()


def on_eight_devices(*arguments):
    """What `tests/parallel/eight.py` prints."""
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "8", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "tests.parallel.eight", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
@pytest.mark.smoke
def test_keyframes_are_the_same_on_eight_devices():
    sizes = '{"fsdp": 2, "frames": 2, "tensor": 2}'
    found = on_eight_devices("same", sizes, "1", "keyframes")
    assert "arrays equal" in found


@pytest.fixture(scope="module")
def found_on_eight():
    """Of what takes seconds: one process for all of it."""
    names = ("exchanged", "gathered", "attention", "encoded", "padded", "pieces", "sampled")
    return on_eight_devices(*names)


def test_frames_are_exchanged_and_never_gathered(found_on_eight):
    assert "all-to-all\n" in found_on_eight


def test_parameters_are_gathered_and_activations_never(found_on_eight):
    assert "shapes of parameters gathered" in found_on_eight


def test_attention_is_the_same_on_eight_devices(found_on_eight):
    assert found_on_eight.count("equal") == 3


def test_t5_is_the_same_whatever_eight_devices_send(found_on_eight):
    assert "activations are sent" in found_on_eight
    assert "parameters are sent" in found_on_eight


def test_a_batch_that_does_not_divide_is_padded(found_on_eight):
    assert "three clips on eight devices" in found_on_eight


def test_each_device_has_its_own_pieces(found_on_eight):
    assert "pieces of their own" in found_on_eight


def test_samples_are_made_with_the_parameters_where_they_lie(found_on_eight):
    assert "sampled where they lie" in found_on_eight


@pytest.mark.slow
@pytest.mark.smoke
def test_a_run_goes_on_on_another_mesh(tmp_path):
    assert "6 losses equal" in on_eight_devices("resumed", str(tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize(
    "sizes",
    ['{"data": 8}', '{"fsdp": 8}', '{"tensor": 2, "fsdp": 4}', '{"frames": 4, "data": 2}'],
)
def test_every_part_is_the_same_on_eight_devices(sizes):
    assert on_eight_devices("same", sizes, "2", *parts()).count("arrays equal") == len(parts())


@pytest.mark.slow
def test_python_samples_and_inverts_on_several_devices(tmp_path):
    assert "the door is open" in on_eight_devices("door", str(tmp_path))
