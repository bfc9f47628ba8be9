"""The denoiser against recordings of Show-1's and diffusers' U-Nets, and how it behaves."""

import dataclasses
import functools
import itertools
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.errors import InvalidRngError
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import AbstractMesh, AxisType

from show1_jax.checkpoints.networks import abstract_params
from show1_jax.checkpoints.released import sampling_params
from show1_jax.checkpoints.tables import UNET as TABLE
from show1_jax.errors import InputError
from show1_jax.models.ops import attention as ops
from show1_jax.models.temporal import dropout, dropout_masks
from show1_jax.models.unet import UNet, UNetConfig
from show1_jax.parallel import sharding
from show1_jax.parallel.mesh import AXES, make_mesh
from tests.conftest import Golden, assert_close, assert_precise, golden, loaded, network_folder

NAMES = (
    "unet3d_latent", "unet3d_base", "unet3d_interp", "unet3d_sr1", "unet3d_sr2", "unet2d_if_sr",
)  # fmt: skip
# The slow ones are those of which a whole stage's trajectory is walked by default.
RECORDED = [NAMES[0], *(pytest.param(name, marks=pytest.mark.slow) for name in NAMES[1:])]

OUR_NAMES = [
    ("class_embedding", "noise_level_embedding"),
    ("add_embedding", "text_pooling"),
    ("encoder_hid_proj", "text_projection"),
    ("down_blocks.", "down_"),
    ("up_blocks.", "up_"),
    ("mid_block", "mid"),
    (".resnets.", "/resnet_"),
    (".temp_convs.", "/temporal_conv_"),
    (".temp_attentions.", "/temporal_attention_"),
    (".attentions.", "/attention_"),
]


# Small networks that have every kind of block between them.
PIXEL = UNetConfig(
    in_channels=6,
    out_channels=6,
    channels=(32, 64),
    layers=(1, 1),
    attention=(False, True),
    attention_head_dim=(8, 8),
    spatial_heads="width",
    temporal_heads="number",
    space="pixel",
    text_dim=16,
    text_projection_dim=64,
    text_pooling_heads=2,
    noise_level=True,
    time_embed_dim=24,
    activation="gelu",
    time_embedding_activation="gelu",
    skip_time_activation=True,
    scale_shift=True,
    output_scale=1.5,
    mid_output_scale=1.5,
    norm_groups=8,
)
LATENT = UNetConfig(
    in_channels=4,
    out_channels=4,
    channels=(32,),
    layers=(1,),
    attention=(True,),
    attention_head_dim=(2,),
    spatial_heads="number",
    temporal_heads="number",
    space="latent",
    input_transformer_head_dim=4,
    text_dim=16,
    time_embed_dim=24,
    norm_groups=8,
)
# For what does not depend on there being several levels.
SHORT = dataclasses.replace(
    PIXEL, channels=(32,), layers=(1,), attention=(True,), attention_head_dim=(8,)
)
BATCH, FRAMES, HEIGHT, WIDTH, TOKENS = 2, 3, 8, 12, 5


def image(config: UNetConfig) -> UNetConfig:
    """The image denoiser that a video denoiser was inflated from."""
    return dataclasses.replace(config, temporal=False, input_transformer_head_dim=None)


def channels_last(x: np.ndarray) -> np.ndarray:
    """A recorded clip or image `(b, c, ...)` as a clip `(b, frames, h, w, c)`."""
    x = np.moveaxis(x, 1, -1)
    return x[:, None] if x.ndim == 4 else x


def channels_first(x: np.ndarray) -> np.ndarray:
    """A clip as PyTorch's `(b frames, c, h, w)`; embeddings as they are."""
    return x if x.ndim < 5 else np.moveaxis(x.reshape(-1, *x.shape[2:]), -1, 1)


class Run(NamedTuple):
    """A recorded call of a network, made again."""

    case: Golden
    sample: np.ndarray
    intermediates: dict[str, Any]


def recorded_inputs(case: Golden) -> list[np.ndarray]:
    inputs = [
        channels_last(case.inputs["sample"]),
        case.inputs["timestep"],
        case.inputs["encoder_hidden_states"],
    ]
    if "class_labels" in case.inputs:
        inputs.append(case.inputs["class_labels"])
    return inputs


@functools.cache
def run(name: str) -> Run:
    case = golden(name)
    module, params = loaded(network_folder(name))
    call = jax.jit(functools.partial(module.apply, capture_intermediates=True))
    out, state = call({"params": params}, *recorded_inputs(case))
    return Run(case, np.asarray(out), flatten_dict(state["intermediates"], sep="/"))


@pytest.mark.parametrize("name", RECORDED)
def test_predicts_as_recorded(name):
    result = run(name)
    assert result.sample.dtype == np.float32
    assert_close(result.sample, channels_last(result.case.outputs["sample"]), 2e-5)


def assert_predicts(name: str, dtype: Any, device: jax.Device) -> str:
    """Compares with the recording as sampling on a device computes; returns the error in words."""
    case, (module, params) = golden(name), loaded(network_folder(name))
    module = module.clone(dtype=dtype)
    kinds = sampling_params(module, dtype)
    with jax.set_mesh(make_mesh({}, [device])):
        params = jax.tree.map(
            lambda x, kind: sharding.put_array(x.astype(kind.dtype)), params, kinds
        )
        params = sharding.in_kernel_order(params)
        out = jax.jit(module.apply)({"params": params}, *recorded_inputs(case))
    return assert_precise(out, channels_last(case.outputs["sample"]), dtype, name)


@pytest.mark.slow
def test_predicts_as_recorded_in_bfloat16():
    assert_predicts("unet3d_latent", jnp.bfloat16, jax.devices("cpu")[0])


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("name", "dtype"),
    [*itertools.product(NAMES, (jnp.float32, jnp.float16)), (NAMES[0], jnp.bfloat16)],
)
def test_gpus_predict_as_recorded(name, dtype, tell):
    tell(assert_predicts(name, dtype, jax.devices()[0]))


@pytest.mark.parametrize("name", RECORDED)
def test_activations_are_as_recorded(name):
    result = run(name)
    recorded = {k: v for k, v in result.case.outputs.items() if k.startswith("mid.")}
    assert len(recorded) >= 9
    for key, expected in recorded.items():
        path = key.removeprefix("mid.")
        for torch, ours in OUR_NAMES:
            path = path.replace(torch, ours)
        (ours,) = result.intermediates[f"{path}/__call__"]
        # A level returns its output and its skip connections.
        ours = np.asarray(ours[0] if isinstance(ours, tuple) else ours)
        assert_close(channels_first(ours), expected, 2e-4, key)


def reached(gradient: dict[str, np.ndarray]) -> set[str]:
    """The parameters whose gradient is more than the rounding of an exact zero."""
    return {path for path, value in gradient.items() if np.abs(value).max() > 1e-5}


@pytest.mark.slow
def test_gradient_reaches_what_the_recording_says():
    case = golden("unet3d_latent")
    module, params = loaded(network_folder("unet3d_latent"))
    params = jax.tree.map(lambda v: v.astype(jnp.float32), params)
    inputs = recorded_inputs(case)
    shape = channels_last(case.outputs["sample"]).shape
    weights = np.random.default_rng(0).standard_normal(shape, np.float32)

    def loss(params):
        return (module.apply({"params": params}, *inputs) * weights).sum()

    gradient = flatten_dict(jax.jit(jax.grad(loss))(params), sep="/")
    # One channel a group: the norm takes away what these biases add.
    without = {TABLE.to_ours(key)[0] for key in case.meta["parameters_without_effect"]}
    assert without
    assert reached(gradient) == gradient.keys() - without


# --- behaviour, on small networks --------------------------------------------


def random_params(config: UNetConfig, seed: int = 0) -> dict[str, Any]:
    """Parameters of which none is zero, as no initialisation would make them."""
    rng = np.random.default_rng(seed)

    def draw(path: str, shape: tuple[int, ...]) -> np.ndarray:
        noise = rng.standard_normal(shape, np.float32)
        match path.rsplit("/", 1)[1]:
            case "kernel":
                return noise * np.float32(np.prod(shape[:-1]) ** -0.5)
            case "scale":
                return 1 + noise / 10
            case _:
                return noise / 10

    shapes = flatten_dict(abstract_params(UNet(config)), sep="/")
    return unflatten_dict({k: draw(k, v.shape) for k, v in shapes.items()}, sep="/")


def random_inputs(config: UNetConfig) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(1)
    sample = rng.standard_normal((BATCH, FRAMES, HEIGHT, WIDTH, config.in_channels), np.float32)
    text = rng.standard_normal((BATCH, TOKENS, config.text_dim), np.float32)
    level = (np.array([30, 250]),) if config.noise_level else ()
    return sample, np.array([500, 3]), text, *level


@functools.cache
def network(config: UNetConfig, dtype: Any = jnp.float32):
    """A compiled network; each shape it is called on compiles once for the whole module."""
    module = UNet(config, dtype)
    return jax.jit(lambda params, *inputs: module.apply({"params": params}, *inputs))


def test_gradient_reaches_every_parameter_of_an_image_network():
    config = image(PIXEL)
    module, inputs = UNet(config), random_inputs(config)
    weights = np.random.default_rng(2).standard_normal((*inputs[0].shape[:-1], 6), np.float32)

    def loss(params):
        return (module.apply({"params": params}, *inputs) * weights).sum()

    gradient = flatten_dict(jax.jit(jax.grad(loss))(random_params(config)), sep="/")
    # A bias that all keys have in common leaves a softmax as it is.
    assert reached(gradient) == gradient.keys() - {"text_pooling/to_k/bias"}


@pytest.mark.parametrize("config", [PIXEL, pytest.param(LATENT, marks=pytest.mark.slow)])
def test_inflation_with_zeros_leaves_the_image_network_as_it_was(config):
    params, inputs = random_params(config), random_inputs(config)
    flat = flatten_dict(params, sep="/")
    last = re.compile(
        r"(temporal_conv_\d/conv4|(temporal_attention_\d|input_transformer)/proj_out)/"
    )
    zeroed = {k: v * 0 if last.search(k) else v for k, v in flat.items()}
    spatial = {
        k: v for k, v in flat.items() if "temporal" not in k and "input_transformer" not in k
    }
    expected = network(image(config))(unflatten_dict(spatial, sep="/"), *inputs)
    video = network(config)
    assert_close(video(unflatten_dict(zeroed, sep="/"), *inputs), expected, 1e-6)
    assert np.abs(video(params, *inputs) - expected).max() > 1e-2


def test_an_image_network_takes_each_frame_alone():
    config = image(PIXEL)
    params, (sample, *rest) = random_params(config), random_inputs(config)
    net = network(config)
    together = np.asarray(net(params, sample, *rest))
    for k in range(FRAMES):
        alone = net(params, sample[:, k : k + 1], *rest)
        assert_close(together[:, k : k + 1], alone, 5e-6, f"frame {k}")


def test_a_video_network_sees_all_frames():
    params, (sample, *rest) = random_params(PIXEL), random_inputs(PIXEL)
    other = sample.copy()
    other[:, -1] *= -1
    net = network(PIXEL)
    change = np.abs(net(params, other, *rest) - net(params, sample, *rest))
    assert (change.max((0, 2, 3, 4)) > 1e-3).all()


@pytest.mark.slow
def test_clips_of_a_batch_do_not_see_each_other():
    params, inputs = random_params(SHORT), random_inputs(SHORT)
    net = network(SHORT)
    together = np.asarray(net(params, *inputs))
    other = [np.concatenate([x[:1], x[1:] + 7]) for x in inputs]
    changed = np.asarray(net(params, *other))
    np.testing.assert_array_equal(changed[0], together[0])
    assert np.abs(changed[1] - together[1]).max() > 1e-2
    alone = net(params, *(x[1:] for x in inputs))
    assert_close(alone, together[1:], 5e-6)


@pytest.mark.parametrize("argument", [1, 2, 3], ids=["timesteps", "text", "noise_level"])
def test_every_input_has_an_effect(argument):
    params, inputs = random_params(PIXEL), list(random_inputs(PIXEL))
    before = network(PIXEL)(params, *inputs)
    inputs[argument] = inputs[argument] + 5
    assert np.abs(network(PIXEL)(params, *inputs) - before).max() > 1e-3


@pytest.mark.slow
def test_half_precision_parameters_compute_as_if_cast():
    inputs = random_inputs(SHORT)
    half = jax.tree.map(lambda v: v.astype(np.float16), random_params(SHORT))
    full = jax.tree.map(lambda v: v.astype(np.float32), half)
    net = network(SHORT)
    assert_close(net(half, *inputs), net(full, *inputs), 5e-6)


def test_sixteen_bits_are_close_and_float16_closer(monkeypatch):
    params, inputs = random_params(SHORT), random_inputs(SHORT)
    exact = network(SHORT)(params, *inputs)
    # XLA for CPUs lacks the products of float16 that are summed in float32.
    monkeypatch.setattr(ops, "_xla", functools.partial(ops._chunked, ops.MAX_LOGIT_BYTES))
    errors = {}
    for dtype in (jnp.bfloat16, jnp.float16):
        out = network(SHORT, dtype)(params, *inputs)
        assert out.dtype == jnp.float32
        errors[dtype] = jnp.abs(out - exact).max() / jnp.abs(exact).max()
    assert errors[jnp.bfloat16] < 1e-1
    assert errors[jnp.float16] < errors[jnp.bfloat16] / 3


def kept_for_backward(config: UNetConfig, remat: str | None, mesh: AbstractMesh) -> list[Any]:
    """Shapes of what the backward pass of a step in bf16 needs, the parameters among them."""
    module, params = UNet(config, jnp.bfloat16, remat=remat), abstract_params(UNet(config))
    rngs = {"dropout": jax.random.key(0)}

    def backward(params, inputs):
        def run(params):
            return module.apply({"params": params}, *inputs, train=True, rngs=rngs)

        return jax.vjp(run, params)[1]

    with jax.sharding.use_abstract_mesh(mesh):
        return jax.tree.leaves(jax.eval_shape(backward, params, random_inputs(config)))


# Of two levels, so that they are resampled.
LATENTS = dataclasses.replace(
    LATENT, channels=(32, 32), layers=(1, 1), attention=(True, True), attention_head_dim=(2, 2)
)


@pytest.mark.parametrize(
    "config",
    [SHORT, *(pytest.param(config, marks=pytest.mark.slow) for config in (PIXEL, LATENTS))],
)
def test_remat_keeps_what_goes_from_layer_to_layer_alone(config, monkeypatch):
    monkeypatch.setattr(sharding, "MIN_SPLIT_SIZE", 0)
    mesh = AbstractMesh((1, 2, 1, 1), AXES, axis_types=(AxisType.Auto,) * len(AXES))
    flat = flatten_dict(abstract_params(UNet(config)), sep="/")
    params = flat.values()
    everything, kept = (
        kept_for_backward(config, remat, mesh) for remat in (None, "nothing_saveable")
    )
    own = sum(leaf.size for leaf in params)
    assert sum(leaf.size for leaf in kept) - own < (sum(leaf.size for leaf in everything) - own) / 8
    # Neither parameters as gathered, nor a layer's input together with its skip connection.
    shapes = {leaf.shape for leaf in params}
    assert not [leaf for leaf in kept if leaf.dtype == jnp.bfloat16 and leaf.shape in shapes]
    inputs = [leaf for leaf in kept if leaf.ndim == 5]
    assert max(leaf.shape[-1] for leaf in inputs) == max(config.channels)
    # What goes into each layer: of levels that are recomputed as one, fewer.
    layers = set(re.findall(r"^(?:down_\d|mid|up_\d)/\w+_\d/", "\n".join(flat), re.MULTILINE))
    assert len(inputs) >= len(layers)


def test_dropout_draws_three_masks_of_ten_percent():
    masks = dropout_masks(jax.random.key(0), (400, 1000))
    x = jnp.full(masks.shape, 2.0)
    kept = [np.asarray(dropout(x, masks, which)) for which in range(3)]
    for one in kept:
        assert set(np.unique(one)) == {0, np.float32(2 * 1024 / 922)}
        assert (one == 0).mean() == pytest.approx(0.1, abs=2e-3)
    # Independent of each other.
    assert np.logical_and.reduce([one == 0 for one in kept]).mean() == pytest.approx(1e-3, abs=2e-4)


def test_dropout_is_for_training():
    params, inputs = random_params(SHORT), random_inputs(SHORT)
    module = UNet(SHORT)

    @jax.jit
    def train(params, key, *inputs):
        return module.apply({"params": params}, *inputs, train=True, rngs={"dropout": key})

    out = [np.asarray(train(params, jax.random.key(seed), *inputs)) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(out[0], out[1])
    assert np.abs(out[0] - out[2]).max() > 1e-3
    assert np.abs(out[0] - network(SHORT)(params, *inputs)).max() > 1e-3
    with pytest.raises(InvalidRngError, match="dropout"):
        jax.eval_shape(lambda: module.apply({"params": params}, *inputs, train=True))


def test_other_shapes_than_recorded_are_taken():
    assert PIXEL.size_multiple == 2
    for batch, frames, height, width, tokens in ((1, 1, 2, 2, 1), (3, 16, 10, 6, 77)):
        inputs = (
            jnp.zeros((batch, frames, height, width, 6)),
            jnp.zeros(batch),
            jnp.zeros((batch, tokens, 16)),
            jnp.zeros(batch),
        )
        out, _ = jax.eval_shape(UNet(PIXEL).init_with_output, jax.random.key(0), *inputs)
        assert out.shape == (batch, frames, height, width, 6)


def replaced(position: int, shape: tuple[int, ...]):
    inputs = [jnp.zeros(x.shape) for x in random_inputs(PIXEL)]
    inputs[position] = jnp.zeros(shape)
    return inputs


@pytest.mark.parametrize(
    ("config", "inputs", "message"),
    [
        (PIXEL, replaced(0, (2, 3, 7, 12, 6)), "12x7 sample cannot be downsampled 1 times.* of 2"),
        (PIXEL, replaced(0, (2, 3, 8, 13, 6)), "13x8 sample cannot be downsampled 1 times.* of 2"),
        (PIXEL, replaced(0, (2, 3, 8, 12, 3)), "sample has shape .*3.*but must be .*width, 6"),
        (PIXEL, replaced(0, (2, 8, 12, 6)), "sample has shape .*but must be .batch, frames"),
        (PIXEL, replaced(1, ()), r"timesteps has shape \(\), but must be \(2,\)"),
        (PIXEL, replaced(1, (3,)), r"timesteps has shape \(3,\), but must be \(2,\)"),
        (PIXEL, replaced(2, (2, 5, 15)), r"text has shape .*but must be \(2, tokens, 16\)"),
        (PIXEL, replaced(2, (1, 5, 16)), r"text has shape .*but must be \(2, tokens, 16\)"),
        (PIXEL, replaced(2, (2, 16)), r"text has shape .*but must be \(2, tokens, 16\)"),
        (PIXEL, replaced(3, (1,)), r"noise_level has shape \(1,\), but must be \(2,\)"),
        (PIXEL, replaced(3, ()), r"noise_level has shape \(\), but must be \(2,\)"),
        (PIXEL, replaced(0, (2, 3, 8, 12, 6))[:3], "pass noise_level"),
        (
            dataclasses.replace(PIXEL, noise_level=False),
            replaced(0, (2, 3, 8, 12, 6)),
            "takes no noise_level",
        ),
    ],
)
def test_inputs_that_do_not_fit_are_refused(config, inputs, message):
    with pytest.raises(InputError, match=message) as error:
        jax.eval_shape(UNet(config).init, jax.random.key(0), *inputs)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("field", ["layers", "attention", "attention_head_dim"])
def test_every_level_has_its_settings(field):
    with pytest.raises(InputError, match=f"{field} has 1 levels, but channels has 2"):
        dataclasses.replace(PIXEL, **{field: getattr(PIXEL, field)[:1]})


def test_an_unknown_activation_is_refused():
    config = dataclasses.replace(PIXEL, activation="relu")
    with pytest.raises(InputError, match="'relu' is not one of gelu, silu"):
        abstract_params(UNet(config))
