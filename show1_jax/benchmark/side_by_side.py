"""Our networks against those of PyTorch's libraries, on this machine (extra `bench`).

Both get the same parameters and inputs, in fp32, and take turns, so that what
else the machine does meets both.
"""

import dataclasses
import importlib
import inspect
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from show1_jax.checkpoints.network_config import t5_json, vae_json
from show1_jax.checkpoints.unet_config import unet_json
from show1_jax.convert import load_diffusers
from show1_jax.errors import InputError
from show1_jax.models.t5 import T5Config
from show1_jax.stages import Autoencoder, FirstFrame, Translation
from show1_jax.text.tokenizers import LENGTH

T5_LAYERS = 4  # of T5-XXL's 24: all of them, twice, are 38 GB


@dataclasses.dataclass(frozen=True)
class Pair:
    """The PyTorch network, and how both are called on the same arrays.

    Attributes:
      torch: the network.
      inputs: arrays, channels last.
      call_ours: of our module, its parameters and the inputs.
      call_theirs: of the network and the inputs as tensors, channels last too.
      about: what of the released size this is.
    """

    torch: Any
    inputs: tuple[np.ndarray, ...]
    call_ours: Callable[..., Any]
    call_theirs: Callable[..., Any]
    about: str


def compare(config: ConfigDict, name: str, calls: int, frames: int) -> None:
    """Prints the seconds of a network in both, their ratio, and how far results differ.

    Args:
      config: as in `configs/show1.py`.
      name: of `NETWORKS`.
      calls: how often each is called.
      frames: of a clip, where the network takes clips.

    Raises:
      InputError: if PyTorch or its libraries are not installed, or JAX uses an accelerator.
    """
    if jax.default_backend() != "cpu":
        raise InputError("--torch compares on CPUs: set JAX_PLATFORMS=cpu")
    torch = _load("torch")
    with torch.no_grad():
        torch.manual_seed(0)
        pair = NETWORKS[name](config, frames)
        pair.torch.eval()
        with tempfile.TemporaryDirectory() as folder:
            pair.torch.save_pretrained(folder)
            module, params = load_diffusers(folder)
        call = jax.jit(lambda params, *inputs: pair.call_ours(module, params, *inputs))
        arrays = [jnp.asarray(array) for array in pair.inputs]
        tensors = [torch.from_numpy(array) for array in pair.inputs]

        def ours() -> np.ndarray:
            return np.asarray(call(params, *arrays))

        def theirs() -> np.ndarray:
            return pair.call_theirs(pair.torch, *tensors).numpy()

        expected, found = theirs(), ours()
        difference = np.abs(found - expected).max() / np.abs(expected).max()
        seconds = np.array([[_seconds(ours), _seconds(theirs)] for _ in range(calls)])
    ratios = seconds[:, 0] / seconds[:, 1]
    print(
        f"{name} ({pair.about}): ours {np.median(seconds[:, 0]):.2f} s, PyTorch "
        f"{np.median(seconds[:, 1]):.2f} s, ratio {np.median(ratios):.2f} "
        f"({ratios.min():.2f} to {ratios.max():.2f}, of {calls}); results differ by "
        f"{difference:.1e} of the largest",
        flush=True,
    )


def _seconds(call: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def _load(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise InputError(f"--torch takes {name}: pip install 'show1-jax[bench]'") from error


def _noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape, np.float32)


def _translation(config: ConfigDict, frames: int) -> Pair:
    stage = Translation.from_config(config)
    unet, (_, _, *size, _) = stage.unet, stage.batch_shape
    settings = {k: v for k, v in unet_json(unet).items() if not k.startswith("_")}
    # Show-1's class reads this as the number of heads, diffusers' as their width.
    settings["attention_head_dim"] = unet.channels[0] // unet.attention_head_dim[0]
    kind = _load("diffusers").UNet3DConditionModel
    known = {key: settings[key] for key in settings if key in inspect.signature(kind).parameters}

    def theirs(network: Any, sample: Any, time: Any, text: Any) -> Any:
        made = network(sample.permute(0, 4, 1, 2, 3), time, text).sample
        return made.permute(0, 2, 3, 4, 1)

    inputs = (_noise(1, frames, *size, 4), np.array([500]), _noise(1, LENGTH, unet.text_dim))
    return Pair(kind(**known), inputs, _unet, theirs, f"1 x {frames} x {size[0]} x {size[1]}")


def _first_frame(config: ConfigDict, frames: int) -> Pair:
    del frames
    stage = FirstFrame.from_config(config)
    unet, size = stage.unet, (stage.height, stage.width)
    network = _load("diffusers").UNet2DConditionModel.from_config(unet_json(unet))

    def theirs(network: Any, sample: Any, time: Any, text: Any, level: Any) -> Any:
        made = network(sample[:, 0].permute(0, 3, 1, 2), time, text, class_labels=level).sample
        return made.permute(0, 2, 3, 1)[:, None]

    inputs = (
        _noise(1, 1, *size, unet.in_channels), np.array([500]),
        _noise(1, LENGTH, unet.text_dim), np.array([250]),
    )  # fmt: skip
    return Pair(network, inputs, _unet, theirs, f"1 x {size[0]} x {size[1]}")


def _unet(module: Any, params: Any, *inputs: jax.Array) -> Any:
    return module.apply({"params": params}, *inputs)


def _vae(config: ConfigDict, frames: int) -> Pair:
    stage = Translation.from_config(config)
    vae, (_, _, *size, _) = stage.vae_config, stage.batch_shape
    network = _load("diffusers").AutoencoderKL.from_config(vae_json(vae))

    def ours(module: Any, params: Any, latents: jax.Array) -> Any:
        return module.apply({"params": params}, latents, method="decode")

    def theirs(network: Any, latents: Any) -> Any:
        return network.decode(latents.permute(0, 3, 1, 2)).sample.permute(0, 2, 3, 1)

    inputs = (_noise(frames, *size, vae.latent_channels),)
    return Pair(network, inputs, ours, theirs, f"decodes {frames} x {size[0]} x {size[1]}")


def _t5(config: ConfigDict, frames: int) -> Pair:
    del frames
    if "t5" not in config.text:
        raise InputError("the config does not say how large t5 is (config.text.t5)")
    t5 = T5Config(**config.text.t5)
    transformers = _load("transformers")
    layers = min(T5_LAYERS, t5.num_layers)
    json = t5_json(dataclasses.replace(t5, num_layers=layers))
    network = transformers.T5EncoderModel(transformers.T5Config.from_dict(json))

    def ours(module: Any, params: Any, ids: jax.Array, mask: jax.Array) -> Any:
        return module.apply({"params": params}, ids, mask)

    def theirs(network: Any, ids: Any, mask: Any) -> Any:
        return network(input_ids=ids, attention_mask=mask).last_hidden_state

    ids = np.random.default_rng(0).integers(2, t5.vocab_size, (1, config.text.t5_tokens))
    about = f"{layers} of {t5.num_layers} layers, 1 x {ids.shape[1]} tokens"
    return Pair(network, (ids, np.ones_like(ids)), ours, theirs, about)


NETWORKS: dict[str, Callable[[ConfigDict, int], Pair]] = {
    Translation.name: _translation,
    FirstFrame.name: _first_frame,
    Autoencoder.name: _vae,
    "t5": _t5,
}
