"""LoRA: low-rank changes beside a network's frozen matrices (Hu et al. 2021, arXiv 2106.09685).

The two factors of a layer's change lie beside its kernel in the parameter
tree. `apply_lora` adds what they make to what the layer makes; no module knows
of it, and the whole change of a kernel is never computed.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from show1_jax.errors import InputError
from show1_jax.models.ops.frame_convolution import convolve_frames
from show1_jax.models.temporal import FrameConv
from show1_jax.training.trainable import split

A, B = "lora_a", "lora_b"
KERNEL = "/kernel"


def new_lora(params: Any, choice: str, rank: int, key: jax.Array) -> Any:
    """The factors of a change that is zero: A random, B zero (section 4.1).

    Args:
      params: the network's.
      choice: which layers, a name in `trainable.TRAINABLE`. Of them, those with
        a matrix: `nn.Dense` and `FrameConv`.
      rank: of the change of each layer.
      key: a random key.

    Returns:
      A tree for `trainable.merge(lora, params)`: fp32 factors `(in, rank)`, or
      `(3, in, rank)` of a convolution over frames, and `(rank, out)`.

    Raises:
      InputError: if the rank is less than 1, or there is no such layer.
    """
    if rank < 1:
        raise InputError(f"rank is {rank}, but must be at least 1")
    chosen, _ = split(params, choice)
    factors: dict[str, jax.Array] = {}
    for i, (path, kernel) in enumerate(sorted(flatten_dict(chosen, sep="/").items())):
        if not path.endswith(KERNEL) or kernel.ndim > 3:
            continue
        *rest, width, channels = kernel.shape
        bound = width**-0.5
        shape = (*rest, width, rank)
        parent = path.removesuffix(KERNEL)
        a = jax.random.uniform(jax.random.fold_in(key, i), shape, minval=-bound, maxval=bound)
        factors |= {f"{parent}/{A}": a, f"{parent}/{B}": jnp.zeros((rank, channels))}
    return unflatten_dict(factors, sep="/")


def apply_lora(next_function: Any, args: Any, kwargs: Any, context: Any) -> Any:
    """For `flax.linen.intercept_methods`: adds the changes of layers that have some.

    The factors are found among the layer's parameters.
    """
    output, module = next_function(*args, **kwargs), context.module
    if context.method_name != "__call__" or not module.has_variable("params", A):
        return output
    a, b = (module.get_variable("params", name).astype(output.dtype) for name in (A, B))
    (x,) = args
    inner = convolve_frames(x, a) if isinstance(module, FrameConv) else x.astype(a.dtype) @ a
    return output + inner @ b
