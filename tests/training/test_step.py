import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from show1_jax.errors import InputError
from show1_jax.stages import parts
from show1_jax.training.optimizer import averaged, make_optimizer
from show1_jax.training.step import Recipe, compile_step, init_state, train_step
from show1_jax.training.trainable import merge, split
from tests.training.small import (
    assert_same,
    by_path,
    compare,
    made_up_batch,
    small_config,
    small_task,
)

KEY = jax.random.key(3)
# Without effect: constants that a normalisation of one channel a group or a softmax takes out.
WITHOUT_EFFECT = ("conv1/bias", "conv2/bias", "conv3/bias", "to_k/bias", "text_projection/bias")


@functools.cache
def gradients(part, **train):
    """Loss and gradients of a part's first batch of four."""
    task, params, constants = small_task(part, **train)

    @jax.jit
    def run(params, constants, batch):
        prepared = task.prepare(jax.random.fold_in(KEY, 0), constants, batch)
        return jax.value_and_grad(lambda p: task.loss(p, prepared).mean())(params)

    return run(params, constants, made_up_batch(task, 4))


# One of each kind by default: image or clip, pixel or latent, autoencoder.
SLOW = ("image", "interpolation", "super_resolution")


def _step(*recipe):
    return functools.partial(train_step, Recipe(*recipe))


@pytest.mark.parametrize(
    "part", [pytest.param(part, marks=[pytest.mark.slow] * (part in SLOW)) for part in parts()]
)
def test_gradients_reach_every_parameter(part):
    dropout = {} if part == "vae" else {"dropout": True}
    loss, found = gradients(part, **dropout)
    assert jnp.isfinite(loss)
    for path, leaf in by_path(found).items():
        assert leaf.dtype == jnp.float32, path
        assert jnp.isfinite(leaf).all(), path
        if not path.endswith(WITHOUT_EFFECT):
            assert jnp.abs(leaf).max() > 1e-8, path


def test_remat_changes_neither_loss_nor_gradients():
    expected = gradients("keyframes", dropout=True)
    loss, found = gradients("keyframes", dropout=True, remat="nothing_saveable")
    np.testing.assert_allclose(loss, expected[0], rtol=1e-6)
    compare(found, expected[1], np.testing.assert_allclose, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    ("part", "train"),
    [("vae", {}), pytest.param("keyframes", {"dropout": True}, marks=pytest.mark.slow)],
)
def test_a_batch_in_parts_is_the_same_step(part, train):
    loss, expected = gradients(part, **train)
    task, params, constants = small_task(part, **train)
    # Not Adam: it makes as much of a gradient of rounding errors as of any other.
    optimizer = optax.sgd(1.0)
    step = jax.jit(_step(task.prepare, task.loss, optimizer, 4))
    state = init_state(optimizer, params, {})
    state, metrics = step(KEY, state, constants, made_up_batch(task, 4))
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-6)
    np.testing.assert_allclose(metrics["grad_norm"], optax.tree.norm(expected), rtol=1e-5)
    moved = jax.tree.map(jnp.subtract, params, state.trained)
    compare(moved, expected, np.testing.assert_allclose, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("choice", ["temporal", "temporal_attention"])
def test_frozen_parameters_stay_as_they_are(choice):
    _, params, _ = small_task("translation")
    params = {name: params[name] for name in ("conv_in", "input_transformer", "mid")}
    trained, frozen = split(params, choice)
    assert_same(merge(trained, frozen), params)
    attention, convolutions = {"temporal_attention_0"}, {"temporal_conv_0", "input_transformer"}
    parts = {name for path in by_path(trained) for name in path.split("/")[:2]}
    expected = attention | convolutions if choice == "temporal" else attention
    assert parts & (attention | convolutions) == expected

    optimizer = make_optimizer(small_config("translation", steps=10).train.translation)
    recipe = Recipe(
        lambda key, constants, batch: batch["weight"],
        # A loss that pulls at every parameter.
        lambda params, weight: weight * sum(jnp.square(x).sum() for x in jax.tree.leaves(params)),
        optimizer,
    )
    step = compile_step(recipe, KEY)
    state = init_state(optimizer, trained, frozen)
    before = jax.tree.map(np.array, state)
    for _ in range(3):
        state, _ = step(state, {}, {"weight": jnp.ones(2)})
    assert_same(state.frozen, before.frozen)
    for after in (state.trained, averaged(state.optimizer)):
        for path, leaf in by_path(after).items():
            assert not np.array_equal(leaf, by_path(before.trained)[path]), path
    # Two moments and the average, each of what is trained alone; the rest are counters.
    leaves = jax.tree.leaves(trained)
    held = sum(leaf.size for leaf in jax.tree.leaves(state.optimizer) if leaf.ndim)
    assert held == 3 * sum(leaf.size for leaf in leaves)


def test_what_cannot_be_trained_is_refused():
    image = {"down_0": {"resnet_0": {"kernel": jnp.ones(2)}}}
    with pytest.raises(InputError, match="'half', not one of all, temporal, temporal_attention"):
        split(image, "half")
    with pytest.raises(InputError, match="'temporal', but the network has nothing of that kind"):
        split(image, "temporal")
    assert split(image, "all") == (image, {})


def test_every_step_draws_anew_and_the_same_again():
    task, _, constants = small_task("keyframes")
    optimizer = optax.sgd(0.1)

    def loss(params, prepared):
        draws = (prepared.noise.mean((1, 2, 3, 4)), prepared.timesteps / 1000)
        return params["scale"] * jnp.stack(draws).sum(0)

    step = jax.jit(_step(task.prepare, loss, optimizer, 1))
    state = init_state(optimizer, {"scale": jnp.ones(())}, {})
    batch = made_up_batch(task, 4)

    def value(key, number):
        numbered = state._replace(step=jnp.int32(number))
        return float(step(key, numbered, constants, batch)[1]["loss"])

    values = [value(KEY, number) for number in range(5)]
    assert len(set(values)) == 5
    assert value(KEY, 2) == values[2]
    assert value(jax.random.key(4), 2) != values[2]
    after, _ = step(KEY, state._replace(step=jnp.int32(7)), constants, batch)
    assert after.step == 8


def test_a_step_takes_over_the_memory_of_its_state():
    optimizer = optax.sgd(0.1)
    recipe = Recipe(lambda key, constants, batch: batch["x"], lambda p, x: p["a"] * x, optimizer)
    step = compile_step(recipe, KEY)
    state = init_state(optimizer, {"a": jnp.ones(())}, {"b": jnp.ones(())})
    step(state, {}, {"x": jnp.ones(2)})
    assert state.trained["a"].is_deleted()
    assert state.frozen["b"].is_deleted()


@pytest.mark.parametrize("part", ["vae", "first_frame", "translation"])
def test_computing_in_bfloat16_keeps_parameters_and_losses_in_fp32(part):
    task, params, constants = small_task(part, dtype="bfloat16", accumulate=2)
    assert task.module.dtype == jnp.bfloat16
    optimizer = make_optimizer(small_config(part).train[part])
    step = _step(task.prepare, task.loss, optimizer, 2)
    state = init_state(optimizer, params, {})
    after, metrics = jax.eval_shape(step, KEY, state, constants, made_up_batch(task, 4))
    types = {leaf.dtype.name for leaf in jax.tree.leaves((after, metrics))}
    assert types == {"float32", "int32"}
    shapes = [[(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(s)] for s in (state, after)]
    assert shapes[0] == shapes[1]
