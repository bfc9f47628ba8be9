"""Adapters put into a network's parameters, at the timesteps at which each holds."""

from collections.abc import Sequence
from typing import Any

from show1_jax.adapters.files import Adapter, apply_adapters
from show1_jax.stages.sampling import ByTimestep


def adapted(params: Any, adapters: Sequence[tuple[Adapter, float]]) -> Any:
    """`apply_adapters` at the timesteps at which each holds.

    Args:
      params: the network's.
      adapters: with weights.

    Returns:
      A tree like `params`, or `ByTimestep` if adapters are for some timesteps alone.

    Raises:
      InputError: if one was made for another network.
    """
    bounds = {0} | {bound for adapter, _ in adapters for bound in adapter.timesteps or ()}
    parts, trees = [], {}
    for first in sorted(bounds):
        held = tuple(i for i, (adapter, _) in enumerate(adapters) if adapter.holds(first))
        if held not in trees:
            trees[held] = apply_adapters(params, [adapters[i] for i in held])
        parts.append((first, trees[held]))
    return ByTimestep(tuple(parts)) if len(parts) > 1 else parts[0][1]
