"""Small stages, for tests of what stages do themselves."""

import jax.numpy as jnp

from show1_jax.diffusion.schedule import NoiseSchedule
from show1_jax.diffusion.solvers import SolverConfig
from show1_jax.models.unet import UNetConfig
from show1_jax.models.vae import VAEConfig
from show1_jax.stages import FirstFrame, Interpolation, Keyframes, SuperResolution, Translation
from show1_jax.stages.sampling import Call

COSINE = NoiseSchedule("cosine")
DPM = SolverConfig("dpm_solver", COSINE, spacing="linspace", threshold=0.95, threshold_max=1.5)
BASE = UNetConfig(
    in_channels=3,
    out_channels=6,
    channels=(32,),
    layers=(1,),
    attention=(True,),
    attention_head_dim=(8,),
    spatial_heads="width",
    temporal_heads="number",
    space="pixel",
    text_dim=8,
    time_embed_dim=32,
    text_projection_dim=32,
    text_pooling_heads=2,
    norm_groups=8,
    scale_shift=True,
)
COMMON = {"fps": 1.0, "steps": 4, "guidance": 3.0, "unet": BASE, "solver": DPM}
SMALL = COMMON | {"height": 4, "width": 6}
LARGE = COMMON | {"height": 8, "width": 12}


def keyframes(**changes):
    return Keyframes(**SMALL | {"frames": 3} | changes)


def interpolation(**changes):
    return Interpolation(**SMALL | {"keyframes": 3, "frames_per_gap": 3, "frames": 5} | changes)


def first_frame(**changes):
    return FirstFrame(**_upscaler(frames=1, window=1) | changes)


def super_resolution(**changes):
    return SuperResolution(**_upscaler(frames=4, window=3) | changes)


def _upscaler(frames, window):
    condition = {"noise_level": 250, "noise_schedule": COSINE, "clip_frames": 4}
    return LARGE | condition | {"frames": frames, "window": window, "small": (4, 6)}


def translation(vae=None, **changes):
    config = VAEConfig() if vae is None else vae.config
    own = {"height": 8, "width": 8, "frames": 3, "small": (4, 4), "training_frames": 3}
    own |= {"vae": vae, "vae_config": config, "vae_frames": 2, "strength": 0.8}
    return Translation(**COMMON | own | changes)


def call(sampler, params, text, seeds, guidance=3.0, progress=None, **others):
    params = {"unet": params, **others}
    return Call(sampler, params, text, seeds, jnp.float32(guidance), progress)
