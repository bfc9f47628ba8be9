"""Temporal modules, which turn an image denoiser into a video denoiser.

They are convolution and attention over frames, each with a residual connection. The last
projection is initialised to zero, so that a new module does not change the image denoiser
(Show-1, section 3.2, "temporal inflation").

They call `parallel.frames.to_pixels`, which reads how `parallel.frames.over_frames` has split the
clips, and ops that read the mesh set by `jax.set_mesh`.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from jax.typing import DTypeLike

from show1_jax.models.attention import TransformerBlock
from show1_jax.models.layers import GroupNorm, dtypes
from show1_jax.models.ops.frame_convolution import convolve_frames
from show1_jax.parallel.frames import to_pixels


class FrameConv(nn.Module):
    """Convolution over three neighbouring frames at each pixel, with a bias."""

    channels: int
    zero_init: bool = False
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `(batch, frames, h, w, c)` to `(batch, frames, h, w, channels)`."""
        width = x.shape[-1]
        init = nn.initializers.zeros if self.zero_init else nn.initializers.lecun_normal()
        kernel = self.param("kernel", init, (3, width, self.channels), self.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, (self.channels,), self.param_dtype)
        return convolve_frames(x, kernel.astype(self.dtype)) + bias.astype(self.dtype)


DROPPED = 102  # of 1,024, which is 10 %


def dropout_masks(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Draws three dropout masks at once: uint8, with a mask in each of the last three bits."""
    bits = jax.random.bits(key, shape)
    kept = [((bits >> 10 * i) % 1024 >= DROPPED).astype(jnp.uint8) << i for i in range(3)]
    return kept[0] | kept[1] | kept[2]


def dropout(x: jax.Array, masks: jax.Array, which: int) -> jax.Array:
    """Applies the mask number `which` (0, 1 or 2) of `dropout_masks`, and scales what it keeps."""
    return jnp.where(masks >> which & 1, x * (1024 / (1024 - DROPPED)), 0)


class TemporalConv(nn.Module):
    """Four convolutions over frames and a residual connection; the last is initialised to zero."""

    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Maps `(batch, frames, h, w, c)` to the same shape; `train` enables 10 % dropout."""
        types = dtypes(self)
        channels = x.shape[-1]
        x, pixels = to_pixels(x)
        h = x
        if train:
            key = self.make_rng("dropout")
            # Drawn for whole clips, so that they do not depend on which device has which pixels.
            masks = pixels.part(lambda shape: dropout_masks(key, shape), channels)
            # Without the barrier, the compiler draws them again wherever they are used.
            masks = jax.lax.optimization_barrier(masks)
        for i in (1, 2, 3, 4):
            # Always 32 groups, over the whole clip, and SiLU, whatever the model's settings.
            norm = GroupNorm(32, 1e-5, name=f"norm{i}", **types)
            h = nn.silu(norm(h, pixels.mean))
            if i > 1 and train:
                h = dropout(h, masks, i - 2)
            h = FrameConv(channels, zero_init=i == 4, name=f"conv{i}", **types)(h)
        return pixels.to_frames(x + h)


class TemporalTransformer(nn.Module):
    """A transformer block over the frames at each pixel: self-attention, twice.

    There is no positional encoding of frames and no mask, like in the released networks. Only the
    temporal convolutions know the order of frames.
    """

    heads: int
    head_dim: int
    groups: int
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `(batch, frames, h, w, c)` to the same shape."""
        types = dtypes(self)
        x, pixels = to_pixels(x)
        height, width = x.shape[2:4]
        h = GroupNorm(self.groups, 1e-6, name="norm", **types)(x, pixels.mean)
        h = rearrange(h, "b f h w c -> (b h w) f c")
        h = nn.Dense(self.heads * self.head_dim, name="proj_in", **types)(h)
        h = TransformerBlock(self.heads, self.head_dim, name="block_0", **types)(h)
        # Zero, so that a new module can be added to a trained image network.
        h = nn.Dense(x.shape[-1], kernel_init=nn.initializers.zeros, name="proj_out", **types)(h)
        h = rearrange(h, "(b h w) f c -> b f h w c", h=height, w=width)
        return pixels.to_frames(x + h)
