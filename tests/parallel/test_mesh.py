"""Meshes are what was asked for, or a line that says what would work."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType

from show1_jax.errors import InputError
from show1_jax.parallel.mesh import (
    AXES,
    SMALL_MEMORY,
    batch_parts,
    compute_dtype,
    low_memory,
    make_mesh,
    sampling_dtype,
)


@pytest.mark.parametrize(
    "sizes", [{}, {"data": -1}, {"fsdp": 1, "tensor": -1}, {"data": -1, "fsdp": -1, "slices": 1}]
)
def test_one_device_is_a_mesh(sizes):
    mesh = make_mesh(sizes, jax.devices()[:1])
    assert mesh.axis_names == AXES
    assert mesh.devices.shape == (1, 1, 1, 1)
    assert batch_parts(mesh) == 1


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        (
            {"dta": 1},
            "mesh has no setting 'dta'; its settings are slices, data, fsdp, frames, tensor",
        ),
        ({"data": 3}, "needs 3 devices, but there are 1; choose sizes whose product is 1"),
        ({"data": 3, "fsdp": -1}, "needs a multiple of 3 devices, but there are 1"),
        ({"data": 0}, "mesh.data is 0, but must be -1 or at least 1"),
        ({"data": -2}, "mesh.data is -2, but must be -1 or at least 1"),
        ({"slices": 0}, "mesh.slices is 0, but must be -1 or at least 1"),
        ({"slices": 2}, "mesh.slices is 2, but there are 1 devices; make it a divisor"),
    ],
)
def test_what_cannot_be_laid_out_is_refused(sizes, message):
    with pytest.raises(InputError, match=message):
        make_mesh(sizes, jax.devices()[:1])


def on(platform):
    """A mesh of one device that is not here."""
    device = AbstractDevice(device_kind="", num_cores=1, platform=platform)
    sizes, types = (1,) * len(AXES), (AxisType.Auto,) * len(AXES)
    return jax.sharding.use_abstract_mesh(AbstractMesh(sizes, AXES, types, abstract_device=device))


@pytest.mark.parametrize(
    ("choose", "platform", "name", "expected"),
    [
        (compute_dtype, "cpu", "auto", jnp.float32),
        (compute_dtype, "cpu", "bfloat16", jnp.bfloat16),
        (compute_dtype, "tpu", "auto", jnp.bfloat16),
        (compute_dtype, "tpu", "float32", jnp.float32),
        (compute_dtype, "gpu", "auto", jnp.bfloat16),
        (sampling_dtype, "cpu", "auto", jnp.float32),
        (sampling_dtype, "tpu", "auto", jnp.bfloat16),
        (sampling_dtype, "gpu", "auto", jnp.float16),
        (sampling_dtype, "gpu", "float16", jnp.float16),
        (sampling_dtype, "gpu", "bfloat16", jnp.bfloat16),
    ],
)
def test_the_dtype_is_the_devices_unless_it_is_given(choose, platform, name, expected):
    with on(platform):
        assert choose(name) == expected


def test_float16_is_refused_without_a_gpu_and_for_training():
    with pytest.raises(InputError, match="float16 needs a GPU: take auto, bfloat16 or float32"):
        sampling_dtype("float16")
    with pytest.raises(InputError, match="dtype 'float16' is not one of float32, bfloat16, auto"):
        compute_dtype("float16")


@pytest.mark.parametrize(
    ("memory", "stats", "expected"),
    [
        ("low", None, True),
        ("normal", {"bytes_limit": 2**30}, False),
        ("auto", {"bytes_limit": SMALL_MEMORY - 1}, True),
        ("auto", {"bytes_limit": SMALL_MEMORY}, False),
        ("auto", None, False),  # CPUs
    ],
)
def test_memory_is_spared_where_there_is_little(memory, stats, expected, monkeypatch):
    device = SimpleNamespace(memory_stats=lambda: stats)
    monkeypatch.setattr(jax, "local_devices", lambda: [device])
    assert low_memory(memory) == expected


def test_memory_that_is_neither_low_nor_normal_is_refused():
    with pytest.raises(InputError, match="memory 'little' is not low, normal or auto"):
        low_memory("little")
