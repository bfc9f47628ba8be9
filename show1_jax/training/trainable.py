"""Which of a network's parameters are trained."""

import re
from typing import Any

from flax.traverse_util import flatten_dict, unflatten_dict

from show1_jax.errors import InputError

TEMPORAL = r".*\b(temporal_conv|temporal_attention|input_transformer)"
TRAINABLE = {
    "all": ".*",
    "temporal": TEMPORAL,
    "temporal_attention": r".*\btemporal_attention",
    "temporal_attention_qkv": r".*\btemporal_attention.*/to_[qkv]/",
}


def is_temporal(path: str) -> bool:
    """Whether a parameter with this slashed path mixes frames."""
    return re.match(TEMPORAL, path) is not None


def split(params: Any, choice: str) -> tuple[Any, Any]:
    """Splits a parameter tree into what is trained and what is frozen.

    Args:
      params: nested dictionaries.
      choice: a name in `TRAINABLE`.

    Returns:
      Two trees that `merge` puts together again.

    Raises:
      InputError: if the name is unknown, or names nothing that the network has.
    """
    if choice not in TRAINABLE:
        raise InputError(f"trainable is {choice!r}, not one of {', '.join(TRAINABLE)}")
    pattern = re.compile(TRAINABLE[choice])
    flat = flatten_dict(params, sep="/")
    chosen = {path: leaf for path, leaf in flat.items() if pattern.match(path)}
    if not chosen:
        raise InputError(f"trainable is {choice!r}, but the network has nothing of that kind")
    rest = {path: leaf for path, leaf in flat.items() if path not in chosen}
    return unflatten_dict(chosen, sep="/"), unflatten_dict(rest, sep="/")


def merge(trained: Any, frozen: Any) -> Any:
    """The whole tree of two that `split` made."""
    return unflatten_dict(flatten_dict(frozen) | flatten_dict(trained))
