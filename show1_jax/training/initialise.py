"""What a network's parameters are before training: random, or another network's."""

from typing import Any

import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from show1_jax.errors import InputError
from show1_jax.training.trainable import is_temporal

CONV_IN = "conv_in/kernel"


def new_paths(fresh: Any, source: Any) -> list[str]:
    """Which parameters `start_from` does not take, or not whole, from another network.

    Args:
      fresh: parameters of the network to be trained, or their shapes.
      source: those to take.

    Returns:
      Their slashed paths, in order.
    """
    ours, theirs = flatten_dict(fresh, sep="/"), flatten_dict(source, sep="/")
    return sorted(
        path for path in ours if path not in theirs or theirs[path].shape != ours[path].shape
    )


def start_from(fresh: Any, source: Any, where: str) -> Any:
    """Puts another network's parameters into a fresh tree.

    Temporal layers that the source lacks stay fresh, and then change nothing:
    a video network starts as the image network it was given, frame by frame
    (temporal inflation). If the first convolution takes more channels than the
    source's, their weights are zero: a network given a new condition begins by
    not seeing it.

    Args:
      fresh: parameters of the network to be trained.
      source: those to take.
      where: what to call the source in messages.

    Returns:
      A tree like `fresh`, in its dtypes.

    Raises:
      InputError: if anything else differs.
    """
    ours, theirs = flatten_dict(fresh, sep="/"), flatten_dict(source, sep="/")
    result = {}
    for path, leaf in ours.items():
        if path not in theirs and is_temporal(path):
            result[path] = leaf
            continue
        found = theirs.get(path)
        if found is not None and path == CONV_IN and found.shape[2] < leaf.shape[2]:
            missing = leaf.shape[2] - found.shape[2]
            found = jnp.pad(found, ((0, 0), (0, 0), (0, missing), (0, 0)))
        if found is None or found.shape != leaf.shape:
            held = "lacks it" if found is None else f"has {found.shape}"
            raise InputError(
                f"{where} cannot initialise this network: {path} is {leaf.shape}, it {held}"
            )
        result[path] = jnp.asarray(found, leaf.dtype)
    if unknown := sorted(theirs.keys() - ours.keys()):
        raise InputError(f"{where} cannot initialise this network, which lacks {unknown[0]}")
    return unflatten_dict(result, sep="/")
