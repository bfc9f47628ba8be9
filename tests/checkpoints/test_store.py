"""Orbax checkpoints: what is saved is restored, and what is damaged is said to be."""

import contextlib
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from show1_jax.checkpoints.store import discard, load_params, save_params
from show1_jax.errors import InputError

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
    with pytest.raises(InputError, match="does not hold this network: 1 parameters differ"):
        load_params(folder, target)


def test_what_is_no_checkpoint_is_refused(tmp_path):
    with pytest.raises(InputError, match="nowhere does not exist"):
        load_params(tmp_path / "nowhere")
    with pytest.raises(InputError, match=f"{tmp_path} cannot be restored: "):
        load_params(tmp_path)


def test_a_checkpoint_without_its_data_is_refused(tmp_path):
    # One array: Orbax reads many at once, and those behind the first failure complain later.
    save_params(tmp_path / "params", {"a": TREE["a"]["kernel"]})
    for file in (tmp_path / "params").rglob("*"):
        if file.is_file() and "METADATA" not in file.name:
            file.unlink()
    with pytest.raises(InputError, match="params cannot be restored: ") as error:
        load_params(tmp_path / "params")
    assert "\n" not in str(error.value)


def test_what_is_discarded_stays_gone(tmp_path):
    folder = tmp_path / "work"
    folder.mkdir()
    end = time.monotonic() + 0.5

    def write_on():
        for i in range(10_000):
            # It may vanish after each of these.
            with contextlib.suppress(FileNotFoundError, FileExistsError):
                folder.mkdir(exist_ok=True)
                (folder / str(i)).touch()
            if time.monotonic() > end:
                return

    writer = threading.Thread(target=write_on)
    writer.start()
    discard(folder)
    writer.join()
    assert not folder.exists()
