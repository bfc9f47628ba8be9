"""`sample.py --invert`: the noise that a stage's denoiser makes into a clip, and how exactly."""

import contextlib
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from show1_jax.errors import InputError
from show1_jax.generate import Bars, prepare
from show1_jax.media import read_frames, to_uint8, write_mp4, write_png
from show1_jax.stages import inversion, translation
from show1_jax.stages.cascade import STAGES, Cascade
from show1_jax.stages.sampling import Conditions, clip_keys, run
from show1_jax.training.tasks import make_stage

STEPS = 50  # unless given


def invert_clip(
    config: ConfigDict,
    checkpoint: str | None,
    clip: Path,
    prompts: Sequence[str],
    stages: Sequence[str] | None,
    out: Path,
    overrides: Mapping[str, Sequence[str]],
) -> float:
    """Inverts a clip by DDIM and writes its noise, and what the noise is made into again.

    Args:
      config: as in `configs/show1.py`.
      checkpoint: a converted checkpoint.
      clip: a video; as many frames as the stage makes are taken, evenly spread.
      prompts: at most one, what the clip shows.
      stages: at most one, whose denoiser and resolution; None for the keyframes.
      out: the folder to write: STAGE.noise.npz and STAGE.reconstruction.mp4.
      overrides: for "steps"; see `generate`. 50 by default.

    Returns:
      PSNR of the reconstruction in dB, as the stage's denoiser sees the clip.

    Raises:
      InputError: if anything given is wrong.
    """
    for name, given in (("--prompt", prompts), ("--stages", stages or ())):
        if len(given) > 1:
            raise InputError(f"--invert takes one of {name}, not {len(given)}")
    stage = stages[0] if stages else "keyframes"
    for section in STAGES:
        config[section].steps = STEPS
    cascade = Cascade(config, prepare(config, checkpoint, overrides), [stage], jax.devices()[:1])
    denoiser = cascade.denoisers[stage]
    inverter = inversion.inverter(denoiser, config[stage].steps)
    spec, example, _ = make_stage(config, stage, denoiser, cascade.vae)
    video = jnp.asarray(read_frames(clip, spec.frames, spec.height, spec.width))[None]
    with jax.set_mesh(cascade.mesh), contextlib.closing(Bars()) as bars:
        texts = cascade.encode(prompts)
        found = texts.clip if stage == "translation" else texts.t5
        assert found is not None
        text = jnp.asarray(np.stack([found[None], found[prompts[0] if prompts else None]]))[:, None]
        params = cascade.params(stage)
        shown = example(jax.random.key(0), params, video)
        keys = clip_keys(jnp.zeros(1, jnp.uint32), stage)
        conditions = Conditions(text, jnp.float32(1), keys, shown.frames, shown.noise_level)
        progress = functools.partial(bars.update, stage)
        unet = params["unet"]
        noise = inversion.invert(inverter, unet, shown.clean, conditions, progress)
        made, clean = run(inverter, unet, noise, conditions), shown.clean
        if stage == "translation":
            assert cascade.vae is not None
            made, clean = (
                translation.decode(cascade.vae, params["vae"], x, config.translation.vae_frames)
                for x in (made, clean)
            )
    exactness = inversion.psnr(made, clean)
    made_of = inversion.Noise(np.asarray(noise[0]), config[stage].steps)
    inversion.save_noise(out / f"{stage}.noise.npz", made_of)
    frames = to_uint8(np.asarray(made[0]))
    if len(frames) > 1:
        write_mp4(out / f"{stage}.reconstruction.mp4", frames, spec.fps or 1)
    else:
        write_png(out / f"{stage}.reconstruction.png", frames[0])
    print(f"{out / stage}.noise.npz: reconstructs {clip} at {exactness:.1f} dB PSNR")
    return exactness
