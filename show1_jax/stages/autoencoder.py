"""The autoencoder of the latent stage: how it is trained (it is sampled by `translation`).

The loss has three terms: the reconstruction error, a small KL divergence of the posterior from a
standard normal (Rombach et al., arXiv 2112.10752, appendix G), and the error of the image's
gradients. The last keeps edges sharp without a perceptual network or a discriminator. The
reconstruction error is absolute, for edges, plus squared, for colors: the absolute error alone is
smallest at the median, which merged two colors that differ in a single channel.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple, Self

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from show1_jax.configuration import build
from show1_jax.data.clip import ClipSpec
from show1_jax.models.vae import VAE, VAEConfig
from show1_jax.stages.stage import Encoder
from show1_jax.stages.translation import Translation


class Encoded(NamedTuple):
    """A batch and what was drawn for it.

    Attributes:
      image: `(batch, height, width, 3)` in [-1, 1].
      noise: `(batch, h, w, latent_channels)`, of the posterior's sample.
    """

    image: jax.Array
    noise: jax.Array


def example(key: jax.Array, vae: VAE, video: jax.Array) -> Encoded:
    """The training example: the frames `(batch, 1, height, width, 3)` and noise for their latents.

    Args:
      key: a random key.
      vae: the autoencoder.
      video: clips of one frame, in [-1, 1].
    """
    image = video[:, 0]
    batch, height, width, _ = image.shape
    scale = vae.config.downscale
    shape = (batch, height // scale, width // scale, vae.config.latent_channels)
    return Encoded(image, jax.random.normal(key, shape))


def loss(
    vae: VAE,
    kl_weight: float,
    gradient_weight: float,
    squared_weight: float,
    params: Any,
    encoded: Encoded,
) -> jax.Array:
    """The loss of each image.

    Args:
      vae: the autoencoder.
      kl_weight: of the divergence (1e-6 in the paper).
      gradient_weight: of the gradients' error, against 1 for the pixels' absolute one.
      squared_weight: of the pixels' squared error, likewise.
      params: its parameters.
      encoded: the batch.

    Returns:
      `(batch,)` fp32: mean errors of pixels, absolute and squared, absolute ones of differences
      between neighbours, and the divergence in nats per number of the image.
    """
    image = encoded.image
    variables = {"params": params}
    moments: Any = vae.apply(variables, image, method="encode")
    mean, logvar = moments
    latents = mean + jnp.exp(0.5 * logvar) * encoded.noise
    error = jnp.asarray(vae.apply(variables, latents, method="decode")) - image
    divergence = 0.5 * (jnp.square(mean) + jnp.exp(logvar) - 1 - logvar)
    edges = sum(_mean(jnp.abs(jnp.diff(error, axis=axis))) for axis in (1, 2))
    return (
        _mean(jnp.abs(error) + squared_weight * jnp.square(error))
        + gradient_weight * edges
        + kl_weight * divergence.sum((1, 2, 3)) / image[0].size
    )


def _mean(x: jax.Array) -> jax.Array:
    return x.mean((1, 2, 3))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Autoencoder:
    """The autoencoder as a part of training; for its class attributes see `Stage`.

    Attributes:
      height: of the frames that it is trained on, in pixels.
      width: likewise.
      fps: frames per second of the clips that they are taken from.
      config: of the network.
      kl_weight: see `loss`.
      gradient_weight: see `loss`.
      squared_weight: see `loss`.
    """

    name: ClassVar[str] = "vae"
    trained: ClassVar[str] = "vae"
    encoder: ClassVar[Encoder | None] = None
    networks: ClassVar[tuple[str, ...]] = ("vae",)
    in_cascade: ClassVar[bool] = True
    depends: ClassVar[Mapping[str, tuple[str, ...]]] = {Translation.name: ("fps", "vae")}

    height: int
    width: int
    fps: float
    config: VAEConfig
    kl_weight: float
    gradient_weight: float
    squared_weight: float

    @classmethod
    def from_config(cls, config: ConfigDict) -> Self:
        """Builds the part from a config such as `configs/show1.py`.

        Raises:
          InputError: if a setting is wrong.
        """
        train, section = config.train[cls.name], config[Translation.name]
        return cls(
            height=train.height,
            width=train.width,
            fps=section.fps,
            config=build(VAEConfig, section.vae, f"{Translation.name}.vae"),
            kl_weight=train.kl_weight,
            gradient_weight=train.gradient_weight,
            squared_weight=train.squared_weight,
        )

    @classmethod
    def stored_with(cls) -> str:
        """The name of the stage in whose folder a checkpoint keeps the network."""
        return Translation.name

    @property
    def training_clip(self) -> ClipSpec:
        """The clips that training reads: single frames."""
        return ClipSpec(1, self.height, self.width, self.fps)

    def module(self, dtype: Any) -> VAE:
        """The network that the config describes, to compute in `dtype`."""
        return VAE(self.config, dtype)
