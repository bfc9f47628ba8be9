"""Flax modules that act on each image alone: normalisation, time embedding, ResNet block.

Arrays are `(..., height, width, channels)` with any number of leading axes, so a clip is
an image with one more leading axis.
"""

from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from show1_jax.errors import InputError
from show1_jax.models.ops.activation import Activation
from show1_jax.models.ops.convolution import convolve, downsample, upsample, upsample_and_convolve

IMAGE_AXES = (-3, -2)


def dtypes(module: nn.Module) -> dict[str, Any]:
    """Returns a module's two dtypes, as keyword arguments for the modules inside it."""
    return {"dtype": module.dtype, "param_dtype": module.param_dtype}


class GroupNorm(nn.Module):
    """Group normalisation with fp32 statistics (Wu and He 2018) over one image or a whole clip.

    Averages positions first and then the channels of a group, in two passes. Flax's own
    splits the channels first, which takes 2 to 3 times as long on a CPU. Its one-pass
    variance, E[x^2] - E[x]^2, loses half the digits of fp32.

    Attributes:
      groups: number of groups that the channels are split into.
      eps: added to the variance.
      axes: axes of positions that share statistics.
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
        """Maps `(..., channels)` to the same shape in `dtype`.

        Args:
          x: `(..., channels)`.
          average: replaces the mean over `axes`, for the statistics of a whole clip.

        Raises:
          InputError: if the groups do not divide the channels.
        """
        channels = x.shape[-1]
        if channels % self.groups:
            raise InputError(
                f"{channels} channels cannot be split into {self.groups} groups; choose "
                "norm_groups that divide all channels"
            )
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
    """Builds a layer normalisation with fp32 statistics and PyTorch's epsilon."""
    return nn.LayerNorm(
        epsilon=1e-5, use_fast_variance=False, dtype=dtype, param_dtype=param_dtype, name=name
    )


def conv3x3(
    channels: int,
    name: str,
    dtype: DTypeLike,
    param_dtype: DTypeLike,
    *,
    stride: int = 1,
    upsampled: bool = False,
    kind: type[nn.Conv] = nn.Conv,
) -> nn.Conv:
    """Builds a 3x3 convolution of each image, zero-padded by one pixel on every side.

    Args:
      channels: of the result.
      name: of the module.
      dtype: compute dtype.
      param_dtype: dtype of the parameters.
      stride: step down and to the right.
      upsampled: whether to upsample the image by 2 first; see `ops.convolution.upsample`.
      kind: class to build, `nn.Conv` or a transformed one.
    """
    return kind(
        channels,
        (3, 3),
        strides=stride,
        padding=1,
        dtype=dtype,
        param_dtype=param_dtype,
        conv_general_dilated=upsample_and_convolve if upsampled else convolve,
        name=name,
    )


class TimeEmbedding(nn.Module):
    """Two linear layers on sinusoids of the timestep or the noise level, in fp32."""

    channels: int
    activation: Activation
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, sinusoids: jax.Array) -> jax.Array:
        """Maps `(batch, sinusoids)` to `(batch, channels)`, fp32."""
        # In bf16, neighbouring timesteps would have equal embeddings.
        types: Any = {"dtype": jnp.float32, "param_dtype": self.param_dtype}
        x = nn.Dense(self.channels, name="linear_1", **types)(sinusoids)
        return nn.Dense(self.channels, name="linear_2", **types)(self.activation(x))


class ResnetBlock(nn.Module):
    """Residual block of two 3x3 convolutions, conditioned on the time embedding.

    Attributes:
      channels: of the result.
      groups: groups of both normalisations.
      eps: epsilon of both normalisations.
      activation: before each convolution.
      scale_shift: whether the time embedding scales and shifts the second normalisation
        (AdaGN; Dhariwal and Nichol 2021, section 3). Otherwise it is added before it.
      skip_time_act: whether to use the time embedding without an activation.
      output_scale: the sum of both branches is divided by it.
      resample: "down" or "up" resamples both branches by 2.
      dtype: compute dtype.
      param_dtype: dtype of the parameters.
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
        """Maps `(batch, ..., h, w, c)` to `(batch, ..., h', w', channels)`.

        Args:
          x: `(batch, ..., h, w, c)`.
          time: time embedding, `(batch, d)`.
          skip: `(batch, ..., h, w, s)`, concatenated to the channels of `x`. That happens in
            here, so that rematerialisation does not keep the concatenation.
        """
        types = dtypes(self)
        if skip is not None:
            x = jnp.concatenate([x, skip], axis=-1)
        h = GroupNorm(self.groups, self.eps, name="norm1", **types)(x)
        h = self.activation(h)
        if self.resample == "down":
            x, h = downsample(x), downsample(h)
        elif self.resample == "up":
            x = upsample(x)  # `conv1` upsamples `h`
        h = conv3x3(self.channels, "conv1", upsampled=self.resample == "up", **types)(h)

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
                conv_general_dilated=convolve,
                name="conv_shortcut",
                **types,
            )(x)
        return (x + h) / self.output_scale
