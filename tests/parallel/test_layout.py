"""What training chooses where the config leaves the mesh open."""

import math
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from show1_jax.checkpoints.networks import abstract_params
from show1_jax.configs import show1
from show1_jax.errors import InputError
from show1_jax.parallel import mesh
from show1_jax.parallel.layout import training_mesh, training_sizes
from show1_jax.parallel.mesh import AXES, make_mesh
from show1_jax.stages import part

OPEN = {"data": -1, "fsdp": -1, "frames": -1, "tensor": 1}


def chosen(devices, *, groups=1, clips=256, shapes=None, **sizes):
    """The sizes along data, fsdp, frames and tensor."""
    found = training_sizes(OPEN | sizes, devices, groups, clips, lambda: shapes or {})
    assert tuple(found) == AXES
    assert math.prod(found.values()) == devices
    return tuple(found.values())


@pytest.fixture(scope="module")
def keyframes():
    """The shapes of the released keyframes' denoiser."""
    config = show1.get_config("keyframes")
    params = abstract_params(part("keyframes").from_config(config).module("float32"))
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }


@pytest.mark.slow
@pytest.mark.smoke
def test_the_released_keyframes_on_any_number_of_chips(keyframes):
    """Their state takes 26 GiB, of which a device has at most one, and no part twice."""
    expected = {
        1: (1, 1), 4: (1, 4), 8: (1, 8), 16: (1, 16), 64: (2, 32), 256: (8, 32), 96: (3, 32),
    }  # fmt: skip
    for chips, (data, fsdp) in expected.items():
        assert chosen(chips, clips=768, shapes=keyframes) == (data, fsdp, 1, 1), chips
    # More chips than clips: two share each.
    assert chosen(512, shapes=keyframes) == (8, 32, 2, 1)
    assert chosen(12, clips=768, shapes=keyframes) == (3, 4, 1, 1)  # few sides divide by 6 or 12


def test_small_networks_are_copied_and_slices_are_crossed_by_data():
    small, large = {"kernel": (1024, 1024)}, {"kernel": (2**14, 2**14)}
    assert chosen(8, shapes=small) == (8, 1, 1, 1)
    assert chosen(8, shapes=large) == (2, 4, 1, 1)
    assert chosen(8, shapes=large, groups=4) == (4, 2, 1, 1)
    assert chosen(8, shapes=large, tensor=2) == (1, 4, 1, 2)
    assert chosen(8, shapes={"kernel": (7, 2**17)}, groups=8) == (8, 1, 1, 1)
    assert chosen(8, clips=2, shapes=small) == (2, 1, 4, 1)
    assert chosen(8, clips=3, shapes=small) == (1, 1, 8, 1)


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ({"data": 2}, (2, 4, 1, 1)),
        ({"fsdp": 2}, (4, 2, 1, 1)),
        ({"frames": 2}, (4, 1, 2, 1)),
        ({"data": 1, "fsdp": 1}, (1, 1, 8, 1)),
        ({"data": 1, "frames": 1}, (1, 8, 1, 1)),
        ({"data": 1, "fsdp": 2, "frames": 1, "tensor": -1}, (1, 2, 1, 4)),
    ],
)
def test_what_is_given_is_kept(sizes, expected):
    assert chosen(8, shapes={"kernel": (1024, 1024)}, **sizes) == expected


def test_what_cannot_be_chosen_is_refused():
    with pytest.raises(InputError, match=r"mesh\.tensor is -1 beside others: give its size"):
        chosen(8, tensor=-1)
    with pytest.raises(InputError, match="needs a multiple of 3 devices, but there are 8"):
        chosen(8, fsdp=3)


def test_a_part_is_not_traced_where_nothing_depends_on_it():
    def params():
        pytest.fail("it was traced")

    assert training_mesh(OPEN, 4, params, jax.devices()[:1]).size == 1


@pytest.fixture
def two_slices(monkeypatch):
    """Eight devices of two slices, of which every other one is in the second."""

    def block(sides, own):
        return np.array(own).reshape(sides)

    monkeypatch.setattr(
        "jax.experimental.mesh_utils.create_device_mesh", lambda s, d, **_: block(s, d)
    )
    monkeypatch.setattr(mesh, "Mesh", lambda devices, axes, axis_types: devices)
    return [SimpleNamespace(slice_index=i % 2, id=i) for i in range(8)]


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ({"data": 2, "fsdp": 4}, [[0, 2, 4, 6], [1, 3, 5, 7]]),
        ({"data": 4, "fsdp": 2}, [[0, 2], [4, 6], [1, 3], [5, 7]]),
        ({"fsdp": 8, "slices": 1}, [[0, 2, 4, 6, 1, 3, 5, 7]]),
        ({"data": 4, "fsdp": 2, "slices": 4}, [[0, 2], [4, 6], [1, 3], [5, 7]]),
    ],
)
def test_slices_follow_each_other_along_data(two_slices, sizes, expected):
    made = make_mesh(sizes, two_slices)
    assert [[device.id for device in row] for row in made[:, :, 0, 0]] == expected


@pytest.mark.parametrize(
    ("sizes", "devices", "message"),
    [
        ({"fsdp": 8}, 8, r"mesh.data is 1, but 2 slices share it: .* set mesh.slices=1"),
        ({"data": 7}, 7, r"the slices have 4, 3 devices, but must be equal"),
        ({"data": 8, "slices": 3}, 8, r"mesh.slices is 3, but there are 8 devices"),
    ],
)
def test_slices_that_do_not_fit_are_refused(two_slices, sizes, devices, message):
    with pytest.raises(InputError, match=message):
        make_mesh(sizes, two_slices[:devices])
