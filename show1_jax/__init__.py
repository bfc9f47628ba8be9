"""Show-1 in JAX: cascaded pixel and latent text-to-video diffusion for TPU and GPU.

    import show1_jax

    cascade = show1_jax.load()
    videos = cascade(["a small red circle moving left on a black background"])
    videos[0].save("circle.mp4")

What is named here is the public API. It is imported when it is first used, so that `import
show1_jax` takes no time.
"""

import importlib
from typing import TYPE_CHECKING, Any

from show1_jax._version import __version__

if TYPE_CHECKING:
    from show1_jax import convert
    from show1_jax.adapters.customize import customize
    from show1_jax.adapters.files import Adapter, load_adapter, save_adapter
    from show1_jax.cascade import Cascade, Result, load
    from show1_jax.convert import load_diffusers
    from show1_jax.errors import InputError
    from show1_jax.media import to_uint8
    from show1_jax.stages import STAGES, Stage
    from show1_jax.stages.inversion import Noise, load_noise, save_noise
    from show1_jax.training.loop import train
    from show1_jax.video import Video

__all__ = [
    "STAGES",
    "Adapter",
    "Cascade",
    "InputError",
    "Noise",
    "Result",
    "Stage",
    "Video",
    "__version__",
    "convert",
    "customize",
    "load",
    "load_adapter",
    "load_diffusers",
    "load_noise",
    "save_adapter",
    "save_noise",
    "to_uint8",
    "train",
]

_PLACES = {
    "STAGES": "stages",
    "Adapter": "adapters.files",
    "Cascade": "cascade",
    "InputError": "errors",
    "Noise": "stages.inversion",
    "Result": "cascade",
    "Stage": "stages",
    "Video": "video",
    "customize": "adapters.customize",
    "load": "cascade",
    "load_adapter": "adapters.files",
    "load_diffusers": "convert",
    "load_noise": "stages.inversion",
    "save_adapter": "adapters.files",
    "save_noise": "stages.inversion",
    "to_uint8": "media",
    "train": "training.loop",
}


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first asked for."""
    if name == "convert":
        return importlib.import_module(f"{__name__}.convert")
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(importlib.import_module(f"{__name__}.{_PLACES[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    """The public names."""
    return sorted(__all__)
