"""LoRA: what the interceptor computes, and what of a network it trains."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import unflatten_dict

from show1_jax.adapters.lora import KERNEL, A, B, apply_lora, new_lora
from show1_jax.errors import InputError
from show1_jax.training.trainable import TRAINABLE, merge, split
from tests.training.small import by_path, made_up_batch, small_task


@pytest.fixture(scope="module")
def task():
    return small_task("keyframes")


def fresh(params, choice="temporal", rank=2):
    """LoRA whose B is not zero."""
    factors = by_path(new_lora(params, choice, rank, jax.random.key(1)))
    return {
        path: jax.random.normal(jax.random.key(2), leaf.shape) * 0.1 if path.endswith(B) else leaf
        for path, leaf in factors.items()
    }


def output(task, params):
    unet = task.module
    text = jax.random.normal(jax.random.key(3), (1, 5, unet.config.text_dim))
    sample = jax.random.normal(jax.random.key(4), (1, 3, 4, 6, 3))
    with nn.intercept_methods(apply_lora):
        return jax.jit(unet.apply)({"params": params}, sample, jnp.array([700]), text)


def test_a_new_change_is_none_and_any_is_that_of_the_kernels(task):
    task, params, _ = task
    plain = output(task, params)
    new = new_lora(params, "temporal", 2, jax.random.key(1))
    np.testing.assert_array_equal(output(task, merge(new, params)), plain)

    factors = fresh(params)
    flat = dict(by_path(params))
    for path in factors:
        if path.endswith(A):
            parent = path.removesuffix(f"/{A}")
            flat[parent + KERNEL] += factors[path] @ factors[f"{parent}/{B}"]
    merged = output(task, unflatten_dict(flat, sep="/"))
    beside = output(task, unflatten_dict(by_path(params) | factors, sep="/"))
    np.testing.assert_allclose(beside, merged, atol=2e-5)
    assert np.abs(np.asarray(merged - plain)).max() > 1e-2


@pytest.mark.parametrize("choice", TRAINABLE)
def test_every_matrix_of_a_choice_has_factors_and_nothing_else(task, choice):
    _, params, _ = task
    chosen = by_path(split(params, choice)[0])
    factors = by_path(new_lora(params, choice, 3, jax.random.key(0)))
    parents = {path.rpartition("/")[0] for path in factors}
    kernels = {path for path, leaf in chosen.items() if path.endswith(KERNEL) and leaf.ndim < 4}
    assert parents == {path.removesuffix(KERNEL) for path in kernels}
    for path in kernels:
        a, b = (factors[path.removesuffix("kernel") + name] for name in (A, B))
        assert (a @ b).shape == chosen[path].shape
        assert a.shape[-1] == 3
    if choice == "temporal_attention_qkv":
        assert {parent.rpartition("/")[2] for parent in parents} == {"to_q", "to_k", "to_v"}
        assert all("temporal_attention" in parent for parent in parents)


def test_gradients_reach_the_factors(task):
    task, params, constants = task
    factors = unflatten_dict(fresh(params, "temporal_attention"), sep="/")
    prepared = task.prepare(jax.random.key(0), constants, made_up_batch(task, 1))

    def loss(factors):
        with nn.intercept_methods(apply_lora):
            return task.loss(merge(factors, params), prepared).mean()

    for path, gradient in by_path(jax.jit(jax.grad(loss))(factors)).items():
        assert np.abs(np.asarray(gradient)).max() > 0, path


def test_ranks_below_one_are_refused(task):
    with pytest.raises(InputError, match="rank is 0"):
        new_lora(task[1], "all", 0, jax.random.key(0))
