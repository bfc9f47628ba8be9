"""AdamW with warm-up, cosine decay and clipping; the average of the parameters comes last.

The exponential moving average is a transformation of the chain, so that it is
checkpointed, restored and sharded with the rest of the optimizer's state.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict


class EmaState(NamedTuple):
    """Updates so far, and the average of the parameters, in fp32."""

    updates: jax.Array
    average: Any


def ema(decay: float) -> optax.GradientTransformation:
    """Averages the parameters that the updates lead to, and passes the updates on.

    Update number t (from 0) has the decay `min(decay, (1 + t) / (10 + t))`, so
    that a short run is not averaged with where it began.

    Args:
      decay: of the average, at most 1.
    """

    def init(params: Any) -> EmaState:
        # A copy: the state must not share memory with the parameters, which are donated too.
        average = jax.tree.map(lambda leaf: jnp.array(leaf, jnp.float32, copy=True), params)
        return EmaState(jnp.zeros([], jnp.int32), average)

    def update(updates: Any, state: EmaState, params: Any = None) -> tuple[Any, EmaState]:
        now = jnp.minimum(decay, (1 + state.updates) / (10 + state.updates))
        average = jax.tree.map(
            lambda old, new: now * old + (1 - now) * new.astype(jnp.float32),
            state.average,
            optax.apply_updates(params, updates),
        )
        return updates, EmaState(state.updates + 1, average)

    return optax.GradientTransformation(init, update)


def learning_rate(config: ConfigDict) -> optax.Schedule:
    """Linear warm-up to `learning_rate`, then half a cosine down to 0 at `steps`."""
    warmup = min(config.warmup_steps, config.steps - 1)
    return optax.warmup_cosine_decay_schedule(
        0.0 if warmup else config.learning_rate, config.learning_rate, warmup, config.steps
    )


def make_optimizer(config: ConfigDict) -> optax.GradientTransformation:
    """The optimizer that a config's `train` section describes.

    Weight decay leaves vectors alone: norms and biases.
    """
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(
            learning_rate(config),
            b2=config.b2,
            weight_decay=config.weight_decay,
            mask=lambda params: jax.tree.map(lambda leaf: leaf.ndim > 1, params),
        ),
        ema(config.ema_decay),
    )


def averaged(optimizer_state: Any) -> Any:
    """The averaged parameters out of the state of `make_optimizer`'s chain."""
    return optimizer_state[-1].average
