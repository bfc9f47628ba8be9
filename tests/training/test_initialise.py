import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from show1_jax.checkpoints.networks import fresh_params
from show1_jax.errors import InputError
from show1_jax.models.unet import UNet, UNetConfig
from show1_jax.training.initialise import new_paths, start_from
from tests.stages.test_stages import random_params
from tests.training.small import assert_same, by_path, small_config

KEY = jax.random.key(0)


def unet(part, **changes):
    return UNet(UNetConfig(**small_config(part)[part].unet.to_dict() | changes))


def inputs(config, frames=3):
    """A noisy batch of two clips, and what the denoiser is told."""
    keys = jax.random.split(KEY, 2)
    sample = jax.random.normal(keys[0], (2, frames, 4, 6, config.in_channels))
    text = jax.random.normal(keys[1], (2, 5, config.text_dim))
    return sample, jnp.array([10, 900]), text


def run(module, params, *given):
    return jax.jit(module.apply)({"params": params}, *given)


@pytest.mark.parametrize(
    ("part", "changes"),
    [
        pytest.param("keyframes", {}, marks=pytest.mark.slow),
        ("translation", {"layers": (0,), "input_transformer_head_dim": 4}),
    ],
)
def test_a_video_network_starts_as_the_image_network_frame_by_frame(part, changes):
    video = unet(part, **changes)
    config = dataclasses.replace(video.config, temporal=False, input_transformer_head_dim=None)
    image = UNet(config)
    source = random_params(image)
    params = start_from(fresh_params(video, KEY), source, "it")
    assert by_path(params).keys() > by_path(source).keys()

    sample, timesteps, text = inputs(config)
    frames = sample.shape[1]
    each = sample.reshape(-1, 1, *sample.shape[2:])
    repeated = (jnp.repeat(x, frames, axis=0) for x in (timesteps, text))
    expected = run(image, source, each, *repeated).reshape(*sample.shape[:-1], -1)
    found = run(video, params, sample, timesteps, text)
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


def test_what_another_network_does_not_give_is_known():
    video, image = unet("keyframes"), unet("keyframes", temporal=False)
    fresh = jax.eval_shape(lambda: fresh_params(video, KEY))
    held = jax.eval_shape(lambda: fresh_params(image, KEY))
    new = new_paths(fresh, held)
    assert set(new) == by_path(fresh).keys() - by_path(held).keys()
    assert all("temporal" in path for path in new)
    wider = jax.eval_shape(lambda: fresh_params(unet("interpolation"), KEY))
    assert new_paths(wider, fresh) == ["conv_in/kernel"]
    assert new_paths(fresh, fresh) == []


def test_interpolation_starts_as_the_keyframes_and_does_not_see_its_condition():
    source, module = unet("keyframes"), unet("interpolation")
    held = random_params(source)
    params = start_from(random_params(module), held, "it")
    sample, timesteps, text = inputs(module.config)
    found = run(module, params, sample, timesteps, text)
    without = run(module, params, sample.at[..., 3:].set(0), timesteps, text)
    np.testing.assert_array_equal(found, without)
    expected = run(source, held, sample[..., :3], timesteps, text)
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


FRESH = {
    "conv_in": {"kernel": jnp.ones((3, 3, 7, 2)), "bias": jnp.ones(2)},
    "down_0": {"temporal_conv_0": {"kernel": jnp.ones(2)}, "resnet_0": {"kernel": jnp.ones(4)}},
}
SOURCE = {
    "conv_in": {"kernel": jnp.zeros((3, 3, 3, 2)), "bias": jnp.zeros(2)},
    "down_0": {"resnet_0": {"kernel": jnp.zeros(4)}},
}


def test_what_is_taken_and_what_stays():
    source = jax.tree.map(lambda leaf: (leaf + 5).astype(jnp.bfloat16), SOURCE)
    kernel = np.concatenate([np.full((3, 3, 3, 2), 5), np.zeros((3, 3, 4, 2))], axis=2)
    assert_same(
        start_from(FRESH, source, "it"),
        {
            "conv_in": {"kernel": jnp.asarray(kernel, jnp.float32), "bias": jnp.full(2, 5.0)},
            "down_0": {
                "temporal_conv_0": {"kernel": jnp.ones(2)},
                "resnet_0": {"kernel": jnp.full(4, 5.0)},
            },
        },
    )
    # Temporal layers that the source has are taken too.
    whole = SOURCE | {"down_0": SOURCE["down_0"] | {"temporal_conv_0": {"kernel": jnp.zeros(2)}}}
    assert not start_from(FRESH, whole, "it")["down_0"]["temporal_conv_0"]["kernel"].any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"down_0": {"resnet_0": {"kernel": jnp.ones(5)}}}, r"resnet_0/kernel is \(4,\), it has"),
        ({"down_0": {}}, "resnet_0/kernel is .* it lacks it"),
        ({"mid": {"kernel": jnp.ones(1)}}, "which lacks mid/kernel"),
        # More channels than the network takes, and others of the kernel's sizes.
        ({"conv_in": SOURCE["conv_in"] | {"kernel": jnp.ones((3, 3, 8, 2))}}, "conv_in/kernel is"),
        ({"conv_in": SOURCE["conv_in"] | {"kernel": jnp.ones((1, 1, 3, 2))}}, "conv_in/kernel is"),
        # Only the first convolution may see new channels.
        ({"conv_in": {"kernel": jnp.ones((3, 3, 3, 2)), "bias": jnp.ones(1)}}, "conv_in/bias is"),
        ({"down_0": SOURCE["down_0"] | {"temporal_conv_0": {"kernel": jnp.ones(3)}}}, "temporal"),
    ],
)
def test_another_network_is_no_start(changes, message):
    with pytest.raises(InputError, match=f"^ITS FOLDER cannot initialise this network.*{message}"):
        start_from(FRESH, SOURCE | changes, "ITS FOLDER")
