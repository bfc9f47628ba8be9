"""2-D convolution of images, and of images that are upsampled first.

Both functions take the arguments of `jax.lax.conv_general_dilated`, so that `nn.Conv` can
call them as its `conv_general_dilated`. Arrays are `(batch, height, width, channels)`,
kernels `(height, width, in_channels, out_channels)`.

Both read the platform of the mesh set by `jax.set_mesh`; see `parallel.mesh.current_platform`.
"""

import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp

from show1_jax.parallel.mesh import current_platform

# XLA on CPUs multiplies matrices faster than it convolves where all images together have few
# positions and many channels. With 1,280 channels and 160 to 360 positions the product takes half
# the time; with 960 channels and 640 positions it takes the same time.
MAX_POSITIONS = 512
MIN_CHANNELS = 256


def convolve(
    x: jax.Array, kernel: jax.Array, strides: Any, padding: Any, **settings: Any
) -> jax.Array:
    """Convolves images: `jax.lax.conv_general_dilated`, or a matrix product on CPUs.

    CPUs multiply the kernel with each position's neighbours, side by side in the channels, if
    the images are small (`MAX_POSITIONS`, `MIN_CHANNELS`) or the kernel has one pixel.

    Reads the platform of the mesh set by `jax.set_mesh`.

    Args:
      x: `(batch, height, width, channels)`.
      kernel: `(rows, columns, channels, out_channels)`.
      strides: step down and to the right.
      padding: zeros before and after each of the two sides.
      **settings: other arguments of `jax.lax.conv_general_dilated`, as `nn.Conv` passes them.

    Returns:
      `(batch, height', width', out_channels)`.
    """
    sides = kernel.shape[:2]
    if current_platform()[0] != "cpu" or not (sides == (1, 1) or _is_small(x.shape)):
        return jax.lax.conv_general_dilated(x, kernel, strides, padding, **settings)
    padded = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    down, right = (size - side + 1 for size, side in zip(padded.shape[1:3], sides, strict=True))
    neighbours = [
        padded[:, i : i + down : strides[0], j : j + right : strides[1]]
        for i, j in itertools.product(*map(range, sides))
    ]
    return jnp.concatenate(neighbours, axis=-1) @ kernel.reshape(-1, kernel.shape[-1])


def upsample_and_convolve(
    x: jax.Array, kernel: jax.Array, strides: Any, padding: Any, **settings: Any
) -> jax.Array:
    """Computes `convolve(upsample(x), kernel, ...)` of a 3x3 kernel, on CPUs in 4/9 of the FLOPs.

    Each pixel of `x` becomes 2x2 equal pixels, so a 3x3 window of the larger image covers only
    2x2 different pixels of `x`. Each of the four new pixels is therefore a convolution of `x` with
    a 2x2 kernel, whose entries are sums of entries of the 3x3 kernel.

    Other platforms upsample first. (TPUs are limited by memory here: the autoencoder's decoder
    would gain 3 % by its roofline, and take longer to compile.) So do CPUs for images that are
    small in the sense of `convolve`, because summing the kernels would take longer.

    Reads the platform of the mesh set by `jax.set_mesh`.

    Args:
      x: `(batch, height, width, channels)`.
      kernel: `(3, 3, channels, out_channels)`.
      strides: `(1, 1)`.
      padding: one zero on each side.
      **settings: other arguments of `jax.lax.conv_general_dilated`, as `nn.Conv` passes them.

    Returns:
      `(batch, 2 * height, 2 * width, out_channels)`.
    """
    batch, height, width, channels = x.shape
    if current_platform()[0] != "cpu" or _is_small((batch, 2 * height, 2 * width, channels)):
        return convolve(upsample(x), kernel, strides, padding, **settings)

    def sums(kernel: jax.Array, axis: int) -> tuple[jax.Array, jax.Array]:
        first, middle, last = jnp.split(kernel, 3, axis)
        return (
            jnp.concatenate([first, middle + last], axis),
            jnp.concatenate([first + middle, last], axis),
        )

    def pixels(row: int, kernel: jax.Array) -> jax.Array:
        made = [
            convolve(x, part, strides, ((1 - row, row), (1 - column, column)), **settings)
            for column, part in enumerate(sums(kernel, 1))
        ]
        return jnp.stack(made, axis=3)

    rows = jnp.stack([pixels(row, part) for row, part in enumerate(sums(kernel, 0))], axis=2)
    return rows.reshape(batch, 2 * height, 2 * width, -1)


def downsample(x: jax.Array) -> jax.Array:
    """2x2 average pooling: `(..., 2h, 2w, c)` to `(..., h, w, c)`."""
    *lead, height, width, channels = x.shape
    return x.reshape(*lead, height // 2, 2, width // 2, 2, channels).mean((-4, -2))


def upsample(x: jax.Array) -> jax.Array:
    """Nearest-neighbour upsampling: `(..., h, w, c)` to `(..., 2h, 2w, c)`."""
    *lead, height, width, channels = x.shape
    x = jnp.broadcast_to(x[..., :, None, :, None, :], (*lead, height, 2, width, 2, channels))
    return x.reshape(*lead, 2 * height, 2 * width, channels)


def _is_small(shape: tuple[int, ...]) -> bool:
    return math.prod(shape[:-1]) <= MAX_POSITIONS and shape[-1] >= MIN_CHANNELS
