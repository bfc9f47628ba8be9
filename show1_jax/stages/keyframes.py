"""Stage 1, keyframes: text in, a few small frames that follow it out (Show-1, section 3.2).

The denoiser is conditioned on nothing but the text. It is sampled from noise.
Adapters change how it makes things move (section 3.7).
"""

from collections.abc import Sequence
from typing import Any

import jax

from show1_jax.adapters.files import Adapter, apply_adapters
from show1_jax.stages.sampling import (
    START,
    ByTimestep,
    Conditions,
    Denoiser,
    Progress,
    clip_keys,
    draw,
    run,
)
from show1_jax.stages.training import Example

STAGE = "keyframes"


def sample(
    denoiser: Denoiser,
    params: Any,
    text: jax.Array,
    seeds: jax.Array,
    guidance: jax.Array,
    size: tuple[int, int, int],
    progress: Progress | None = None,
) -> jax.Array:
    """Samples the keyframes of a batch of prompts.

    Args:
      denoiser: network and solver.
      params: the network's parameters, or `ByTimestep`.
      text: `(2, batch, tokens, width)` T5 embeddings, negative prompts first.
      seeds: `(batch,)`.
      guidance: guidance scale.
      size: frames, height and width in pixels.
      progress: told how many steps are done.

    Returns:
      `(batch, frames, height, width, 3)` in [-1, 1].

    Raises:
      InputError: if the denoiser cannot divide the size.
    """
    keys = clip_keys(seeds, STAGE)
    start = draw(keys, START, (*size, 3))
    return run(denoiser, params, start, Conditions(text, guidance, keys), progress)


def example(video: jax.Array) -> Example:
    """The training example of keyframes `(batch, frames, height, width, 3)`: they alone."""
    return Example(video)


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
