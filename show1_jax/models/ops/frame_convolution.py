"""1-D convolution over the frames of a clip.

Reads the mesh set by `jax.set_mesh`: its platform (`parallel.mesh.current_platform`) and into
how many parts it splits a batch (`parallel.sharding.clips_of_device`).
"""

import jax
import jax.numpy as jnp
from einops import rearrange

from show1_jax.parallel.mesh import current_platform
from show1_jax.parallel.sharding import clips_of_device

# For fewer clips than this, XLA for TPUs moves pixels into the batch of each convolution and back.
# Rows of pixels as the batch avoid that. In training with dropout, clips are mapped over, and
# this function sees one at a time; rows of 12 clips move no more memory than the clips would.
MIN_CLIPS = 8


def convolve_frames(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolves three neighbouring frames at each pixel, with zeros before and after the clip.

    - On TPUs: a convolution. If a device has fewer than `MIN_CLIPS` clips, the rows of pixels
      become the batch, which takes a half to a third of the memory traffic.
    - On GPUs: a convolution of images whose rows are frames.
    - On CPUs: one matrix product over the gathered neighbours, which is faster.

    Reads the mesh set by `jax.set_mesh`.

    Args:
      x: `(batch, frames, h, w, c)`.
      kernel: `(3, c, channels)`; its dtype is the compute dtype.

    Returns:
      `(batch, frames, h, w, channels)`.
    """
    x = x.astype(kernel.dtype)
    platform, frames = current_platform()[0], x.shape[1]
    if platform == "gpu":
        images = rearrange(x, "b f h w c -> b f (h w) c")
        images = _convolve(images, kernel[:, None], "NHWC", "HWIO")
        return images.reshape(*x.shape[:-1], -1)
    if platform != "tpu":
        padded = jnp.pad(x, ((0, 0), (1, 1), (0, 0), (0, 0), (0, 0)))
        neighbours = jnp.concatenate([padded[:, i : i + frames] for i in range(3)], axis=-1)
        return neighbours @ kernel.reshape(-1, kernel.shape[-1])
    if clips_of_device(len(x)) >= MIN_CLIPS:
        return _convolve(x, kernel[:, None, None], "NDHWC", "DHWIO")
    rows = rearrange(x, "b f h w c -> (b h) f w c")
    rows = _convolve(rows, kernel[:, None], "NHWC", "HWIO")
    return rearrange(rows, "(b h) f w c -> b f h w c", h=x.shape[2])


def _convolve(x: jax.Array, kernel: jax.Array, axes: str, kernel_axes: str) -> jax.Array:
    padding = [(side // 2, side // 2) for side in kernel.shape[:-2]]
    strides = (1,) * len(padding)
    return jax.lax.conv_general_dilated(
        x, kernel, strides, padding, dimension_numbers=(axes, kernel_axes, axes)
    )
