"""One step of training: the maths, and its compiled form."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from show1_jax.training.trainable import merge

Loss = Callable[[Any, Any], jax.Array]
"""Parameters and prepared batch to the `(batch,)` losses."""

Prepare = Callable[[jax.Array, Any, dict[str, jax.Array]], Any]
"""Random key, frozen networks' parameters and batch to what a `Loss` takes."""


class Recipe(NamedTuple):
    """What a step computes.

    Attributes:
      prepare: makes all random draws for a batch.
      loss: the loss of a prepared batch.
      optimizer: what to do with the gradients.
      accumulate: into how many parts the batch is split, one after the other.
    """

    prepare: Prepare
    loss: Loss
    optimizer: optax.GradientTransformation
    accumulate: int = 1


class TrainState(NamedTuple):
    """All that training changes, and the parameters that it leaves alone."""

    step: jax.Array
    trained: Any
    frozen: Any
    optimizer: optax.OptState


def init_state(optimizer: optax.GradientTransformation, trained: Any, frozen: Any) -> TrainState:
    """The state before the first step."""
    return TrainState(jnp.zeros([], jnp.int32), trained, frozen, optimizer.init(trained))


def train_step(
    recipe: Recipe,
    key: jax.Array,
    state: TrainState,
    constants: Any,
    batch: dict[str, jax.Array],
) -> tuple[TrainState, dict[str, jax.Array]]:
    """Updates the trained parameters once.

    All random draws are of the step and the place in the batch, so they do not
    depend on how the batch is split.

    Args:
      recipe: what to compute.
      key: of the whole run.
      state: before the step.
      constants: parameters of networks that are not trained.
      batch: arrays with the batch first.

    Returns:
      The state after it, and `loss` and `grad_norm`.
    """
    prepare, loss, optimizer, accumulate = recipe
    prepared = prepare(jax.random.fold_in(key, state.step), constants, batch)

    def total(trained: Any, part: Any) -> jax.Array:
        return loss(merge(trained, state.frozen), part).mean()

    def add(sums: Any, part: Any) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, sums, jax.value_and_grad(total)(state.trained, part)), None

    if accumulate == 1:
        value, gradients = jax.value_and_grad(total)(state.trained, prepared)
    else:
        zeros = (jnp.zeros([]), jax.tree.map(jnp.zeros_like, state.trained))
        parts = jax.tree.map(functools.partial(_part, accumulate), prepared)
        sums, _ = jax.lax.scan(add, zeros, parts)
        value, gradients = jax.tree.map(lambda leaf: leaf / accumulate, sums)

    updates, optimizer_state = optimizer.update(gradients, state.optimizer, state.trained)
    trained = optax.apply_updates(state.trained, updates)
    metrics = {"loss": value, "grad_norm": optax.tree.norm(gradients)}
    return TrainState(state.step + 1, trained, state.frozen, optimizer_state), metrics


def compile_step(
    recipe: Recipe, key: jax.Array, shardings: TrainState | None = None
) -> Callable[[TrainState, Any, Any], tuple[TrainState, dict[str, jax.Array]]]:
    """`train_step` of a run, jitted; it takes over the memory of the state it is given.

    With `shardings`, the state that comes out lies as they say.
    """
    step = functools.partial(train_step, recipe, key)
    return jax.jit(step, donate_argnums=0, out_shardings=(shardings, None))


def _part(parts: int, array: jax.Array) -> jax.Array:
    """`(batch, ...)` to `(parts, batch / parts, ...)`; where the batch is spread, so is each part.

    Part i takes every `parts`-th example from the i-th on.
    """
    return array.reshape(-1, parts, *array.shape[1:]).swapaxes(0, 1)
