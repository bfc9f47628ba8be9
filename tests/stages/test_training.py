"""Each stage's training example and the loss on it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from show1_jax.diffusion.losses import Objective
from show1_jax.media import from_uint8
from show1_jax.models.unet import UNet
from show1_jax.models.vae import VAE, VAEConfig
from show1_jax.shapes.drawing import render
from show1_jax.shapes.scenes import Combination, Scene
from show1_jax.stages import autoencoder, interpolation, upscaling
from show1_jax.stages.training import Example, denoising_loss, drop_captions, noised
from tests.stages import made
from tests.stages.made import BASE, COSINE
from tests.stages.test_stages import random_params

KEY = jax.random.key(0)
VIDEO = jax.random.uniform(jax.random.key(1), (2, 5, 8, 12, 3), minval=-1)


def test_keyframes():
    example = made.keyframes().example(KEY, VIDEO, {})
    assert example.clean is VIDEO
    assert example.frames is None


def test_interpolation_sees_the_ends_alone():
    example = made.interpolation(max_noise_level=1).example(KEY, VIDEO, {})
    assert example.frames.shape == (2, 5, 8, 12, 4)
    # Level 0 is nearly clean, and the middle is the blend that sampling uses.
    np.testing.assert_allclose(example.frames[:, 0, ..., :3], VIDEO[:, 0], atol=0.05)
    exact = interpolation.condition(VIDEO[:, [0, -1]], 5)
    np.testing.assert_allclose(example.frames, exact, atol=0.05)
    other = made.interpolation(max_noise_level=1).example(KEY, VIDEO.at[:, 1:-1].set(0), {})
    np.testing.assert_array_equal(other.frames, example.frames)


def test_interpolation_noises_its_ends_more_at_higher_levels():
    def error(level):
        example = made.interpolation(max_noise_level=level).example(KEY, VIDEO, {})
        return float(jnp.abs(example.frames[:, 0, ..., :3] - VIDEO[:, 0]).mean())

    assert error(1) < error(500)


@pytest.mark.parametrize("keep", [True, False])
def test_super_resolution(keep):
    stage = made.super_resolution if keep else made.first_frame
    example = stage(max_noise_level=400).example(KEY, VIDEO, {})
    assert example.frames.shape == VIDEO.shape
    assert example.noise_level.shape == (2,)
    assert (example.noise_level < 400).all()
    kept = np.array_equal(example.frames[:, 0], VIDEO[:, 0])
    assert kept == keep
    # The rest is a blurred, noised clip: near the clean one at level 0.
    clear = stage(max_noise_level=1).example(KEY, jnp.full_like(VIDEO, 0.3), {})
    np.testing.assert_allclose(clear.frames, 0.3, atol=0.05)


def test_super_resolution_learns_from_what_keyframes_look_like():
    scene = Scene(Combination("small", "red", "triangle", "up", "white"), 0.2, 0.3, 0.1)
    large, small = (from_uint8(render(scene, 8, *size)) for size in ((40, 64), (10, 16)))
    shrunk = upscaling.shrink(jnp.asarray(large), 10, 16)
    blurred = jax.image.resize(large, small.shape, "linear")
    assert np.abs(shrunk - small).max() < 0.04 < np.abs(blurred - small).max()


def test_translation_trains_on_latents_and_not_on_the_autoencoder():
    vae = VAE(VAEConfig(channels=(8, 16), layers_per_block=1, norm_groups=4))
    params = random_params(vae)

    def total(params):
        return stage.example(KEY, VIDEO, {"vae": params}).clean.sum()

    stage = made.translation(vae)
    assert stage.example(KEY, VIDEO, {"vae": params}).clean.shape == (2, 5, 4, 6, 4)
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


@pytest.fixture(scope="module")
def unet():
    return UNet(BASE), random_params(UNet(BASE))


TEXT = jax.random.normal(KEY, (2, 5, BASE.text_dim))
OBJECTIVE = Objective(COSINE, variance_weight=0.001)


def loss(unet, dropout, params, key):
    prepared = noised(OBJECTIVE, key, Example(VIDEO), TEXT)
    return denoising_loss(unet, OBJECTIVE, dropout, params, prepared)


@pytest.mark.slow  # as of the small networks of training, by default
def test_the_loss_reaches_every_parameter(unet):
    unet, params = unet
    total = jax.jit(lambda params, key: loss(unet, True, params, key).mean())
    value, gradients = jax.jit(jax.value_and_grad(total))(params, KEY)
    assert jnp.isfinite(value)
    # Without effect: constants before a normalisation of one channel a group, and
    # those that a softmax takes out again.
    none = ("conv1/bias", "conv2/bias", "conv3/bias", "to_k/bias", "text_projection/bias")
    check_gradients(gradients, none)
    # Other draws, another loss; the same draws, the same.
    np.testing.assert_allclose(total(params, KEY), value, rtol=1e-6)
    assert total(params, jax.random.key(9)) != value


@pytest.mark.parametrize("dropout", [pytest.param(False, marks=pytest.mark.slow), True])
def test_the_loss_of_a_clip_does_not_depend_on_the_batch_it_is_in(unet, dropout):
    unet, params = unet
    prepared = noised(OBJECTIVE, KEY, Example(VIDEO), TEXT)
    run = jax.jit(functools.partial(denoising_loss, unet, OBJECTIVE, dropout))
    together = run(params, prepared)
    second = jax.tree.map(lambda leaf: leaf[1:], prepared)
    alone = run(params, second)
    np.testing.assert_allclose(alone, together[1:], rtol=1e-4)
    # Dropout is drawn from the clips' keys and changes the loss.
    others = run(params, prepared._replace(keys=prepared.keys[::-1]))
    assert (np.abs(others - together).min() > 1e-4) == dropout


def test_everything_is_drawn_for_each_clip():
    objective = Objective(COSINE, timesteps=(100, 900))
    example = Example(jnp.zeros((500, 1, 2, 2, 3)))
    batch = noised(objective, KEY, example, jnp.zeros((500, 1, 1)))
    assert batch.noise.shape == example.clean.shape
    np.testing.assert_allclose([batch.noise.mean(), batch.noise.std()], [0, 1], atol=0.05)
    assert 100 <= batch.timesteps.min() < 110
    assert 890 < batch.timesteps.max() < 900
    for drawn in (batch.noise, jax.random.key_data(batch.keys)):
        assert len({clip.tobytes() for clip in np.asarray(drawn)}) == 500


def test_the_condition_is_beside_the_noisy_clip_and_its_level_is_told():
    class Spy:
        def apply(self, variables, *inputs):
            self.inputs = inputs
            return jnp.zeros_like(inputs[0][..., :3])

    spy = Spy()
    example = made.super_resolution(max_noise_level=400).example(KEY, VIDEO, {})
    batch = noised(Objective(COSINE), KEY, example, TEXT)
    found = denoising_loss(spy, Objective(COSINE), False, {}, batch)
    # Nothing is predicted: all of the noise is left.
    np.testing.assert_allclose(found, jnp.square(batch.noise).mean((1, 2, 3, 4)), rtol=1e-5)
    sample, timesteps, text, level = spy.inputs
    alphas = COSINE.alphas_cumprod[batch.timesteps].reshape(2, 1, 1, 1, 1)
    noisy = np.sqrt(alphas) * VIDEO + np.sqrt(1 - alphas) * batch.noise
    np.testing.assert_allclose(sample, np.concatenate([noisy, example.frames], -1), atol=1e-5)
    assert timesteps is batch.timesteps
    assert text is batch.text
    assert level is example.noise_level


IMAGES = VIDEO[:, :1]
SMALL_VAE = VAE(VAEConfig(channels=(8, 16), layers_per_block=1, norm_groups=4))


def test_the_autoencoders_loss_reaches_every_parameter():
    params = random_params(SMALL_VAE)
    encoded = autoencoder.example(KEY, SMALL_VAE, IMAGES)
    assert encoded.noise.shape == (2, 4, 6, 4)

    def total(params):
        return autoencoder.loss(SMALL_VAE, 1e-3, 1.0, 1.0, params, encoded).mean()

    # A softmax takes a constant of its keys out again.
    check_gradients(jax.jit(jax.grad(total))(params), ("to_k/bias",))


class Identity:
    """Stands in for an autoencoder: decodes to `offset` times the image's columns more."""

    def __init__(self, slope, mean, logvar):
        self.slope, self.moments = slope, (mean, logvar)

    def apply(self, variables, x, method):
        if method == "encode":
            return tuple(jnp.full((2, 4, 6, 4), value) for value in self.moments)
        return IMAGES[:, 0] + self.slope * jnp.arange(12)[:, None]


def test_the_autoencoders_loss_by_hand():
    def value(slope=0.0, mean=0.0, logvar=0.0, kl=0.0, gradient=0.0, squared=0.0):
        encoded = autoencoder.Encoded(IMAGES[:, 0], jnp.zeros((2, 4, 6, 4)))
        return autoencoder.loss(Identity(slope, mean, logvar), kl, gradient, squared, {}, encoded)

    np.testing.assert_allclose(value(kl=1.0, gradient=1.0, squared=1.0), 0)
    np.testing.assert_allclose(value(slope=0.1), 0.1 * 5.5, rtol=1e-5)
    np.testing.assert_allclose(value(slope=0.1, gradient=2.0), 0.1 * 5.5 + 0.2, rtol=1e-4)
    # The mean of the columns' squares is 506 / 12.
    squares = 4 * 0.01 * 506 / 12
    np.testing.assert_allclose(value(slope=0.1, squared=4.0), 0.1 * 5.5 + squares, rtol=1e-5)
    # Half the square of a mean of 2, in each of 4 latents for every 4 pixels.
    np.testing.assert_allclose(value(mean=2.0, kl=1.0), 2 / 3, rtol=1e-5)
    divergence = 0.5 * (np.exp(1) - 2) / 3
    np.testing.assert_allclose(value(logvar=1.0, kl=1.0), divergence, rtol=1e-5)


def test_the_autoencoder_decodes_a_sample_and_counts_both_directions():
    class Spy(Identity):
        def apply(self, variables, x, method):
            if method == "decode":
                self.decoded = x
                return IMAGES[:, 0] + 0.1 * jnp.arange(8)[:, None, None]
            return super().apply(variables, x, method)

    spy = Spy(0.0, 0.5, -1.0)
    encoded = autoencoder.example(KEY, SMALL_VAE, IMAGES)
    found = autoencoder.loss(spy, 0.0, 2.0, 0.0, {}, encoded)
    np.testing.assert_allclose(spy.decoded, 0.5 + np.exp(-0.5) * encoded.noise, rtol=1e-5)
    np.testing.assert_allclose(found, 0.1 * 3.5 + 0.2, rtol=1e-4)


def check_gradients(gradients, none):
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradients):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if not name.endswith(none):
            assert jnp.abs(leaf).max() > 1e-8, name
