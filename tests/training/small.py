"""The tiny cascade with networks that compile in seconds, whatever the config's own sizes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from show1_jax import stages
from show1_jax.configs import tiny
from show1_jax.training.random_encoders import T5
from show1_jax.training.tasks import Task, make_task
from tests.stages.test_stages import random_params

T5_WIDTH = T5.d_model
CLIP_WIDTH = 32  # of tests/release
TOKENS = 5

UNET = {
    "channels": (32,),
    "layers": (1,),
    "attention": (False,),  # but for the middle, which always has it
    "attention_head_dim": (8,),
    "norm_groups": 8,
    "time_embed_dim": 32,
}
PIXEL = UNET | {"text_dim": T5_WIDTH, "text_projection_dim": 32, "text_pooling_heads": 2}
LATENT = UNET | {"text_dim": CLIP_WIDTH}
VAE_SIZES = {"channels": (4,), "layers_per_block": 1, "latent_channels": 2, "norm_groups": 2}


def small_config(part: str, data_dir: Path | None = None, **train: Any) -> ConfigDict:
    """`configs/tiny.py` for one part, made small, with changes to how it is trained."""
    config = tiny.get_config(part)
    for name in ("keyframes", "interpolation", "first_frame", "super_resolution"):
        config[name].unet.update(PIXEL)
    latents = VAE_SIZES["latent_channels"]
    config.translation.unet.update(LATENT, in_channels=latents, out_channels=latents)
    config.translation.vae = ConfigDict(VAE_SIZES)
    config.keyframes.update(frames=3, height=4, width=6, fps=1.0, steps=2)
    config.interpolation.update(frames_per_gap=3, steps=2)
    config.first_frame.steps = 2
    config.super_resolution.update(height=8, width=12, window=2, steps=2)
    config.translation.update(height=8, width=12, steps=4, strength=0.5)
    config.train.translation.frames = 2
    config.train.vae.update(height=8, width=12)
    for settings in config.train.values():
        settings.update(
            clips=12,
            steps=2,
            batch_size=2,
            learning_rate=1e-2,
            warmup_steps=1,
            threads=2,
            log_every=1,
            validation_batches=1,
            validation_batch_size=2,
        )
        if data_dir is not None:
            settings.data_dir = str(data_dir)
    config.train.keyframes.init = ""
    config.train[part].update(train)
    return config


def small_task(part: str, levels: int = 1, **train: Any) -> tuple[Task, Any, Any]:
    """A part's task, random parameters that make every layer matter, and its constants."""
    config = small_config(part, **train)
    if part != "vae":
        unet = config["keyframes" if part == "image" else part].unet
        for name in ("channels", "attention", "attention_head_dim"):
            unet[name] *= levels
        # What no checkpoint can hold: no ResNet block on the way down, a narrow input transformer.
        unet.layers = (0,) * levels
        if part == "translation":
            config[part].unet.input_transformer_head_dim = 4
    own = stages.part(part).from_config(config)
    constants = {"empty": _empty(CLIP_WIDTH if own.encoder == "clip" else T5_WIDTH)}
    if isinstance(own, stages.Stage):
        networks = own.other_modules(jnp.float32)
        own = own.with_networks(networks)
        constants |= {name: random_params(module) for name, module in networks.items()}
    task = make_task(own, config.train[part])
    return task, random_params(task.module), constants


def _empty(width: int) -> jax.Array:
    return jax.random.normal(jax.random.key(5), (TOKENS, width))


def made_up_batch(task: Task, batch: int, seed: int = 0) -> dict[str, np.ndarray]:
    """A batch as the pipeline makes them, of random pixels and texts."""
    rng = np.random.default_rng(seed)
    spec, width = task.spec, CLIP_WIDTH if task.part.encoder == "clip" else T5_WIDTH
    shape = (batch, spec.frames, spec.height, spec.width, 3)
    return {
        "video": rng.integers(0, 256, shape, np.uint8),
        "text": rng.normal(size=(batch, TOKENS, width)).astype(np.float16),
    }


def by_path(tree: Any) -> dict[str, jax.Array]:
    """Parameters by their slashed path."""
    return flatten_dict(tree, sep="/")


def _leaves(tree: Any) -> dict[str, np.ndarray]:
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def compare(actual: Any, expected: Any, check: Callable[..., None], **settings: Any) -> None:
    """Compares two trees of arrays leaf by leaf, by one of numpy's assertions."""
    left, right = _leaves(actual), _leaves(expected)
    assert left.keys() == right.keys()
    for name, leaf in right.items():
        assert left[name].dtype == leaf.dtype, name
        check(left[name], leaf, err_msg=name, **settings)


def assert_same(actual: Any, expected: Any) -> None:
    """Compares two trees of arrays bit for bit."""
    compare(actual, expected, np.testing.assert_array_equal)
