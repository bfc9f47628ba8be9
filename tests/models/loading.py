"""Recorded weights as our parameters."""

import numpy as np

from show1_jax.checkpoints.keys import KeyTable


def load(weights: dict[str, np.ndarray], table: KeyTable) -> dict:
    """The parameter tree of PyTorch weights."""
    params: dict = {}
    for key, value in weights.items():
        if key in table.buffers:
            continue
        path, layout = table.to_ours(key)
        *parents, name = path.split("/")
        node = params
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = np.ascontiguousarray(layout.to_jax(value))
    return params


def shapes(tree) -> dict:
    """Every parameter's shape, to compare two trees."""
    import jax

    return jax.tree.map(lambda leaf: tuple(leaf.shape), tree)


def count(tree) -> int:
    """The number of parameters in a tree."""
    import jax

    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))
