"""The autoencoder against recordings of diffusers' AutoencoderKL."""

import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from show1_jax.checkpoints.keys import KeyTable
from show1_jax.checkpoints.network_config import vae_config
from show1_jax.checkpoints.tables import RESNET
from show1_jax.checkpoints.tables import VAE as TABLE
from show1_jax.models.layers import ResnetBlock
from show1_jax.models.vae import VAE, VAEConfig
from tests.conftest import GOLDENS, assert_close, golden, network_folder
from tests.models.loading import count, load, shapes


def last(x: np.ndarray) -> np.ndarray:
    return np.moveaxis(x, 1, -1)


@pytest.fixture(scope="module")
def weights() -> dict[str, np.ndarray]:
    path = network_folder("vae") / "diffusion_pytorch_model.bin"
    stored = torch.load(path, weights_only=True)
    return {key: value.numpy() for key, value in stored.items()}


@pytest.fixture(scope="module")
def config() -> VAEConfig:
    path = network_folder("vae") / "config.json"
    return vae_config(json.loads(path.read_text()), str(path))


@pytest.fixture(scope="module")
def params(weights):
    return load({k: v.astype(np.float32) for k, v in weights.items()}, TABLE)


@pytest.fixture(scope="module")
def case():
    folder = GOLDENS / "vae"
    return load_file(folder / "inputs.safetensors"), load_file(folder / "outputs.safetensors")


def test_encodes_and_decodes_as_recorded(config, params, case):
    inputs, outputs = case
    model = VAE(config)
    image = last(inputs["image"])
    mean, logvar = model.apply({"params": params}, image, method="encode")
    assert_close(mean, last(outputs["mean"]), 2e-5, "mean")
    assert_close(logvar, last(outputs["logvar"]), 2e-5, "logvar")
    decoded = model.apply({"params": params}, last(inputs["latents"]), method="decode")
    assert_close(decoded, last(outputs["decoded"]), 2e-5, "decoded")


def test_takes_clips_frame_by_frame(config, params, case):
    inputs, outputs = case
    model = VAE(config)
    clip = last(inputs["image"])[None]
    mean, _ = model.apply({"params": params}, clip, method="encode")
    assert_close(mean, last(outputs["mean"])[None], 2e-5)
    decoded = model.apply({"params": params}, last(inputs["latents"])[None], method="decode")
    assert_close(decoded, last(outputs["decoded"])[None], 2e-5)


def test_clamps_the_log_variance(config, params, case):
    inputs, _ = case
    wide = jax.tree.map(jnp.asarray, params)
    wide["quant_conv"] = {
        "kernel": wide["quant_conv"]["kernel"],
        "bias": jnp.concatenate([jnp.zeros(4), jnp.full(2, -1e3), jnp.full(2, 1e3)]),
    }
    _, logvar = VAE(config).apply({"params": wide}, last(inputs["image"]), method="encode")
    np.testing.assert_array_equal(logvar[..., :2], -30.0)
    np.testing.assert_array_equal(logvar[..., 2:], 20.0)


def test_resnet_block_as_recorded():
    case = golden("mod_resnet_vae")
    block = ResnetBlock(32, 8, 1e-6, nn.silu)
    params = load(case.weights(), KeyTable(RESNET))
    out = block.apply({"params": params}, last(case.inputs["input_tensor"]))
    assert_close(out, last(case.outputs["out"]), 2e-5)


def test_old_attention_spelling_is_the_same_network(weights, params):
    old = {}
    for key, value in weights.items():
        for new, name in (
            ("to_q.", "query."),
            ("to_k.", "key."),
            ("to_v.", "value."),
            ("to_out.0.", "proj_attn."),
        ):
            if "mid_block.attentions.0" in key:
                key = key.replace(new, name)
        old[key] = value.astype(np.float32)
    assert any("proj_attn" in key for key in old)
    jax.tree.map(np.testing.assert_array_equal, load(old, TABLE), params)


def test_every_parameter_has_one_key(config, params):
    model = VAE(config)
    made = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 16, 16, 3)))["params"]
    assert shapes(made) == shapes(params)


def test_half_precision_parameters_compute_as_if_cast(config, weights, params, case):
    inputs, _ = case
    half = load({k: v.astype(np.float16) for k, v in weights.items()}, TABLE)
    same = jax.tree.map(lambda v: v.astype(np.float32), half)
    image = last(inputs["image"])
    model = VAE(config)
    np.testing.assert_array_equal(
        model.apply({"params": half}, image), model.apply({"params": same}, image)
    )


def test_bfloat16_is_close(config, params, case):
    inputs, outputs = case
    model = VAE(config, dtype=jnp.bfloat16)
    mean, logvar = model.apply({"params": params}, last(inputs["image"]), method="encode")
    assert mean.dtype == logvar.dtype == jnp.float32
    assert_close(mean, last(outputs["mean"]), 5e-2)
    decoded = model.apply({"params": params}, last(inputs["latents"]), method="decode")
    assert_close(decoded, last(outputs["decoded"]), 5e-2)


def test_released_size():
    model = VAE(VAEConfig())
    made = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
    assert count(made) == 83_653_863
