"""Motion customization: a few clips teach a keyframe denoiser how something moves.

Only a chosen part of the network is trained (Show-1, section 3.7: temporal
attention), or low-rank changes of it, and kept as an adapter; see
`configs/customize.py`.
"""

import itertools
import math
import time
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from etils.epath import Path
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from show1_jax.adapters.files import Adapter, base_fingerprint, save_adapter
from show1_jax.adapters.lora import KERNEL, A, B, apply_lora, new_lora
from show1_jax.checkpoints.layout import PARAMS
from show1_jax.checkpoints.released import encoder_folder, find_stages, sampling_params
from show1_jax.checkpoints.store import load_params
from show1_jax.data.decoding import read_clip
from show1_jax.diffusion.losses import Objective
from show1_jax.diffusion.solvers import SolverConfig
from show1_jax.errors import InputError
from show1_jax.files import check_writable, size_of
from show1_jax.models.unet import UNet
from show1_jax.parallel.mesh import batch_parts, make_mesh
from show1_jax.parallel.sharding import put_array, put_batch, shardings
from show1_jax.paths import as_path
from show1_jax.stages import STAGES
from show1_jax.stages.training import Example, denoising_loss, drop_captions, noised
from show1_jax.text.cleaning import cleaner
from show1_jax.text.encoding import load_encoder
from show1_jax.training.optimizer import averaged, make_optimizer
from show1_jax.training.settings import check
from show1_jax.training.step import Recipe, compile_step, init_state
from show1_jax.training.tasks import compute_dtype
from show1_jax.training.trainable import merge, split


def customize(config: ConfigDict) -> Path:
    """Fine-tunes a checkpoint's keyframe denoiser on clips, and writes the adapter.

    Args:
      config: as in `configs/customize.py`.

    Returns:
      The adapter's file.

    Raises:
      InputError: if a setting is wrong, a clip cannot be read or is too short, or
        the loss is not finite.
    """
    settings, stage = config.customize, STAGES[0].from_config(config)
    mesh, out = make_mesh(config.mesh), as_path(config.out)
    check(settings, "customize", batch_parts(mesh))
    _check_out(out)
    prompts, paths = _several(config.prompt), _several(config.video)
    if not paths or len(prompts) != len(paths):
        raise InputError(
            f"{len(paths)} clip(s) and {len(prompts)} prompt(s): give --config.video=FILE and "
            "--config.prompt=TEXT, several with | between them"
        )
    videos = np.stack([read_clip(as_path(path), stage.clip) for path in paths])
    if not config.checkpoint:
        raise InputError("give --config.checkpoint: this config comes without one")
    folders = find_stages(as_path(config.checkpoint))
    if stage.name not in folders:
        raise InputError(f"{config.checkpoint} has no {stage.name} to customize")
    folder, dtype = folders[stage.name], compute_dtype(settings)
    unet = folder.module("unet", dtype)
    assert isinstance(unet, UNet)
    with jax.set_mesh(mesh):
        encoder = load_encoder(
            encoder_folder(folders, str(stage.encoder)), dtype, config.text.t5_tokens
        )
        clean = cleaner(config.text.clean_captions)
        texts = np.asarray(encoder([clean(prompt) for prompt in (*prompts, "")]), np.float32)
        del encoder
        size = settings.batch_size
        # So many batches have every clip equally often.
        starts = range(0, math.lcm(size, len(videos)), size)
        rows = [np.arange(start, start + size) % len(videos) for start in starts]
        batches = [put_batch({"video": videos[own], "text": texts[own]}) for own in rows]
        params = load_params(folder.folder / "unet" / PARAMS, kept_params(unet, settings))
        base = base_fingerprint(params)
        # Of factors nothing is to be subtracted. The others' memory is given away while training.
        before = {} if settings.rank else split(params, settings.trainable)[0]
        before = jax.tree.map(np.asarray, before)
        solver = folder.solver()
        recipe = make_recipe(settings, unet, solver)
        trained = _train(settings, recipe, params, batches, {"empty": put_array(texts[-1])})
    about = {
        "stage": stage.name,
        "trainable": settings.trainable,
        "prompts": " | ".join(prompts),
        "steps": str(settings.steps),
    }
    every, timesteps = (0, solver.schedule.train_steps), tuple(settings.objective.timesteps)
    adapter = Adapter(
        changes(before, jax.tree.map(np.asarray, trained)),
        base,
        about=about,
        timesteps=None if timesteps == every else timesteps,
    )
    save_adapter(out, adapter)
    count = sum(part.size for change in adapter.changes.values() for part in change)
    print(f"{out}: {count:,} numbers, {size_of(out) / 2**20:.2f} MiB")
    return out


def _check_out(path: Path) -> None:
    """Refuses, before any training, where the adapter could not be written."""
    if path.exists():
        raise InputError(f"--config.out={path} exists: give another, or remove it")
    if path.suffix != ".safetensors":
        raise InputError(f"--config.out={path}: give a file that ends in .safetensors")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        check_writable(path.parent)
    except OSError as error:
        raise InputError(f"--config.out={path} cannot be written: {error.strerror}") from None


def make_recipe(settings: ConfigDict, unet: UNet, solver: SolverConfig) -> Recipe:
    """What a step computes.

    Args:
      settings: a config's `customize` section.
      unet: the network, in the dtype to compute in.
      solver: says what it predicts, and on which noise schedule.
    """
    unet = unet.clone(remat=settings.remat or None)
    objective = Objective(solver.schedule, solver.prediction, **settings.objective)

    def prepare(key: jax.Array, constants: Any, batch: dict[str, jax.Array]) -> Any:
        keys = jax.random.split(key, 4)
        video, text = batch["video"], batch["text"]
        changed = jax.random.bernoulli(keys[2], settings.recolor, (len(video), 1, 1))
        video = jnp.where(changed[..., None, None], recolored(keys[3], video), video)
        # So that guidance, too, has the motion in both of its predictions.
        text = drop_captions(keys[0], text, constants["empty"], settings.caption_dropout)
        text = jnp.where(changed, constants["empty"], text)
        return noised(objective, keys[1], Example(video), text)

    def loss(params: Any, prepared: Any) -> jax.Array:
        with nn.intercept_methods(apply_lora):
            return denoising_loss(unet, objective, False, params, prepared)

    return Recipe(prepare, loss, make_optimizer(settings), settings.accumulate)


# Every way to put three channels into another order and to turn some of them to their negative.
RECOLORINGS = np.array(
    [
        np.diag(signs)[list(order)]
        for order in itertools.permutations(range(3))
        for signs in itertools.product((1.0, -1.0), repeat=3)
    ],
    np.float32,
)


def recolored(key: jax.Array, videos: jax.Array) -> jax.Array:
    """Clips `(batch, frames, height, width, 3)`, each in one of 48 ways; one leaves it as it is."""
    chosen = jax.random.choice(key, RECOLORINGS, (len(videos),))
    return jnp.einsum("b...c,bcd->b...d", videos, chosen, precision="highest")


def first_trained(params: Any, settings: ConfigDict) -> tuple[Any, Any]:
    """What is trained, as it is before the first step, and what is frozen."""
    if not settings.rank:
        return split(params, settings.trainable)
    key = jax.random.key(settings.seed)
    return new_lora(params, settings.trainable, settings.rank, key), params


def kept_params(unet: UNet, settings: ConfigDict) -> Any:
    """Shapes and dtypes of the parameters in memory: what is trained itself is in fp32."""
    params = sampling_params(unet, compute_dtype(settings))
    trained, frozen = split(params, settings.trainable)
    if not settings.rank:
        trained = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.float32), trained)
    return merge(trained, frozen)


def changes(before: Any, after: Any) -> dict[str, tuple[np.ndarray, ...]]:
    """What training changed, by the path of each parameter; see `Adapter`.

    `before` is what was trained as it had been; of LoRA's factors none is needed.
    """
    flat, first = flatten_dict(after, sep="/"), flatten_dict(before, sep="/")
    found: dict[str, tuple[np.ndarray, ...]] = {}
    for path, leaf in flat.items():
        parent, _, name = path.rpartition("/")
        if name == A:
            found[parent + KERNEL] = (leaf, flat[f"{parent}/{B}"])
        elif name != B:
            found[path] = (leaf - first[path],)
    return found


def _several(value: str) -> list[str]:
    """The parts of a value that "|" separates."""
    return [part.strip() for part in value.split("|") if part.strip()]


def _train(
    settings: ConfigDict, recipe: Recipe, params: Any, batches: list[Any], constants: Any
) -> Any:
    """The trained tree after all steps, averaged."""
    state = init_state(recipe.optimizer, *first_trained(params, settings))
    state = jax.device_put(state, shardings(state))
    key = jax.random.key(settings.seed)
    # Each step takes over the memory of the state, and so that of `params`.
    step_function = compile_step(recipe, key, shardings(state))
    losses: list[jax.Array] = []
    begin = time.perf_counter()
    for step in range(1, settings.steps + 1):
        state, metrics = step_function(state, constants, batches[step % len(batches)])
        losses.append(metrics["loss"])
        if step % settings.log_every and step < settings.steps:
            continue
        loss, losses = float(np.mean(losses)), []
        if not np.isfinite(loss):
            raise InputError(
                f"the loss is not finite at step {step}: give a lower "
                "--config.customize.learning_rate"
            )
        left = (time.perf_counter() - begin) / step * (settings.steps - step)
        print(f"{step}/{settings.steps}  loss {loss:.4f}  {left:.0f} s left", flush=True)
    return averaged(state.optimizer)
