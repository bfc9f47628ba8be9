"""`sample.py --invert`: the noise of a clip, and how exactly a stage's denoiser undoes it."""

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from show1_jax.bars import Bars
from show1_jax.cascade import Cascade, clip_frames
from show1_jax.data.clip import ClipSpec
from show1_jax.data.decoding import is_picture, read_clip
from show1_jax.errors import InputError
from show1_jax.evaluation.metrics import psnr
from show1_jax.generate import prepare
from show1_jax.media import make_folder, to_uint8, write_mp4, write_png
from show1_jax.stages import inversion
from show1_jax.stages.interpolation import taken_apart as gaps
from show1_jax.stages.sampling import Conditions, clip_keys, in_parts
from show1_jax.stages.super_resolution import taken_apart as windows
from show1_jax.stages.training import Example
from show1_jax.stages.translation import encode, to_latents


def invert_clip(
    config: ConfigDict,
    checkpoint: str | None,
    clip: Path,
    prompt: str,
    out: Path,
    steps: Sequence[str],
    stage: str = "keyframes",
    seed: int = 0,
) -> float:
    """Inverts a clip by DDIM and writes its noise, and what the noise is made into again.

    What a stage starts from (keyframes, a small clip) is taken from the clip itself.

    Args:
      config: as in `configs/show1.py`; changed.
      checkpoint: a converted checkpoint.
      clip: a video, or for the first frame a picture; see `read_clip`.
      prompt: what the clip shows; may be "".
      out: the folder to write: STAGE.noise.npz and STAGE.reconstruction.mp4 (.png of
        the first frame).
      steps: solver steps; see `generate`.
      stage: one of `STAGES`.
      seed: decides the noise of the upscalers' condition.

    Returns:
      PSNR of the reconstruction in dB; of the translation, with what the autoencoder loses.

    Raises:
      InputError: if anything given is wrong, or the noise is not finite.
    """
    config.from_noise = ""
    folder = prepare(config, checkpoint, {"steps": steps})
    cascade = Cascade(config, folder, [stage], jax.devices()[:1])
    section = config[stage]
    denoiser = inversion.inverter(cascade.denoisers[stage], section.steps)
    strength = float(section.get("strength", 1.0))
    first_step = int(denoiser.solver.first_step(strength))
    video = _read(cascade, stage, clip)
    with jax.set_mesh(cascade.mesh), contextlib.closing(Bars()) as bars:
        texts = cascade.encode([prompt], bars.update)
        embeddings = texts.clip if stage == "translation" else texts.t5
        assert embeddings is not None
        text = jnp.asarray(np.stack([embeddings[None], embeddings[prompt]]))[:, None]
        seeds, guidance = jnp.full(1, seed, jnp.uint32), jnp.float32(1)
        keys, params = clip_keys(seeds, stage), cascade.params(stage, bars.update)
        pieces = _taken_apart(cascade, stage, jnp.asarray(video), params, keys[0])
        found = []
        for i in range(len(pieces.clean)):
            clean, frames, level = jax.tree.map(lambda array, i=i: array[i : i + 1], pieces)
            conditions = Conditions(text, guidance, keys, frames, level)
            done = in_parts(lambda *of: bars.update(stage, *of), i, len(pieces.clean))
            noise = inversion.invert(denoiser, params["unet"], clean, conditions, done, first_step)
            found.append(np.asarray(noise[0]))
        start = inversion.Noise(
            stage,
            np.stack(found),
            section.steps,
            strength,
            None if pieces.frames is None else np.asarray(pieces.frames),
            None if pieces.noise_level is None else section.noise_level,
        )
        made = inversion.sample(denoiser, params["unet"], text, seeds, guidance, start)
        again = np.asarray(cascade.put_together(stage, made, params)[0])
    if not (np.isfinite(start.noise).all() and np.isfinite(again).all()):
        raise InputError(f"{clip} leads to noise that is not finite: give more or fewer --steps")
    exactness = psnr(np.clip(again, -1, 1), video.reshape(again.shape), peak=2)
    make_folder(out)
    path = out / f"{stage}.noise.npz"
    inversion.save_noise(path, start)
    if again.ndim == 3:
        write_png(out / f"{stage}.reconstruction.png", to_uint8(again))
    else:
        write_mp4(out / f"{stage}.reconstruction.mp4", to_uint8(again), section.fps)
    print(f"{path}: reconstructs {clip} at {exactness:.1f} dB PSNR")
    return exactness


def _read(cascade: Cascade, stage: str, clip: Path) -> np.ndarray:
    """What the stage makes of a clip, `(frames, height, width, 3)`."""
    config = cascade.config
    if stage == "keyframes":
        frames, fps = config.keyframes.frames, config.keyframes.fps
    else:
        frames, fps = clip_frames(config), config.interpolation.fps
    if stage == "first_frame" and is_picture(clip):
        frames = 1
    video = read_clip(clip, ClipSpec(frames, *cascade.size(stage), fps))
    return video[:1] if stage == "first_frame" else video


def _taken_apart(
    cascade: Cascade, stage: str, video: jax.Array, params: Any, key: jax.Array
) -> Example:
    """What the stage's denoiser makes of a clip `(frames, height, width, 3)`, piece by piece."""
    config = cascade.config
    match stage:
        case "keyframes":
            return Example(video[None])
        case "interpolation":
            return gaps(video, config.interpolation.frames_per_gap)
        case "translation":
            assert cascade.vae is not None
            at_once = config.translation.vae_frames
            mean, logvar = encode(cascade.vae, params["vae"], video[None], at_once)
            return Example(to_latents(cascade.vae, mean, logvar, jnp.zeros_like(mean)))
    small = (config.keyframes.height, config.keyframes.width)
    level, schedule = config[stage].noise_level, cascade.folders[stage].noise_schedule()
    window, keep = config.super_resolution.window, stage == "super_resolution"
    return windows(video, small, window, key, level, schedule, keep)
