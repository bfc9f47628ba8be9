"""`sample.py --invert`: the noise of a clip, and how exactly a stage's denoiser undoes it."""

import contextlib
import copy
import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from etils.epath import Path
from ml_collections import ConfigDict

from show1_jax.data.decoding import is_picture, read_clip
from show1_jax.engine import Engine, StageProgress
from show1_jax.errors import InputError
from show1_jax.evaluation.metrics import psnr
from show1_jax.generate import prepare
from show1_jax.media import make_folder, to_uint8, write_mp4, write_png
from show1_jax.parallel.mesh import AXES
from show1_jax.paths import Checkpoint
from show1_jax.progress import Progress
from show1_jax.stages import STAGES, Stage, inversion
from show1_jax.stages.sampling import Call
from show1_jax.weights import Weights


def inverting_engine(
    config: ConfigDict,
    checkpoint: Checkpoint,
    name: str,
    devices: Sequence[jax.Device],
    weights: Weights | None = None,
) -> Engine:
    """An engine that inverts clips: of one stage, on the first of some devices.

    Args:
      config: as in `configs/show1.py`.
      checkpoint: a converted checkpoint, or several; see `Engine`.
      name: of the stage.
      devices: the first is used.
      weights: networks that are in the memory of that device.
    """
    own = copy.deepcopy(config)
    own.from_noise, own.batch_size = "", 1
    own.mesh = dict.fromkeys(AXES, 1)
    return Engine(own, checkpoint, [name], devices[:1], weights=weights)


def find_noise(
    engine: Engine, clip: str | Path, prompt: str, seed: int, progress: StageProgress
) -> tuple[inversion.Noise, np.ndarray, float]:
    """The noise that the one stage of an engine makes into a clip.

    What the stage starts from (keyframes, a small clip) is taken from the clip itself.

    Args:
      engine: runs one stage, on one device.
      clip: a video, or for a stage that makes one frame a picture; see `read_clip`.
      prompt: what the clip shows; may be "".
      seed: decides the noise of an upscaler's condition.
      progress: is told what goes on.

    Returns:
      The noise; what the stage makes of it again, `stage.shape`, about [-1, 1]; and the PSNR of
      that in dB, for a stage in latents with what the autoencoder loses.

    Raises:
      InputError: if the clip cannot be read, or its noise is not finite.
    """
    ((name, stage),) = engine.stages.items()
    sampler = inversion.inverter(engine.samplers[name], stage.steps)
    video = _read(stage, Path(clip))
    with jax.set_mesh(engine.mesh):
        text = engine.encode([prompt], progress).pairs(stage, [prompt])
        params = engine.params(name, progress)
        seeds, told = jnp.full(1, seed, jnp.uint32), functools.partial(progress, name)
        call = Call(sampler, params, jnp.asarray(text), seeds, jnp.float32(1), told)
        start = inversion.noise_of(stage, call, jnp.asarray(video), stage.steps)
        made = inversion.sample(dataclasses.replace(call, progress=None), start)
        again = np.asarray(stage.join(made, params)[0])
    if not (np.isfinite(start.noise).all() and np.isfinite(again).all()):
        raise InputError(f"{clip} leads to noise that is not finite: give more or fewer steps")
    return start, again, psnr(np.clip(again, -1, 1), video.reshape(again.shape), peak=2)


def invert_clip(
    config: ConfigDict,
    checkpoint: Checkpoint | None,
    clip: Path,
    prompt: str,
    out: Path,
    *,
    steps: Sequence[str],
    name: str = STAGES[0].name,
    seed: int = 0,
) -> float:
    """Inverts a clip by DDIM and writes its noise, and what the noise is made into again.

    What a stage starts from (keyframes, a small clip) is taken from the clip itself.

    Args:
      config: as in `configs/show1.py`; changed.
      checkpoint: a converted checkpoint, or several; see `Engine`.
      clip: a video, or for the first frame a picture; see `read_clip`.
      prompt: what the clip shows; may be "".
      out: the folder to write: STAGE.noise.npz and STAGE.reconstruction.mp4 (.png of
        the first frame).
      steps: solver steps; see `generate`.
      name: of a stage.
      seed: decides the noise of the upscalers' condition.

    Returns:
      PSNR of the reconstruction in dB; of the translation, with what the autoencoder loses.

    Raises:
      InputError: if anything given is wrong, or the noise is not finite.
    """
    folders = prepare(config, checkpoint, {"steps": steps})
    engine = inverting_engine(config, folders, name, jax.local_devices())
    with contextlib.closing(Progress()) as bars:
        start, again, exactness = find_noise(engine, clip, prompt, seed, bars.update)
    stage = engine.stages[name]
    make_folder(out)
    path = out / f"{name}.noise.npz"
    inversion.save_noise(path, start)
    if stage.image:
        write_png(out / f"{name}.reconstruction.png", to_uint8(again))
    else:
        write_mp4(out / f"{name}.reconstruction.mp4", to_uint8(again), stage.fps)
    print(f"{path}: reconstructs {clip} at {exactness:.1f} dB PSNR")
    return exactness


def _read(stage: Stage, clip: Path) -> np.ndarray:
    """What the stage makes of a clip, `(frames, height, width, 3)`."""
    spec = stage.clip
    if stage.image and is_picture(clip):
        spec = dataclasses.replace(spec, frames=1)
    return read_clip(clip, spec)[: stage.frames]
