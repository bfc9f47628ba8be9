"""`sample.py --invert`: the noise of a clip, and how exactly the keyframes' denoiser undoes it."""

import contextlib
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from show1_jax.data.clip import ClipSpec
from show1_jax.data.decoding import read_clip
from show1_jax.evaluation.metrics import psnr
from show1_jax.generate import Bars, prepare
from show1_jax.media import make_folder, to_uint8, write_mp4
from show1_jax.stages import inversion
from show1_jax.stages.cascade import Cascade
from show1_jax.stages.keyframes import STAGE
from show1_jax.stages.sampling import Conditions, clip_keys, run


def invert_clip(
    config: ConfigDict,
    checkpoint: str | None,
    clip: Path,
    prompt: str,
    out: Path,
    overrides: Mapping[str, Sequence[str]],
) -> float:
    """Inverts a clip by DDIM and writes its noise, and what the noise is made into again.

    Args:
      config: as in `configs/show1.py`.
      checkpoint: a converted checkpoint.
      clip: a video; see `read_clip`.
      prompt: what the clip shows; may be "".
      out: the folder to write: keyframes.noise.npz and keyframes.reconstruction.mp4.
      overrides: for "steps"; see `generate`.

    Returns:
      PSNR of the reconstruction in dB.

    Raises:
      InputError: if anything given is wrong.
    """
    config.keyframes.update(guidance=1.0, noise="")
    cascade = Cascade(config, prepare(config, checkpoint, overrides), [STAGE], jax.devices()[:1])
    section = config.keyframes
    spec = ClipSpec(section.frames, section.height, section.width, section.fps)
    frames = read_clip(clip, spec)
    denoiser = inversion.inverter(cascade.denoisers[STAGE], section.steps)
    with jax.set_mesh(cascade.mesh), contextlib.closing(Bars()) as bars:
        texts = cascade.encode([prompt]).t5
        assert texts is not None
        text = jnp.asarray(np.stack([texts[None], texts[prompt]]))[:, None]
        conditions = Conditions(text, jnp.float32(1), clip_keys(jnp.zeros(1, jnp.uint32), STAGE))
        params, progress = cascade.params(STAGE)["unet"], functools.partial(bars.update, STAGE)
        noise = inversion.invert(denoiser, params, jnp.asarray(frames)[None], conditions, progress)
        made = np.asarray(run(denoiser, params, noise, conditions))[0]
    exactness = psnr(np.clip(made, -1, 1), frames, peak=2)
    make_folder(out)
    path = out / f"{STAGE}.noise.npz"
    inversion.save_noise(path, inversion.Noise(np.asarray(noise[0]), section.steps))
    write_mp4(out / f"{STAGE}.reconstruction.mp4", to_uint8(made), section.fps)
    print(f"{path}: reconstructs {clip} at {exactness:.1f} dB PSNR")
    return exactness
