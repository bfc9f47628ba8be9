"""Layers that act on each image alone: normalisation, embeddings, the ResNet block.

Arrays are channels last with any number of leading axes, `(..., height, width,
channels)`: a clip is just an image with one more leading axis.
"""

import itertools
import math
from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from show1_jax.errors import InputError
from show1_jax.parallel.mesh import target

Activation = Callable[[jax.Array], jax.Array]

IMAGE_AXES = (-3, -2)


def dtypes(module: nn.Module) -> dict[str, Any]:
    """The two dtypes of a module, as keyword arguments for the modules inside it."""
    return {"dtype": module.dtype, "param_dtype": module.param_dtype}


def activation(name: str) -> Activation:
    """The activation a configuration names; GELU is the exact one everywhere but in T5.

    Raises:
      InputError: if the name is neither "gelu" nor "silu".
    """
    known: dict[str, Activation] = {"gelu": exact_gelu, "silu": nn.silu, "swish": nn.silu}
    if name not in known:
        raise InputError(f"activation {name!r} is not one of {', '.join(known)}")
    return known[name]


@jax.custom_jvp
def exact_gelu(x: jax.Array) -> jax.Array:
    """GELU with the error function (Hendrycks and Gimpel, eq. 2), not its tanh approximation.

    Flax's, of the complementary function, takes six times as long on CPUs.
    """
    wide = x.astype(jnp.float32)
    return (wide * _normal_cdf(wide)).astype(x.dtype)


@exact_gelu.defjvp
def _exact_gelu_jvp(
    primals: tuple[jax.Array], tangents: tuple[jax.Array]
) -> tuple[jax.Array, jax.Array]:
    """One array is kept for the backward pass, in the dtype of `x`."""
    (x,), (tangent,) = primals, tangents
    wide = x.astype(jnp.float32)
    density = jnp.exp(-0.5 * jnp.square(wide)) * (2 * math.pi) ** -0.5
    slope = (_normal_cdf(wide) + wide * density).astype(x.dtype)
    return exact_gelu(x), slope * tangent


def _normal_cdf(x: jax.Array) -> jax.Array:
    return 0.5 + 0.5 * jax.lax.erf(x * 0.5**0.5)


class GroupNorm(nn.Module):
    """Group normalisation with fp32 statistics (Wu and He 2018) over one image, or a whole clip.

    Sums positions before it sums the channels of a group, in two passes.
    Flax's own splits the channels first and took 2 to 3 times as long on a
    CPU; its faster variance, E[x^2] - E[x]^2, loses half the digits of fp32.

    Attributes:
      groups: how many groups the channels are split into.
      eps: added to the variance.
      axes: the axes of positions that share statistics.
    """

    groups: int
    eps: float
    axes: tuple[int, ...] = IMAGE_AXES
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: jax.Array, average: Callable[[jax.Array], jax.Array] | None = None
    ) -> jax.Array:
        """`(..., channels)` to the same shape in `dtype`.

        `average` takes the place of the mean over `axes`, for a whole clip's statistics.
        """
        channels = x.shape[-1]
        if channels % self.groups:
            raise InputError(f"{channels} channels cannot be normalised in {self.groups} groups")
        scale = self.param("scale", nn.initializers.ones, (channels,), self.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, (channels,), self.param_dtype)

        def mean(x: jax.Array) -> jax.Array:
            each = x.mean(self.axes, keepdims=True) if average is None else average(x)
            grouped = each.reshape(*each.shape[:-1], self.groups, -1).mean(-1)
            return jnp.repeat(grouped, channels // self.groups, axis=-1)

        x = x.astype(jnp.float32)
        x = x - mean(x)
        x = x * (jax.lax.rsqrt(mean(jnp.square(x)) + self.eps) * scale.astype(jnp.float32))
        return (x + bias.astype(jnp.float32)).astype(self.dtype)


def layer_norm(name: str, dtype: DTypeLike, param_dtype: DTypeLike) -> nn.LayerNorm:
    """Layer normalisation with fp32 statistics and PyTorch's epsilon."""
    return nn.LayerNorm(
        epsilon=1e-5, use_fast_variance=False, dtype=dtype, param_dtype=param_dtype, name=name
    )


# Images of few positions, all together, and many channels XLA multiplies faster than it convolves
# on CPUs: 1,280 channels twice as fast at 160 to 360 positions; 960 as fast at 640. ResNet
# blocks' shortcuts, kernels of one pixel, it does of any image.
FEW_POSITIONS = 512
MANY_CHANNELS = 256


def _convolve(
    x: jax.Array, kernel: jax.Array, strides: Any, padding: Any, **settings: Any
) -> jax.Array:
    """`jax.lax.conv_general_dilated`, on CPUs of small images as a product over neighbours."""
    sides = kernel.shape[:2]
    if target()[0] != "cpu" or not (sides == (1, 1) or _is_small(x.shape)):
        return jax.lax.conv_general_dilated(x, kernel, strides, padding, **settings)
    padded = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    down, right = (size - side + 1 for size, side in zip(padded.shape[1:3], sides, strict=True))
    neighbours = [
        padded[:, i : i + down : strides[0], j : j + right : strides[1]]
        for i, j in itertools.product(*map(range, sides))
    ]
    return jnp.concatenate(neighbours, axis=-1) @ kernel.reshape(-1, kernel.shape[-1])


def _is_small(shape: tuple[int, ...]) -> bool:
    return math.prod(shape[:-1]) <= FEW_POSITIONS and shape[-1] >= MANY_CHANNELS


def _convolve_doubled(
    x: jax.Array, kernel: jax.Array, strides: Any, padding: Any, **settings: Any
) -> jax.Array:
    """`_convolve` with a 3x3 kernel of `double(x)`, on CPUs for 4/9 of its FLOPs.

    Among three neighbours there two are the same pixel of `x`. So each of the four pixels that
    one becomes is a convolution of `x` with 2x2 sums of the kernel. (On TPUs memory is what
    takes time: the autoencoder's decoder would gain 3 % by its roofline, and compile longer.)
    """
    batch, height, width, channels = x.shape
    # Of small images the sums take longer than what they spare.
    if target()[0] != "cpu" or _is_small((batch, 2 * height, 2 * width, channels)):
        return _convolve(double(x), kernel, strides, padding, **settings)

    def sums(kernel: jax.Array, axis: int) -> tuple[jax.Array, jax.Array]:
        first, middle, last = jnp.split(kernel, 3, axis)
        return (
            jnp.concatenate([first, middle + last], axis),
            jnp.concatenate([first + middle, last], axis),
        )

    def pixels(row: int, kernel: jax.Array) -> jax.Array:
        made = [
            _convolve(x, part, strides, ((1 - row, row), (1 - column, column)), **settings)
            for column, part in enumerate(sums(kernel, 1))
        ]
        return jnp.stack(made, axis=3)

    rows = jnp.stack([pixels(row, part) for row, part in enumerate(sums(kernel, 0))], axis=2)
    return rows.reshape(batch, 2 * height, 2 * width, -1)


def conv3x3(
    channels: int,
    name: str,
    dtype: DTypeLike,
    param_dtype: DTypeLike,
    stride: int = 1,
    doubled: bool = False,
    kind: type[nn.Conv] = nn.Conv,
) -> nn.Conv:
    """A 3x3 convolution over each image, zero-padded by one pixel on every side.

    With `doubled` of the image in twice its height and width (`double`).
    """
    return kind(
        channels,
        (3, 3),
        strides=stride,
        padding=1,
        dtype=dtype,
        param_dtype=param_dtype,
        conv_general_dilated=_convolve_doubled if doubled else _convolve,
        name=name,
    )


def halve(x: jax.Array) -> jax.Array:
    """2x2 average pooling: `(..., 2h, 2w, c)` to `(..., h, w, c)`."""
    *lead, height, width, channels = x.shape
    return x.reshape(*lead, height // 2, 2, width // 2, 2, channels).mean((-4, -2))


def double(x: jax.Array) -> jax.Array:
    """Nearest-neighbour upsampling: `(..., h, w, c)` to `(..., 2h, 2w, c)`."""
    *lead, height, width, channels = x.shape
    x = jnp.broadcast_to(x[..., :, None, :, None, :], (*lead, height, 2, width, 2, channels))
    return x.reshape(*lead, 2 * height, 2 * width, channels)


def sinusoidal_embedding(positions: jax.Array, channels: int) -> jax.Array:
    """Sinusoids of `positions`, `(batch,)` to `(batch, channels)` fp32, cosines first.

    Ho et al. 2020, appendix B, after Vaswani et al. 2017, section 3.5.
    """
    half = channels // 2
    frequencies = jnp.exp(-math.log(10000.0) * jnp.arange(half, dtype=jnp.float32) / half)
    angles = positions.astype(jnp.float32)[:, None] * frequencies
    embedding = jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)
    return jnp.pad(embedding, ((0, 0), (0, channels % 2)))


class TimeEmbedding(nn.Module):
    """Two linear layers on sinusoids of the timestep (or of the noise level), in fp32."""

    channels: int
    activation: Activation
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, sinusoids: jax.Array) -> jax.Array:
        """`(batch, sinusoids)` to `(batch, channels)`, fp32."""
        # In bf16 neighbouring timesteps would share an embedding.
        types: Any = {"dtype": jnp.float32, "param_dtype": self.param_dtype}
        x = nn.Dense(self.channels, name="linear_1", **types)(sinusoids)
        return nn.Dense(self.channels, name="linear_2", **types)(self.activation(x))


class ResnetBlock(nn.Module):
    """Residual block of two 3x3 convolutions, told the time, that may resample.

    With `scale_shift` the time embedding scales and shifts the second norm
    (Dhariwal and Nichol 2021, section 3, AdaGN), else it is added before it.
    `resample` halves or doubles the image on both branches.
    """

    channels: int
    groups: int
    eps: float
    activation: Activation
    scale_shift: bool = False
    skip_time_act: bool = False
    output_scale: float = 1.0
    resample: Literal["down", "up"] | None = None
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: jax.Array, time: jax.Array | None = None, skip: jax.Array | None = None
    ) -> jax.Array:
        """Maps `(batch, ..., h, w, c)` and `(batch, d)` to `(batch, ..., h', w', channels)`.

        `skip` is put beside the channels of `x`, in here so that nobody keeps both together.
        """
        types = dtypes(self)
        if skip is not None:
            x = jnp.concatenate([x, skip], axis=-1)
        h = GroupNorm(self.groups, self.eps, name="norm1", **types)(x)
        h = self.activation(h)
        if self.resample is not None:
            x, h = (halve(x), halve(h)) if self.resample == "down" else (double(x), h)
        h = conv3x3(self.channels, "conv1", doubled=self.resample == "up", **types)(h)

        shift = jnp.zeros((), h.dtype)
        if time is not None:
            time = time if self.skip_time_act else self.activation(time)
            width = self.channels * (2 if self.scale_shift else 1)
            time = nn.Dense(width, name="time_emb_proj", **types)(time)
            shift = time.reshape(time.shape[0], *(1,) * (h.ndim - 2), width)
        if self.scale_shift:
            scale, shift = jnp.split(shift, 2, axis=-1)
            h = GroupNorm(self.groups, self.eps, name="norm2", **types)(h) * (1 + scale) + shift
        else:
            h = GroupNorm(self.groups, self.eps, name="norm2", **types)(h + shift)
        h = conv3x3(self.channels, "conv2", **types)(self.activation(h))

        if x.shape[-1] != self.channels:
            x = nn.Conv(
                self.channels,
                (1, 1),
                padding=0,
                conv_general_dilated=_convolve,
                name="conv_shortcut",
                **types,
            )(x)
        return (x + h) / self.output_scale
