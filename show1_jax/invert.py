"""`sample.py --invert`: the noise of a clip, and how exactly a stage's denoiser undoes it."""

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from show1_jax.data.clip import ClipSpec
from show1_jax.data.decoding import read_clip
from show1_jax.evaluation.metrics import psnr
from show1_jax.generate import Bars, prepare
from show1_jax.media import make_folder, to_uint8, write_mp4
from show1_jax.stages import interpolation, inversion, keyframes, super_resolution, translation
from show1_jax.stages.cascade import Cascade, clip_frames
from show1_jax.stages.sampling import Conditions, clip_keys, in_parts, run
from show1_jax.stages.training import Example


def invert_clip(
    config: ConfigDict,
    checkpoint: str | None,
    clip: Path,
    prompt: str,
    out: Path,
    steps: Sequence[str],
    stage: str = keyframes.STAGE,
    seed: int = 0,
) -> float:
    """Inverts a clip by DDIM and writes its noise, and what the noise is made into again.

    What the stage starts from (keyframes, a small clip) is taken from the clip itself.

    Args:
      config: as in `configs/show1.py`; changed.
      checkpoint: a converted checkpoint.
      clip: a video; see `read_clip`.
      prompt: what the clip shows; may be "".
      out: the folder to write: STAGE.noise.npz and STAGE.reconstruction.mp4.
      steps: solver steps; see `generate`.
      stage: one of `STAGES`.
      seed: of the noise that the upscalers' condition has, as of a sample from the noise.

    Returns:
      PSNR of the reconstruction in dB.

    Raises:
      InputError: if anything given is wrong.
    """
    config.from_noise = ""
    folder = prepare(config, checkpoint, {"steps": steps})
    cascade = Cascade(config, folder, [stage], jax.devices()[:1])
    section = config[stage]
    denoiser = inversion.inverter(cascade.denoisers[stage], section.steps)
    strength = section.get("strength", 1.0)
    first_step = int(denoiser.solver.first_step(float(strength)))
    fps = config[keyframes.STAGE if stage == super_resolution.FIRST_FRAME else stage].fps
    frames = {keyframes.STAGE: config.keyframes.frames, super_resolution.FIRST_FRAME: 1}
    size = (frames.get(stage, clip_frames(config)), *cascade.size(stage))
    video = read_clip(clip, ClipSpec(*size, fps))
    with jax.set_mesh(cascade.mesh), contextlib.closing(Bars()) as bars:
        texts = cascade.encode([prompt])
        embeddings = texts.clip if stage == translation.STAGE else texts.t5
        assert embeddings is not None
        text = jnp.asarray(np.stack([embeddings[None], embeddings[prompt]]))[:, None]
        key = clip_keys(jnp.full(1, seed, jnp.uint32), stage)
        params = cascade.params(stage)
        pieces = _taken_apart(cascade, stage, jnp.asarray(video), params, key[0])
        noises, made = [], []
        for i in range(len(pieces.clean)):
            piece = jax.tree.map(lambda array, i=i: array[i : i + 1], pieces)
            conditions = Conditions(text, jnp.float32(1), key, piece.frames, piece.noise_level)
            progress = in_parts(
                lambda done, count: bars.update(stage, done, count), i, len(pieces.clean)
            )
            given = (denoiser, params["unet"])
            noise = inversion.invert(*given, piece.clean, conditions, progress, first_step)
            made.append(run(*given, noise, conditions, first_step=first_step))
            noises.append(np.asarray(noise))
        again = np.asarray(_put_together(cascade, stage, jnp.concatenate(made), params))
    exactness = psnr(np.clip(again, -1, 1), video, peak=2)
    make_folder(out)
    path = out / f"{stage}.noise.npz"
    found = inversion.Noise(stage, np.concatenate(noises), section.steps, strength)
    inversion.save_noise(path, found)
    write_mp4(out / f"{stage}.reconstruction.mp4", to_uint8(again), fps)
    print(f"{path}: reconstructs {clip} at {exactness:.1f} dB PSNR")
    return exactness


def _taken_apart(
    cascade: Cascade, stage: str, video: jax.Array, params: Any, key: jax.Array
) -> Example:
    """What the stage's denoiser makes of a clip `(frames, height, width, 3)`, piece by piece."""
    config = cascade.config
    match stage:
        case keyframes.STAGE:
            return Example(video[None])
        case interpolation.STAGE:
            return interpolation.taken_apart(video, config.interpolation.frames_per_gap)
        case translation.STAGE:
            assert cascade.vae is not None
            at_once = config.translation.vae_frames
            mean, logvar = translation.encode(cascade.vae, params["vae"], video[None], at_once)
            return Example(translation.to_latents(cascade.vae, mean, logvar, jnp.zeros_like(mean)))
    return super_resolution.taken_apart(
        video,
        (config.keyframes.height, config.keyframes.width),
        config.super_resolution.window,
        key,
        config[stage].noise_level,
        cascade.folders[stage].noise_schedule(),
        keep_first_frame=stage == super_resolution.STAGE,
    )


def _put_together(cascade: Cascade, stage: str, pieces: jax.Array, params: Any) -> jax.Array:
    """The clip whose pieces they are."""
    match stage:
        case interpolation.STAGE:
            return interpolation.join(pieces[None])[0]
        case super_resolution.STAGE:
            return super_resolution.put_together(pieces, clip_frames(cascade.config))
        case translation.STAGE:
            assert cascade.vae is not None
            at_once = cascade.config.translation.vae_frames
            return translation.decode(cascade.vae, params["vae"], pieces, at_once)[0]
    return pieces[0]
