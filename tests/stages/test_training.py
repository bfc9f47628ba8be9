"""Each stage's training example and the loss on it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from show1_jax.diffusion.losses import Objective
from show1_jax.diffusion.schedule import NoiseSchedule
from show1_jax.models.unet import UNet
from show1_jax.models.vae import VAE, VAEConfig
from show1_jax.stages import interpolation, keyframes, super_resolution, translation
from show1_jax.stages.training import denoising_loss, drop_captions
from tests.stages.test_stages import BASE, random_params

COSINE = NoiseSchedule("cosine")
KEY = jax.random.key(0)
VIDEO = jax.random.uniform(jax.random.key(1), (2, 5, 8, 12, 3), minval=-1)


def test_keyframes():
    example = keyframes.example(VIDEO)
    assert example.clean is VIDEO
    assert example.frames is None


def test_interpolation_sees_the_ends_alone():
    example = interpolation.example(KEY, VIDEO, COSINE, 1)
    assert example.frames.shape == (2, 5, 8, 12, 4)
    # Level 0 is nearly clean, and the middle is the blend that sampling uses.
    np.testing.assert_allclose(example.frames[:, 0, ..., :3], VIDEO[:, 0], atol=0.05)
    exact = interpolation.condition(VIDEO[:, [0, -1]], 5)
    np.testing.assert_allclose(example.frames, exact, atol=0.05)
    other = interpolation.example(KEY, VIDEO.at[:, 1:-1].set(0), COSINE, 1)
    np.testing.assert_array_equal(other.frames, example.frames)


def test_interpolation_noises_its_ends_more_at_higher_levels():
    def error(level):
        example = interpolation.example(KEY, VIDEO, COSINE, level)
        return float(jnp.abs(example.frames[:, 0, ..., :3] - VIDEO[:, 0]).mean())

    assert error(1) < error(500)


@pytest.mark.parametrize("keep", [True, False])
def test_super_resolution(keep):
    example = super_resolution.example(KEY, VIDEO, (4, 6), COSINE, 400, keep)
    assert example.frames.shape == VIDEO.shape
    assert example.noise_level.shape == (2,)
    assert (example.noise_level < 400).all()
    kept = np.array_equal(example.frames[:, 0], VIDEO[:, 0])
    assert kept == keep
    # The rest is a blurred, noised clip: near the clean one at level 0.
    clear = super_resolution.example(KEY, jnp.full_like(VIDEO, 0.3), (4, 6), COSINE, 1, keep)
    np.testing.assert_allclose(clear.frames, 0.3, atol=0.05)


def test_translation_trains_on_latents_and_not_on_the_autoencoder():
    vae = VAE(VAEConfig(channels=(8, 16), layers_per_block=1, norm_groups=4))
    params = random_params(vae)

    def total(params):
        return translation.example(KEY, vae, params, VIDEO, 2).clean.sum()

    assert translation.example(KEY, vae, params, VIDEO, 2).clean.shape == (2, 5, 4, 6, 4)
    gradients = jax.grad(total)(params)
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(gradients))


def test_captions_are_dropped_at_their_rate():
    text, empty = jnp.ones((2000, 3, 4)), jnp.zeros((3, 4))
    kept = drop_captions(KEY, text, empty, 0.1)
    assert set(np.unique(kept)) == {0.0, 1.0}
    np.testing.assert_allclose(kept.mean(), 0.9, atol=0.03)
    # A caption is dropped whole.
    assert set(np.unique(kept.mean((1, 2)))) == {0.0, 1.0}
    np.testing.assert_array_equal(drop_captions(KEY, text, empty, 0.0), text)


def test_the_loss_reaches_every_parameter():
    unet = UNet(BASE)
    params = random_params(unet)
    text = jax.random.normal(KEY, (2, 5, BASE.text_dim))
    objective = Objective(COSINE, variance_weight=0.001)

    @jax.jit
    def loss(params, key):
        example = keyframes.example(VIDEO)
        return denoising_loss(unet, objective, params, key, example, text).mean()

    value, gradients = jax.jit(jax.value_and_grad(loss))(params, KEY)
    assert jnp.isfinite(value)
    # Without effect: constants before a normalisation of one channel a group, and
    # those that a softmax takes out again.
    none = ("conv1/bias", "conv2/bias", "conv3/bias", "to_k/bias", "text_projection/bias")
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradients):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if not name.endswith(none):
            assert jnp.abs(leaf).max() > 1e-8, name
    # Other draws, another loss; the same draws, the same.
    assert loss(params, KEY) == value
    assert loss(params, jax.random.key(9)) != value
