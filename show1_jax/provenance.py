"""What made a result: enough to make it again, and to know whether it need be."""

import dataclasses
import hashlib
import math
from importlib.metadata import version
from typing import Any

import jax
from ml_collections import ConfigDict

from show1_jax.adapters.files import parse_adapter
from show1_jax.checkpoints.released import encoder_folder
from show1_jax.checkpoints.store import fingerprint
from show1_jax.loading import Loaded
from show1_jax.paths import as_path
from show1_jax.stages import Stage


def settings(text: ConfigDict, loaded: Loaded, stage: Stage) -> dict[str, Any]:
    """What reproduces a stage's result from those before it, ready for JSON.

    Args:
      text: the config's section on text.
      loaded: the stages.
      stage: one of them.
    """
    sampler, noise = loaded.samplers[stage.name], loaded.noise_of(stage.name)
    solver = dataclasses.asdict(sampler.solver.config)
    return dict(stage.section) | {
        "steps": sampler.solver.num_steps,
        **({} if noise is None else {"strength": noise.strength}),
        "unet": dataclasses.asdict(sampler.unet.config),
        # JSON has no infinity, which stands for what is not clipped.
        "solver": {name: value for name, value in solver.items() if value != -math.inf},
        "dtype": loaded.dtype.name,
        "clean_captions": text.clean_captions,
        "t5_tokens": text.t5_tokens,
        "checkpoint": ", ".join(str(path.absolute()) for path in loaded.checkpoints),
        "weights": _weights(loaded, stage),
        "files": {file: _digest(file) for file in _files(loaded, stage)},
        "size": (stage.height, stage.width),
        "versions": {name: version(name) for name in ("show1-jax", "jax", "flax")},
        "platform": jax.default_backend(),
    }


def _weights(loaded: Loaded, stage: Stage) -> str:
    """Tells the networks that a stage uses from others."""
    networks = fingerprint(loaded.folders[stage.name].folder, ("unet", "vae"))
    text = encoder_folder(loaded.folders, stage.encoder)
    return f"{networks}-{fingerprint(text.folder, ('text_encoder', 'tokenizer'))}"


def _files(loaded: Loaded, stage: Stage) -> list[str]:
    """Of adapters and noise."""
    files = [str(parse_adapter(text)[0]) for text in stage.adapters]
    own = loaded.noise_of(stage.name) is not None and loaded.noise_file
    return [*files, loaded.noise_file] if own else files


def _digest(file: str) -> str:
    return hashlib.sha256(as_path(file).read_bytes()).hexdigest()[:16]
