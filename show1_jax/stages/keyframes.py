"""Stage 1, keyframes: text in, a few small frames that follow it out (Show-1, section 3.2).

The denoiser is conditioned on nothing but the text. It is sampled from noise.
Adapters change how it makes things move (section 3.7).
"""

from collections.abc import Sequence
from typing import Any

import jax

from show1_jax.checkpoints.adapters import Adapter, apply_adapters
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
    bounds = {bound for adapter, _ in adapters for bound in adapter.timesteps or ()}
    parts = tuple(
        (first, apply_adapters(params, [pair for pair in adapters if pair[0].holds(first)]))
        for first in sorted({0} | bounds)
    )
    return ByTimestep(parts) if bounds else parts[0][1]
