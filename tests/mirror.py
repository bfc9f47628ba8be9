"""Networks that show in their result what they were told, in place of the cascade's own.

A `Mirror` predicts a clean sample that is a picture of its inputs:

red    what its text says: `reading` of its embeddings
green  in the upper half the timestep, in the lower half the noise level of its condition, both
       in thousands; where there is no condition, a number of its parameters
blue   the red of the frames that it was given, or where it was given none, of its noisy sample

Guidance adds up predictions, so it shows in the red alone: that is the one in which the
negative prompt's picture differs. `Blocks` is an autoencoder whose latents are means of blocks.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from show1_jax.configs import tiny
from show1_jax.diffusion.schedule import NoiseSchedule
from show1_jax.engine import Engine
from show1_jax.models.unet import UNetConfig
from show1_jax.models.vae import VAEConfig

LOG_VARIANCE = -4.0
PARAMETER = ("up_0", "temporal_attention_1", "proj_out", "kernel")  # of which [0, 0] is shown


def reading(text: Any) -> Any:
    """A number for embeddings `(..., tokens, width)`, -0.3 to 0.3, unlike those of other texts."""
    return 0.3 * jnp.sin(jnp.sum(text, axis=(-2, -1)))


@dataclasses.dataclass(frozen=True, eq=False)
class Mirror:
    """Stands for a denoiser that predicts the velocity."""

    config: UNetConfig
    schedule: NoiseSchedule

    def apply(
        self,
        variables: Any,
        sample: jax.Array,
        timesteps: jax.Array,
        text: jax.Array,
        noise_level: jax.Array | None = None,
    ) -> jax.Array:
        noisy, given = jnp.split(sample, [self.config.out_channels], axis=-1)
        lower = jnp.full(len(sample), variables["params"]["number"])
        if noise_level is not None:
            lower = noise_level / 1000
        half = noisy.shape[2] // 2
        green = jnp.zeros(noisy.shape[:-1]).at[:, :, :half].set(along(timesteps / 1000))
        green = green.at[:, :, half:].set(along(lower))
        blue = (given if given.shape[-1] else noisy)[..., 0]
        picture = [jnp.zeros_like(green) + along(reading(text)), green, blue]
        picture += [jnp.zeros_like(green)] * (noisy.shape[-1] - len(picture))
        left = jnp.asarray(self.schedule.alphas_cumprod)[timesteps][:, None, None, None, None]
        return (jnp.sqrt(left) * noisy - jnp.stack(picture, axis=-1)) / jnp.sqrt(1 - left)


def along(numbers: Any) -> Any:
    """`(batch,)` numbers, to be set in `(batch, frames, height, width)`."""
    return numbers[:, None, None, None]


@dataclasses.dataclass(frozen=True, eq=False)
class Blocks:
    """Stands for the autoencoder."""

    config: VAEConfig

    def apply(self, variables: Any, images: jax.Array, method: str) -> Any:
        del variables
        size = self.config.downscale
        if method == "decode":
            pixels = images[..., :3] * self.config.scaling_factor
            return jnp.repeat(jnp.repeat(pixels, size, axis=-3), size, axis=-2)
        *lead, height, width, _ = images.shape
        blocks = images.reshape(*lead, height // size, size, width // size, size, 3).mean((-4, -2))
        mean = jnp.concatenate([blocks, jnp.zeros_like(blocks[..., :1])], axis=-1)
        mean /= self.config.scaling_factor
        return mean, jnp.full_like(mean, LOG_VARIANCE)


class Given:
    """Results that each stage starts from, and apart from them those that the stages make."""

    def __init__(self, given: dict[str, np.ndarray]):
        self.given, self.made = given, {}

    def has(self, item: int, stage: str) -> bool:
        return stage in self.given

    def done(self, item: int, stage: str, settings: Any) -> bool:
        return False

    def load(self, item: int, stage: str) -> np.ndarray:
        return self.given[stage][item]

    def save(self, item: int, stage: str, result: np.ndarray, settings: Any) -> None:
        self.made[item, stage] = np.asarray(result)

    def fail(self, item: int, stage: str, error: Exception) -> None:
        raise error


class Mirrored(Engine):
    """Stages whose networks are mirrors; their number is one of the real parameters."""

    mirrors: dict[Any, Mirror] = {}  # noqa: RUF012  (one for each, so that each compiles once)

    def __init__(self, config: Any, stages: Any = None, checkpoint: Any = tiny.CHECKPOINT):
        super().__init__(config, checkpoint, stages)
        self.real = dict(self.samplers)
        for name, sampler in self.real.items():
            key = (name, sampler.solver.config.schedule)
            mirror = self.mirrors.setdefault(key, Mirror(sampler.unet.config, key[1]))
            self.samplers[name] = dataclasses.replace(sampler, unet=mirror)
        for name, stage in self.stages.items():
            if "vae" in stage.networks:
                blocks = self.mirrors.setdefault("vae", Blocks(stage.vae.config))
                self.stages[name] = stage.with_networks({"vae": blocks})

    def params(self, stage: str, progress: Any = None) -> dict[str, Any]:
        """Those of the mirrors; of the keyframes' with what adapters add to a real one."""
        number = jnp.float32(0)
        if stage == "keyframes":
            mirror, self.samplers[stage] = self.samplers[stage], self.real[stage]
            number = functools.reduce(dict.__getitem__, PARAMETER, super().params(stage)["unet"])[
                0, 0
            ]
            self.samplers[stage] = mirror
        return {"unet": {"number": number}, "vae": {}}
