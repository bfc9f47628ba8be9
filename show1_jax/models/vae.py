"""The image autoencoder of the latent stage (Rombach et al., arXiv 2112.10752, KL variant)."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from show1_jax.models.layers import GroupNorm, ResnetBlock, conv3x3
from show1_jax.models.ops.attention import attention

EPS = 1e-6


@dataclasses.dataclass(frozen=True)
class VAEConfig:
    """Sizes of the autoencoder; the defaults are those of the released one.

    Attributes:
      in_channels: channels of images to encode.
      out_channels: channels of decoded images.
      latent_channels: channels of latents.
      channels: width of each level, finest first. Each level has half the resolution of the one
        before it.
      layers_per_block: ResNet blocks per level of the encoder; the decoder has one more.
      norm_groups: groups of every normalisation.
      scaling_factor: latents of the denoiser are multiplied by it, so that their variance is
        about one. The autoencoder itself never applies it.
    """

    in_channels: int = 3
    out_channels: int = 3
    latent_channels: int = 4
    channels: tuple[int, ...] = (128, 256, 512, 512)
    layers_per_block: int = 2
    norm_groups: int = 32
    scaling_factor: float = 0.18215

    @property
    def downscale(self) -> int:
        """Width and height of one latent in pixels."""
        return 2 ** (len(self.channels) - 1)


class SpatialAttention(nn.Module):
    """Single-head self-attention over the positions of an image, with a residual connection."""

    groups: int
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `(..., h, w, c)` to the same shape."""
        types: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        *_, height, width, channels = x.shape
        h = GroupNorm(self.groups, EPS, name="group_norm", **types)(x)
        h = h.reshape(-1, height * width, channels)
        query, key, value = (
            nn.Dense(channels, name=name, **types)(h)[:, :, None]
            for name in ("to_q", "to_k", "to_v")
        )
        h = attention(query, key, value)[:, :, 0]
        return x + nn.Dense(channels, name="to_out", **types)(h).reshape(x.shape)


class Level(nn.Module):
    """ResNet blocks of one resolution, then resampling, if any."""

    channels: int
    layers: int
    groups: int
    resample: str | None = None
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `(..., h, w, c)` to `(..., h', w', channels)`."""
        types: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        for i in range(self.layers):
            x = ResnetBlock(self.channels, self.groups, EPS, nn.silu, name=f"resnet_{i}", **types)(
                x
            )
        if self.resample == "down":
            # Padded only below and on the right, like PyTorch's network.
            return nn.Conv(
                self.channels,
                (3, 3),
                strides=2,
                padding=((0, 1), (0, 1)),
                name="downsample",
                **types,
            )(x)
        if self.resample == "up":
            return conv3x3(self.channels, "upsample", upsampled=True, **types)(x)
        return x


class Middle(nn.Module):
    """The coarsest level: a ResNet block, attention, a ResNet block."""

    channels: int
    groups: int
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `(..., h, w, channels)` to the same shape."""
        types: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        resnet = (self.channels, self.groups, EPS, nn.silu)
        x = ResnetBlock(*resnet, name="resnet_0", **types)(x)
        x = SpatialAttention(self.groups, name="attention_0", **types)(x)
        return ResnetBlock(*resnet, name="resnet_1", **types)(x)


class Encoder(nn.Module):
    """Encodes images to moments, without the 1x1 convolution of `VAE`."""

    config: VAEConfig
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `(..., height, width, in_channels)` to `(..., h, w, 2 * latent_channels)`."""
        config = self.config
        types: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        x = conv3x3(config.channels[0], "conv_in", **types)(x)
        last = len(config.channels) - 1
        for i, channels in enumerate(config.channels):
            x = Level(
                channels,
                config.layers_per_block,
                config.norm_groups,
                "down" if i < last else None,
                name=f"down_{i}",
                **types,
            )(x)
        x = Middle(config.channels[-1], config.norm_groups, name="mid", **types)(x)
        x = nn.silu(GroupNorm(config.norm_groups, EPS, name="conv_norm_out", **types)(x))
        return conv3x3(2 * config.latent_channels, "conv_out", **types)(x)


class Decoder(nn.Module):
    """Decodes latents to images, without the 1x1 convolution of `VAE`."""

    config: VAEConfig
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `(..., h, w, latent_channels)` to `(..., height, width, out_channels)`."""
        config = self.config
        types: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        x = conv3x3(config.channels[-1], "conv_in", **types)(x)
        x = Middle(config.channels[-1], config.norm_groups, name="mid", **types)(x)
        last = len(config.channels) - 1
        for i, channels in enumerate(reversed(config.channels)):
            x = Level(
                channels,
                config.layers_per_block + 1,
                config.norm_groups,
                "up" if i < last else None,
                name=f"up_{i}",
                **types,
            )(x)
        x = nn.silu(GroupNorm(config.norm_groups, EPS, name="conv_norm_out", **types)(x))
        return conv3x3(config.out_channels, "conv_out", **types)(x)


class VAE(nn.Module):
    """Encodes images to a Gaussian over latents and decodes latents to images.

    Images are `(..., height, width, channels)` in [-1, 1]. Each image is treated independently, so
    clips can be passed too.
    """

    config: VAEConfig
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    def setup(self) -> None:  # noqa: D102
        types: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        self.encoder = Encoder(self.config, **types)
        self.quant_conv = nn.Conv(2 * self.config.latent_channels, (1, 1), **types)
        self.post_quant_conv = nn.Conv(self.config.latent_channels, (1, 1), **types)
        self.decoder = Decoder(self.config, **types)

    def encode(self, image: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Encodes images to the posterior of their latents.

        Args:
          image: `(..., height, width, in_channels)` in [-1, 1].

        Returns:
          Mean and log variance, fp32 `(..., h, w, latent_channels)` each, not multiplied by the
          scaling factor. `h` is `height / config.downscale`.
        """
        moments = self.quant_conv(self.encoder(image)).astype(jnp.float32)
        mean, logvar = jnp.split(moments, 2, axis=-1)
        return mean, jnp.clip(logvar, -30.0, 20.0)

    def decode(self, latents: jax.Array) -> jax.Array:
        """Decodes latents to images.

        Args:
          latents: `(..., h, w, latent_channels)`, already divided by the scaling factor.

        Returns:
          fp32 `(..., height, width, out_channels)`, about in [-1, 1], not clipped.
        """
        return self.decoder(self.post_quant_conv(latents)).astype(jnp.float32)

    def __call__(self, image: jax.Array) -> jax.Array:
        """Encodes images and decodes the means of their latents; initialises all parameters."""
        mean, _ = self.encode(image)
        return self.decode(mean)
