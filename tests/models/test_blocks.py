"""The blocks of the networks against recordings of their PyTorch counterparts."""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from show1_jax.checkpoints.keys import KeyTable
from show1_jax.checkpoints.tables import ADDED_KV_ATTENTION, RESNET, TEMPORAL_CONV, TRANSFORMER
from show1_jax.checkpoints.tables import UNET as UNET_TABLE
from show1_jax.models import layers
from show1_jax.models.attention import (
    AddedKVAttention,
    SpatialTransformer,
    TextPooling,
)
from show1_jax.models.layers import (
    ResnetBlock,
)
from show1_jax.models.ops import convolution, frame_convolution
from show1_jax.models.ops.activation import exact_gelu
from show1_jax.models.ops.convolution import downsample, upsample
from show1_jax.models.ops.embedding import sinusoidal_embedding
from show1_jax.models.temporal import FrameConv, TemporalConv, TemporalTransformer
from tests.conftest import Golden, assert_close, golden

OUTPUT_SCALE = 1.4142271248762552
FRAMES = 3


def params_of(case: Golden, table: KeyTable, prefix: str = "") -> dict:
    """The recorded weights of a block as our parameters."""
    params: dict = {}
    for key, value in case.weights().items():
        path, layout = table.to_ours(prefix + key)
        *parents, name = path.split("/")
        node = params
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = np.ascontiguousarray(layout.to_jax(value))
    return params


def run(block: nn.Module, params: dict, *inputs: np.ndarray) -> np.ndarray:
    """Applies a block that must have exactly these parameters."""
    made = jax.eval_shape(block.init, jax.random.key(0), *inputs)["params"]
    assert jax.tree.map(lambda v: v.shape, made) == jax.tree.map(np.shape, params)
    return np.asarray(jax.jit(block.apply)({"params": params}, *inputs))


def last(x: np.ndarray, frames: int | None = None) -> np.ndarray:
    """PyTorch's `(b frames, c, h, w)` as `(b, frames, h, w, c)`, or as images."""
    x = np.moveaxis(x, 1, -1)
    return x if frames is None else x.reshape(-1, frames, *x.shape[1:])


@pytest.mark.parametrize(
    ("name", "block"),
    [
        ("mod_resnet_plain", ResnetBlock(64, 8, 1e-5, exact_gelu, scale_shift=True)),
        ("mod_resnet_down", ResnetBlock(32, 8, 1e-5, exact_gelu, True, resample="down")),
        (
            "mod_resnet_up",
            ResnetBlock(32, 8, 1e-5, exact_gelu, True, True, OUTPUT_SCALE, resample="up"),
        ),
    ],
)
def test_resnet_block_with_time(name, block):
    case = golden(name)
    out = run(
        block,
        params_of(case, KeyTable(RESNET)),
        last(case.inputs["input_tensor"]),
        case.inputs["temb"],
    )
    assert_close(out, last(case.outputs["out"]), 2e-5)


def test_resnet_block_of_the_autoencoder():
    case = golden("mod_resnet_vae")
    block = ResnetBlock(32, 8, 1e-6, nn.silu)
    out = run(block, params_of(case, KeyTable(RESNET)), last(case.inputs["input_tensor"]))
    assert_close(out, last(case.outputs["out"]), 2e-5)


def test_resnet_block_gives_every_clip_its_own_time():
    case = golden("mod_resnet_plain")
    block = ResnetBlock(64, 8, 1e-5, exact_gelu, scale_shift=True)
    params = params_of(case, KeyTable(RESNET))
    images, time = last(case.inputs["input_tensor"]), case.inputs["temb"][::FRAMES]
    clips = images.reshape(-1, FRAMES, *images.shape[1:])
    expected = run(block, params, images, np.repeat(time, FRAMES, axis=0))
    assert_close(run(block, params, clips, time), expected.reshape(2, FRAMES, 8, 12, 64), 5e-6)


def test_attention_with_added_text():
    case = golden("mod_attn_added_kv")
    out = run(
        AddedKVAttention(heads=4, head_dim=8, groups=8),
        params_of(case, KeyTable(ADDED_KV_ATTENTION)),
        last(case.inputs["hidden_states"], 1),
        case.inputs["encoder_hidden_states"],
    )
    assert_close(out, last(case.outputs["out"], 1), 2e-5)


def test_spatial_transformer():
    case = golden("mod_transformer_2d")
    out = run(
        SpatialTransformer(heads=8, head_dim=4, groups=8),
        params_of(case, KeyTable(TRANSFORMER)),
        last(case.inputs["hidden_states"], 1),
        case.inputs["encoder_hidden_states"],
    )
    assert_close(out, last(case.outputs["out"], 1), 2e-5)


@pytest.mark.parametrize(
    ("name", "block", "rows"),
    [
        ("mod_attn_added_kv", AddedKVAttention(4, 8, 8), ADDED_KV_ATTENTION),
        ("mod_transformer_2d", SpatialTransformer(8, 4, 8), TRANSFORMER),
    ],
)
def test_every_frame_of_a_clip_sees_its_text(name, block, rows):
    case = golden(name)
    params = params_of(case, KeyTable(rows))
    images = last(case.inputs["hidden_states"], 1)
    text = case.inputs["encoder_hidden_states"][::FRAMES]
    expected = run(block, params, images, np.repeat(text, FRAMES, axis=0))
    clips = images.reshape(-1, FRAMES, *images.shape[2:])
    assert_close(run(block, params, clips, text), expected.reshape(clips.shape), 5e-6)


def test_temporal_convolution():
    case = golden("mod_temporal_conv")
    out = run(
        TemporalConv(),
        params_of(case, KeyTable(TEMPORAL_CONV)),
        last(case.inputs["hidden_states"], FRAMES),
    )
    assert_close(out, last(case.outputs["out"], FRAMES), 2e-5)


def test_a_new_temporal_convolution_changes_nothing():
    x = np.random.default_rng(0).standard_normal((1, 2, 2, 2, 32), np.float32)
    out, variables = jax.jit(TemporalConv().init_with_output)(jax.random.key(0), x)
    np.testing.assert_array_equal(out, x)
    params = variables["params"]
    assert all(np.abs(params[f"conv{i}"]["kernel"]).max() > 0 for i in (1, 2, 3))
    assert np.abs(params["conv4"]["kernel"]).max() == 0


def test_temporal_transformer():
    case = golden("mod_temporal_transformer")
    out = run(
        TemporalTransformer(heads=8, head_dim=4, groups=8),
        params_of(case, KeyTable(TRANSFORMER)),
        last(case.inputs["hidden_states"], FRAMES),
    )
    assert_close(out, last(case.outputs["out"], FRAMES), 2e-5)


def test_text_pooling():
    case = golden("mod_text_time_embedding")
    params = params_of(case, UNET_TABLE, "add_embedding.")["text_pooling"]
    out = run(TextPooling(48, heads=4), params, case.inputs["hidden_states"])
    assert_close(out, case.outputs["out"], 2e-5)


@pytest.mark.parametrize("frames", [1, 2, 5])
@pytest.mark.parametrize(("platform", "batch"), [("cpu", 2), ("tpu", 2), ("tpu", 8), ("gpu", 2)])
def test_frame_convolution_is_a_convolution_over_frames(platform, batch, frames, monkeypatch):
    monkeypatch.setattr(frame_convolution, "current_platform", lambda: (platform, 0.0))
    rng = np.random.default_rng(0)
    x = rng.standard_normal((batch, frames, 3, 4, 6), np.float32)
    kernel = rng.standard_normal((3, 6, 5), np.float32)
    bias = rng.standard_normal(5, np.float32)
    expected = jax.lax.conv_general_dilated(
        x,
        kernel[:, None, None],
        window_strides=(1, 1, 1),
        padding=((1, 1), (0, 0), (0, 0)),
        dimension_numbers=("NDHWC", "DHWIO", "NDHWC"),
    )
    assert_close(run(FrameConv(5), {"kernel": kernel, "bias": bias}, x), expected + bias, 1e-6)


def test_resampling_undoes_itself():
    x = np.arange(2 * 3 * 4 * 6, dtype=np.float32).reshape(2, 3, 4, 6, 1)
    np.testing.assert_array_equal(upsample(x), np.repeat(np.repeat(x, 2, axis=2), 2, axis=3))
    np.testing.assert_array_equal(downsample(upsample(x)), x)
    np.testing.assert_array_equal(downsample(x)[0, 0, 0, 0], (x[0, 0, :2, :2]).mean())


@pytest.mark.parametrize("few", [0, 2 * 3 * 4 * 6])
def test_convolution_with_upsampling_equals_upsampling_first(few, monkeypatch):
    monkeypatch.setattr(convolution, "MAX_POSITIONS", few)
    monkeypatch.setattr(convolution, "MIN_CHANNELS", 5)
    x = np.random.default_rng(0).standard_normal((2, 3, 4, 6, 5), np.float32)
    plain, fused = (
        layers.conv3x3(7, "conv", jnp.float32, jnp.float32, upsampled=option)
        for option in (False, True)
    )
    params = plain.init(jax.random.key(0), x)

    def first(params, x):
        return plain.apply(params, upsample(x))

    expected, back = jax.vjp(first, params, x)
    found, found_back = jax.vjp(fused.apply, params, x)
    assert_close(found, expected, 1e-6)
    weights = np.random.default_rng(1).standard_normal(found.shape, np.float32)
    for one, other in zip(*map(jax.tree.leaves, (found_back(weights), back(weights))), strict=True):
        assert_close(one, other, 1e-6)
    flops = [jax.jit(f).lower(params, x).cost_analysis()["flops"] for f in (fused.apply, first)]
    assert flops[0] < flops[1] / 1.8


def test_convolution_of_large_images_upsamples_nothing(monkeypatch):
    sizes = []

    def recorded(x):
        sizes.append(x.shape)
        return upsample(x)

    monkeypatch.setattr(convolution, "upsample", recorded)
    monkeypatch.setattr(convolution, "MAX_POSITIONS", 4 * 24)
    monkeypatch.setattr(convolution, "MIN_CHANNELS", 5)
    module = layers.conv3x3(7, "conv", jnp.float32, jnp.float32, upsampled=True)
    for height in (4, 5):  # MAX_POSITIONS once upsampled, and more
        jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, height, 6, 5)))
    assert sizes == [(1, 4, 6, 5)]


def test_sinusoids_have_cosines_first():
    positions = np.array([0.0, 1.0, 250.0, 999.0])
    out = np.asarray(sinusoidal_embedding(positions, 8))
    assert out.shape == (4, 8)
    for column in range(4):
        angles = positions * math.exp(-math.log(10000) * column / 4)
        np.testing.assert_allclose(out[:, column], np.cos(angles), atol=1e-4)
        np.testing.assert_allclose(out[:, 4 + column], np.sin(angles), atol=1e-4)


@pytest.mark.parametrize(
    ("name", "block", "rows"),
    [
        ("mod_attn_added_kv", AddedKVAttention, ADDED_KV_ATTENTION),
        ("mod_transformer_2d", SpatialTransformer, TRANSFORMER),
    ],
)
def test_attention_blocks_in_bfloat16_are_close(name, block, rows):
    case = golden(name)
    heads = (4, 8) if block is AddedKVAttention else (8, 4)
    out = run(
        block(*heads, 8, dtype=jnp.bfloat16),
        params_of(case, KeyTable(rows)),
        last(case.inputs["hidden_states"], 1).astype(jnp.bfloat16),
        case.inputs["encoder_hidden_states"].astype(jnp.bfloat16),
    )
    assert out.dtype == jnp.bfloat16
    assert_close(out, last(case.outputs["out"], 1), 5e-2)


def test_gelu_and_its_derivative_are_those_of_the_error_function():
    x = jnp.linspace(-6, 6, 101)
    expected = functools.partial(nn.gelu, approximate=False)
    assert_close(exact_gelu(x), expected(x), 1e-6)
    assert_close(jax.vmap(jax.grad(exact_gelu))(x), jax.vmap(jax.grad(expected))(x), 1e-6)
    half = x.astype(jnp.bfloat16)
    slope = jax.vmap(jax.grad(exact_gelu))(half)
    assert (exact_gelu(half).dtype, slope.dtype) == (half.dtype, half.dtype)


@pytest.mark.parametrize("options", [{}, {"stride": 2}, {"upsampled": True}], ids=str)
def test_small_images_are_convolved_as_by_a_product(options):
    def convolved(most: int) -> tuple[jax.Array, dict]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(convolution, "MAX_POSITIONS", most)
            patch.setattr(convolution, "MIN_CHANNELS", 6)
            value, gradient = jax.value_and_grad(lambda p: jnp.sin(conv.apply(p, x)).sum())(params)
            assert ("conv_general_dilated" in str(jax.make_jaxpr(conv.apply)(params, x))) == (
                not most
            )
        return value, gradient["params"]

    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 3, 4, 5, 6), np.float32)
    conv = layers.conv3x3(7, "conv", jnp.float32, jnp.float32, **options)
    params = jax.tree.map(
        lambda leaf: rng.standard_normal(leaf.shape, np.float32), conv.init(jax.random.key(0), x)
    )
    (product, of_product), (other, of_other) = convolved(4 * 2 * 3 * 4 * 5), convolved(0)
    assert_close(product, other, 1e-5)
    for name in ("kernel", "bias"):
        assert_close(of_product[name], of_other[name], 1e-5)
