"""What makes an image denoiser a video denoiser: convolution and attention over frames.

Both add to their input, so that a new layer whose last projection is zero
leaves the image model as it was (Show-1, section 3.2, "temporal inflation").
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
        """`(batch, frames, h, w, c)` to `(batch, frames, h, w, channels)`."""
        width = x.shape[-1]
        init = nn.initializers.zeros if self.zero_init else nn.initializers.lecun_normal()
        kernel = self.param("kernel", init, (3, width, self.channels), self.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, (self.channels,), self.param_dtype)
        return convolve_frames(x, kernel.astype(self.dtype)) + bias.astype(self.dtype)


DROPPED = 102  # of 1,024: 10 %


def dropout_masks(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Three masks of what dropout keeps, of one draw: uint8, one in each of the last three bits."""
    bits = jax.random.bits(key, shape)
    kept = [((bits >> 10 * i) % 1024 >= DROPPED).astype(jnp.uint8) << i for i in range(3)]
    return kept[0] | kept[1] | kept[2]


def dropout(x: jax.Array, masks: jax.Array, which: int) -> jax.Array:
    """`x` where the mask `which` (0, 1 or 2) keeps it, scaled up, and else zero."""
    return jnp.where(masks >> which & 1, x * (1024 / (1024 - DROPPED)), 0)


class TemporalConv(nn.Module):
    """Four convolutions over frames with a residual around them; the last starts at zero."""

    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """`(batch, frames, h, w, c)` to the same shape; `train` turns on 10 % dropout."""
        types = dtypes(self)
        channels = x.shape[-1]
        x, pixels = to_pixels(x)
        h = x
        if train:
            key = self.make_rng("dropout")
            # Drawn for whole clips: they do not depend on which device has which pixels.
            masks = pixels.part(lambda shape: dropout_masks(key, shape), channels)
            # Else the compiler would draw them again, in long programs, wherever they are used.
            masks = jax.lax.optimization_barrier(masks)
        for i in (1, 2, 3, 4):
            # 32 groups whatever the model's setting, over the whole clip, and always SiLU.
            norm = GroupNorm(32, 1e-5, name=f"norm{i}", **types)
            h = nn.silu(norm(h, pixels.mean))
            if i > 1 and train:
                h = dropout(h, masks, i - 2)
            h = FrameConv(channels, zero_init=i == 4, name=f"conv{i}", **types)(h)
        return pixels.to_frames(x + h)


class TemporalTransformer(nn.Module):
    """A transformer block over the frames at each pixel: self-attention, twice.

    There is no positional encoding over frames and no mask, as in the released
    networks; order reaches it only through the temporal convolutions.
    """

    heads: int
    head_dim: int
    groups: int
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """`(batch, frames, h, w, c)` to the same shape."""
        types = dtypes(self)
        x, pixels = to_pixels(x)
        height, width = x.shape[2:4]
        h = GroupNorm(self.groups, 1e-6, name="norm", **types)(x, pixels.mean)
        h = rearrange(h, "b f h w c -> (b h w) f c")
        h = nn.Dense(self.heads * self.head_dim, name="proj_in", **types)(h)
        h = TransformerBlock(self.heads, self.head_dim, name="block_0", **types)(h)
        # A new one changes nothing, so that it can be added to a trained image network.
        h = nn.Dense(x.shape[-1], kernel_init=nn.initializers.zeros, name="proj_out", **types)(h)
        h = rearrange(h, "(b h w) f c -> b f h w c", h=height, w=width)
        return pixels.to_frames(x + h)
