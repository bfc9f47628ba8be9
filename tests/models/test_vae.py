"""The autoencoder against recordings of diffusers' AutoencoderKL."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from show1_jax.models.vae import VAE, VAEConfig
from tests.conftest import GOLDENS, assert_close, assert_precise, loaded, network_folder


@functools.partial(jax.jit, static_argnums=(0, 3))
def apply(model: VAE, params, x, method: str):
    return model.apply({"params": params}, x, method=method)


def last(x: np.ndarray) -> np.ndarray:
    return np.moveaxis(x, 1, -1)


@pytest.fixture(scope="module")
def config() -> VAEConfig:
    return loaded(network_folder("vae"))[0].config


@pytest.fixture(scope="module")
def half():
    return loaded(network_folder("vae"))[1]


@pytest.fixture(scope="module")
def params(half):
    return jax.tree.map(lambda v: np.asarray(v, np.float32), half)


@pytest.fixture(scope="module")
def case():
    folder = GOLDENS / "vae"
    return load_file(folder / "inputs.safetensors"), load_file(folder / "outputs.safetensors")


def test_encodes_and_decodes_as_recorded(config, params, case):
    inputs, outputs = case
    model = VAE(config)
    image = last(inputs["image"])
    mean, logvar = apply(model, params, image, "encode")
    assert_close(mean, last(outputs["mean"]), 2e-5, "mean")
    assert_close(logvar, last(outputs["logvar"]), 2e-5, "logvar")
    decoded = apply(model, params, last(inputs["latents"]), "decode")
    assert_close(decoded, last(outputs["decoded"]), 2e-5, "decoded")


def test_takes_clips_frame_by_frame(config, params, case):
    inputs, outputs = case
    model = VAE(config)
    clip = last(inputs["image"])[None]
    mean, _ = apply(model, params, clip, "encode")
    assert_close(mean, last(outputs["mean"])[None], 2e-5)
    decoded = apply(model, params, last(inputs["latents"])[None], "decode")
    assert_close(decoded, last(outputs["decoded"])[None], 2e-5)


def test_clamps_the_log_variance(config, params, case):
    inputs, _ = case
    wide = jax.tree.map(jnp.asarray, params)
    wide["quant_conv"] = {
        "kernel": wide["quant_conv"]["kernel"],
        "bias": jnp.concatenate([jnp.zeros(4), jnp.full(2, -1e3), jnp.full(2, 1e3)]),
    }
    _, logvar = apply(VAE(config), wide, last(inputs["image"]), "encode")
    np.testing.assert_array_equal(logvar[..., :2], -30.0)
    np.testing.assert_array_equal(logvar[..., 2:], 20.0)


@pytest.mark.slow  # as of the U-Net, by default
def test_half_precision_parameters_compute_as_if_cast(config, half, params, case):
    assert {v.dtype for v in jax.tree.leaves(half)} == {np.dtype(np.float16)}
    inputs, _ = case
    image = last(inputs["image"])
    model = VAE(config)
    np.testing.assert_array_equal(
        apply(model, half, image, "__call__"), apply(model, params, image, "__call__")
    )


@pytest.mark.slow
def test_bfloat16_is_close(config, params, case):
    inputs, outputs = case
    model = VAE(config, dtype=jnp.bfloat16)
    mean, logvar = apply(model, params, last(inputs["image"]), "encode")
    assert mean.dtype == logvar.dtype == jnp.float32
    assert_close(mean, last(outputs["mean"]), 5e-2)
    decoded = apply(model, params, last(inputs["latents"]), "decode")
    assert_close(decoded, last(outputs["decoded"]), 5e-2)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float16])
def test_gpus_encode_and_decode_as_recorded(config, params, case, dtype, tell):
    inputs, outputs = case
    model = VAE(config, dtype=dtype)
    mean, _ = apply(model, params, last(inputs["image"]), "encode")
    tell(assert_precise(mean, last(outputs["mean"]), dtype, "the autoencoder's mean"))
    decoded = apply(model, params, last(inputs["latents"]), "decode")
    tell(assert_precise(decoded, last(outputs["decoded"]), dtype, "the autoencoder's images"))
