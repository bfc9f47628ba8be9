import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from show1_jax.training.optimizer import averaged, ema, learning_rate, make_optimizer
from tests.training.small import assert_same

SETTINGS = ConfigDict(
    {
        "steps": 100,
        "learning_rate": 0.1,
        "warmup_steps": 10,
        "weight_decay": 0.0,
        "b2": 0.99,
        "clip_norm": 1e9,
        "ema_decay": 0.9,
    }
)
PARAMS = {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3), "scale": jnp.ones(())}


def settings(**changes):
    return ConfigDict(SETTINGS.to_dict() | changes)


def updates(config, gradients, steps=1, params=PARAMS):
    """What the optimizer does in the last of some steps with the same gradients."""
    optimizer = make_optimizer(config)
    state = optimizer.init(params)
    for _ in range(steps):
        change, state = optimizer.update(gradients, state, params)
    return change, state


@pytest.mark.parametrize("decay", [0.5, 0.999])
def test_the_average_is_its_closed_form(decay):
    rng = np.random.default_rng(0)
    transformation = ema(decay)
    params = jnp.asarray(rng.normal(size=3), jnp.float32)
    state = transformation.init(params)
    values = [np.asarray(params, np.float64)]
    for _ in range(20):
        change = jnp.asarray(rng.normal(size=3), jnp.float32)
        passed, state = transformation.update(change, state, params)
        assert passed is change
        params = optax.apply_updates(params, change)
        values.append(np.asarray(params, np.float64))
    # Value k has the weight 1 - d_k, times the decays of all updates after it.
    decays = [min(decay, (1 + t) / (10 + t)) for t in range(20)]
    weights = [np.prod(decays)] + [
        (1 - decays[k]) * np.prod(decays[k + 1 :]) for k in range(len(decays))
    ]
    np.testing.assert_allclose(sum(weights), 1)
    expected = sum(w * value for w, value in zip(weights, values, strict=True))
    np.testing.assert_allclose(state.average, expected, rtol=1e-5)
    assert state.updates == 20


def test_the_average_is_fp32_and_shares_no_memory_with_the_parameters():
    params = {"kernel": jnp.ones(2, jnp.bfloat16), "bias": jnp.ones(2)}
    state = ema(0.9).init(params)
    assert state.average["kernel"].dtype == jnp.float32
    change = jax.tree.map(lambda leaf: jnp.full_like(leaf, -1), params)
    _, after = ema(0.9).update(change, state, params)
    assert after.average["kernel"].dtype == jnp.float32
    params["bias"].delete()  # as donation does
    np.testing.assert_array_equal(state.average["bias"], 1)


def test_the_average_is_of_the_parameters_that_the_whole_chain_leads_to():
    change, state = updates(settings(warmup_steps=0), jax.tree.map(jnp.ones_like, PARAMS))
    expected = jax.tree.map(lambda p, c: 0.1 * p + 0.9 * (p + c), PARAMS, change)
    jax.tree.map(np.testing.assert_allclose, averaged(state), expected)


def test_learning_rate():
    rate = learning_rate(settings(learning_rate=0.1, warmup_steps=10, steps=110))
    np.testing.assert_allclose([rate(0), rate(5), rate(10)], [0, 0.05, 0.1], rtol=1e-6)
    np.testing.assert_allclose([rate(60), rate(110), rate(200)], [0.05, 0, 0], atol=1e-8)
    rates = [float(rate(step)) for step in range(111)]
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_learning_rate_without_warm_up_and_with_a_longer_one_than_the_run():
    np.testing.assert_allclose(learning_rate(settings(warmup_steps=0))(0), 0.1)
    short = learning_rate(settings(warmup_steps=1000, steps=5))
    np.testing.assert_allclose([short(4), short(5)], [0.1, 0], atol=1e-8)
    np.testing.assert_allclose(learning_rate(settings(warmup_steps=1000, steps=1))(0), 0.1)


def test_weight_decay_leaves_vectors_alone():
    none = jax.tree.map(jnp.zeros_like, PARAMS)
    change, _ = updates(settings(weight_decay=0.5, warmup_steps=0), none)
    np.testing.assert_allclose(change["kernel"], -0.05, rtol=1e-6)
    np.testing.assert_array_equal(change["bias"], 0)
    np.testing.assert_array_equal(change["scale"], 0)


def test_gradients_are_clipped_by_their_global_norm():
    def moments(scale, clip_norm):
        gradients = jax.tree.map(lambda leaf: jnp.full_like(leaf, scale), PARAMS)
        _, state = updates(settings(clip_norm=clip_norm), gradients)
        return jax.tree.leaves(state[1][0].mu)

    # 10 numbers: a gradient of 1 has the norm sqrt(10). Adam keeps a tenth of it.
    for moment in moments(1.0, 1.0) + moments(100.0, 1.0):
        np.testing.assert_allclose(moment, 0.1 / np.sqrt(10), rtol=1e-5)
    for moment in moments(0.01, 1.0):
        np.testing.assert_allclose(moment, 0.001, rtol=1e-5)


def test_the_state_holds_nothing_but_what_is_trained():
    trained = {"a": jnp.ones((2, 2))}
    state = make_optimizer(SETTINGS).init(trained)
    sizes = {leaf.shape for leaf in jax.tree.leaves(state)}
    assert sizes == {(), (2, 2)}
    assert_same(averaged(state), trained)
