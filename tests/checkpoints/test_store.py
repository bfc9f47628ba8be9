"""Orbax checkpoints: what is saved is restored, and what is damaged is said to be."""

import itertools
import re
import shutil
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from show1_jax.checkpoints.store import discard, load_params, restoring, save_params
from show1_jax.errors import InputError
from tests.checkpoints.damage import WAYS, each_damaged
from tests.training.small import assert_same

pytestmark = pytest.mark.usefixtures("_overtaken_by_failure")

TREE = {
    "a": {"kernel": jnp.arange(6, dtype=jnp.float32).reshape(2, 3)},
    "b": {"scale": jnp.array([1.5, 2.5], jnp.bfloat16), "half": jnp.ones(3, jnp.float16)},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("store") / "params"
    save_params(path, TREE)
    return path


def abstract(dtype=None):
    return jax.tree.map(lambda v: jax.ShapeDtypeStruct(v.shape, dtype or v.dtype), TREE)


@pytest.mark.parametrize("target", [None, abstract()], ids=["as stored", "as asked"])
def test_restores_what_was_saved(folder, target):
    restored = load_params(folder, target)
    assert jax.tree.map(lambda v: v.dtype, restored) == jax.tree.map(lambda v: v.dtype, TREE)
    jax.tree.map(np.testing.assert_array_equal, restored, TREE)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_restores_into_another_dtype(folder, dtype):
    restored = load_params(folder, abstract(dtype))
    assert {v.dtype for v in jax.tree.leaves(restored)} == {np.dtype(dtype)}
    jax.tree.map(
        lambda ours, theirs: np.testing.assert_array_equal(ours, theirs.astype(dtype)),
        restored,
        TREE,
    )


@pytest.mark.parametrize("change", ["missing", "unexpected", "misshapen"])
def test_another_network_is_refused(folder, change):
    target = abstract()
    if change == "missing":
        target["c"] = target["a"]["kernel"]
    elif change == "unexpected":
        del target["b"]["half"]
    else:
        target["b"]["half"] = jax.ShapeDtypeStruct((4,), jnp.float16)
    with pytest.raises(InputError, match="is of another network: 1 parameters differ"):
        load_params(folder, target)


def test_what_is_no_checkpoint_is_refused(tmp_path):
    with pytest.raises(InputError, match="nowhere does not exist"):
        load_params(tmp_path / "nowhere")
    with pytest.raises(InputError, match=f"{tmp_path} cannot be restored: "):
        load_params(tmp_path)


def named(error, folder):
    """Whether one line says which checkpoint cannot be restored."""
    assert re.match(f"{folder}( |/checksums.json is damaged;)", str(error))
    assert "\n" not in str(error)


@pytest.mark.parametrize(
    ("way", "summed"), [("truncated", 0), ("zeroed", 0), *((way, 1) for way in WAYS)]
)
def test_a_damaged_file_is_refused_or_does_not_matter(tmp_path, way, summed, noise):
    """Without checksums, numbers with a flipped bit may be read as others."""
    folder = tmp_path / "params"
    # More than one array: Orbax reads many at once, and those behind a failure complain later.
    tree = {str(i): jax.random.normal(jax.random.key(i), (32, 16)) for i in range(3)}
    save_params(folder, tree | {"small": jnp.ones(2)})
    if not summed:
        (folder / "checksums.json").unlink()
    expected, refused = load_params(folder), []
    for path in each_damaged(folder, way):
        try:
            found = load_params(folder)
        except InputError as error:
            refused.append(path)
            named(error, folder)
        else:
            assert_same(found, expected)
    files = (path for path in folder.rglob("*") if path.is_file())
    numbers = max(files, key=lambda path: path.stat().st_size)
    assert {numbers, folder / "_METADATA", folder / "manifest.ocdbt"} <= set(refused)
    assert not noise()


@pytest.mark.parametrize("missing", ["manifest.ocdbt", "_METADATA", "d"])
@pytest.mark.parametrize("summed", [0, 1])
def test_a_file_that_is_missing_is_refused(folder, tmp_path, missing, summed):
    copy = shutil.copytree(folder, tmp_path / "params")
    path = copy / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    if not summed:
        (copy / "checksums.json").unlink()
    with pytest.raises(InputError) as error:
        load_params(copy)
    named(error.value, copy)


@pytest.mark.parametrize("content", ["", "[]", "{"])
def test_damaged_checksums_are_named(folder, tmp_path, content):
    copy = shutil.copytree(folder, tmp_path / "params")
    (copy / "checksums.json").write_text(content)
    with pytest.raises(InputError, match=r"params/checksums\.json is damaged; copy"):
        load_params(copy)


SHORT = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes")


@pytest.mark.parametrize(
    ("origin", "expected", "message"),
    [
        (SHORT, jax.errors.JaxRuntimeError, "RESOURCE_EXHAUSTED: Out of memory"),
        (MemoryError("Unable to allocate"), MemoryError, "Unable to allocate"),
        (
            ValueError("RESOURCE_EXHAUSTED: Error opening d/1: Too many open files [source='x']"),
            InputError,
            "cannot be restored: Too many open files$",
        ),
        (ValueError("DATA_LOSS: no such block"), InputError, "DATA_LOSS: no such block; remove it"),
    ],
)
@pytest.mark.parametrize("wrapped", [False, True])
def test_memory_that_is_short_is_no_damage(tmp_path, origin, expected, message, wrapped):
    error = Exception("Encountered error while reading array index: ()") if wrapped else origin
    with pytest.raises(expected, match=message), restoring(tmp_path, "remove it"):
        raise error from origin if wrapped else None


def test_what_is_discarded_stays_gone(tmp_path, monkeypatch):
    folder = tmp_path / "work"
    folder.mkdir()
    late = iter(range(3))

    def write_on(_):
        """As another thread, while it is waited for."""
        for name in itertools.islice(late, 1):
            folder.mkdir(exist_ok=True)
            (folder / str(name)).touch()

    monkeypatch.setattr(time, "sleep", write_on)
    discard(folder)
    assert not list(late)
    assert not folder.exists()
