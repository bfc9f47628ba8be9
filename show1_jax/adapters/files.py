"""Adapters: what fine-tuning changed of a denoiser, as one small file.

A `.safetensors` file. Low-rank changes are in the keys of diffusers and PEFT:
`unet.MODULE.lora_A.weight` and `unet.MODULE.lora_B.weight`, the two factors. Where
a matrix was trained itself, `unet.MODULE.weight.diff` is all of its change, in
bf16; diffusers has no such files. What it was made for and from stands in the metadata.
"""

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np
from etils.epath import Path
from flax.traverse_util import flatten_dict, unflatten_dict

from show1_jax.checkpoints.fields import parse_json
from show1_jax.checkpoints.keys import CONV, CONV_FRAMES, DENSE, SAME, Layout
from show1_jax.checkpoints.networks import read_json
from show1_jax.checkpoints.tables import UNET
from show1_jax.checkpoints.torch_files import read_header, read_metadata
from show1_jax.checkpoints.torch_writer import write_file
from show1_jax.errors import InputError
from show1_jax.files import written_on_disk
from show1_jax.parallel.sharding import in_kernel_order
from show1_jax.paths import as_path

DIFFERENCE = ".diff"
FACTORS = (".lora_A.weight", ".lora_B.weight")
# Of diffusers; PEFT's own files say the other.
PREFIXES = ("unet.", "base_model.model.")
PEFT = "lora_adapter_metadata"  # where diffusers keeps rank and alpha
BASE = "base"
DIGEST = "digest"  # of the tensors
TIMESTEPS = "timesteps"
# How many axes PyTorch's arrays of a layout have.
AXES = {DENSE: (2,), CONV: (4,), CONV_FRAMES: (5,), SAME: (1, 2)}
MAX_RANK = 2**20  # and alpha, far beyond what there is
UNSUPPORTED = ("use_dora", "use_rslora", "alpha_pattern", "rank_pattern")


@dataclasses.dataclass(frozen=True)
class Adapter:
    """What fine-tuning changed.

    Attributes:
      changes: by the slashed path of a parameter, what to add to it: an array
        like it, or two factors whose product is that.
      base: the `base_fingerprint` of the network it was made for; "" if unknown.
      source: what to call it in messages.
      about: what else its file says of it.
      timesteps: the first and one past the last at which it changes anything;
        None for all.
    """

    changes: Mapping[str, tuple[np.ndarray, ...]]
    base: str = ""
    source: str = "the adapter"
    about: Mapping[str, str] = dataclasses.field(default_factory=dict)
    timesteps: tuple[int, int] | None = None

    def holds(self, timestep: int) -> bool:
        """Whether it changes anything at a timestep."""
        return self.timesteps is None or self.timesteps[0] <= timestep < self.timesteps[1]


def base_fingerprint(params: Any) -> str:
    """Tells networks apart, whatever dtype they were loaded in.

    Vectors are always in fp32. Of a row of each other parameter the signs are taken, which no
    rounding changes.
    """
    digest = hashlib.sha256()
    for path, leaf in sorted(flatten_dict(params, sep="/").items()):
        row = np.asarray(leaf[(0,) * (leaf.ndim - 1)]).astype(np.float32)
        digest.update(path.encode() + (row if leaf.ndim == 1 else np.signbit(row)).tobytes())
    return digest.hexdigest()[:16]


def save_adapter(path: Path, adapter: Adapter) -> None:
    """Writes an adapter's file, at once.

    Raises:
      InputError: if it cannot be written.
    """
    ranks = {len(change[1]) for change in adapter.changes.values() if len(change) == 2}
    tensors = list(_tensors(adapter))
    metadata = {**adapter.about, BASE: adapter.base, DIGEST: _digest(tensors)}
    if adapter.timesteps is not None:
        metadata[TIMESTEPS] = json.dumps(adapter.timesteps)
    if ranks:
        modules = [
            key.removesuffix(FACTORS[0]).removeprefix(PREFIXES[0])
            for key, _ in tensors
            if key.endswith(FACTORS[0])
        ]
        config = {"r": max(ranks), "lora_alpha": max(ranks), "target_modules": modules}
        metadata[PEFT] = json.dumps({f"unet.{name}": value for name, value in config.items()})
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_on_disk(path) as partial:
            write_file(partial, tensors, metadata)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}") from None


def _tensors(adapter: Adapter) -> Iterator[tuple[str, np.ndarray]]:
    for path, change in sorted(adapter.changes.items()):
        found = UNET.to_torch(path)
        assert found is not None, f"{path} is in no row of the key table"
        key, layout = found
        if len(change) == 1:
            difference = layout.to_torch(change[0]).astype(ml_dtypes.bfloat16)
            yield f"{PREFIXES[0]}{key}{DIFFERENCE}", difference
            continue
        module = key.removesuffix(".weight")
        for suffix, factor in zip(FACTORS, change, strict=True):
            yield f"{PREFIXES[0]}{module}{suffix}", layout.to_torch(_like_kernel(factor, layout))


def _like_kernel(factor: np.ndarray, layout: Layout) -> np.ndarray:
    """A convolution's second factor as the kernel of a convolution over one frame."""
    return factor[None] if layout is CONV_FRAMES and factor.ndim == 2 else factor


def load_adapter(path: Path, params: Any) -> Adapter:
    """Reads an adapter's file, also one that PEFT or diffusers wrote.

    Args:
      path: a `.safetensors` file.
      params: of the network that it is for; shapes suffice.

    Raises:
      InputError: if the file is damaged, or not for this network.
    """
    if not path.is_file():
        raise InputError(f"there is no adapter {path}")
    stored, metadata = read_header(path), read_metadata(path)
    shapes = {name: leaf.shape for name, leaf in flatten_dict(params, sep="/").items()}
    parts: dict[str, dict[int, np.ndarray]] = {}
    read: list[tuple[str, np.ndarray]] = []
    for key, tensor in stored.items():
        name, part, layout = _place(key, path)
        array = tensor.read()
        read.append((key, array))
        if array.ndim not in AXES[layout]:
            raise InputError(f"{path}: {key} is {array.shape}, which is no change of {name}")
        array = layout.to_jax(array).astype(np.float32)
        if not np.isfinite(array).all():
            raise InputError(f"{path}: {key} is not finite")
        if part == 2 and layout is CONV_FRAMES and array.shape[0] == 1:
            array = array[0]
        parts.setdefault(name, {})[part] = array
    if DIGEST in metadata and metadata[DIGEST] != _digest(read):
        raise InputError(f"{path} is damaged: copy it again")
    scale = _scale(_peft_config(metadata, path, any(key.startswith(PREFIXES[1]) for key in stored)))
    changes: dict[str, tuple[np.ndarray, ...]] = {}
    for name, found in parts.items():
        if set(found) not in ({0}, {1, 2}):
            raise InputError(f"{path} has only half of what changes {name}: copy it again")
        with np.errstate(over="ignore"):
            change = (found[0],) if 0 in found else (found[1], np.float32(scale) * found[2])
        if shapes.get(name) != _shape(change):
            if change[0].ndim > 3 and len(change) == 2:
                raise InputError(f"{path}: LoRA of convolutions over pixels is not supported")
            raise InputError(
                f"{path} is not for this network, whose {name} is "
                f"{shapes.get(name, 'not there')}, not {_shape(change)}"
            )
        if not _largest(change) < float(np.finfo(np.float32).max):
            raise InputError(f"{path}: what changes {name} is beyond fp32")
        changes[name] = change
    if not changes:
        raise InputError(f"{path} changes nothing: it holds no tensor")
    ours = (BASE, DIGEST, TIMESTEPS, PEFT, "format")
    about = {key: value for key, value in metadata.items() if key not in ours}
    return Adapter(changes, metadata.get(BASE, ""), str(path), about, _timesteps(metadata, path))


def _timesteps(metadata: Mapping[str, str], path: Path) -> tuple[int, int] | None:
    if TIMESTEPS not in metadata:
        return None
    match = re.fullmatch(r"\[(\d{1,9}), ?(\d{1,9})\]", metadata[TIMESTEPS])
    first, end = map(int, match.groups()) if match else (0, 0)
    if first >= end:
        text = metadata[TIMESTEPS][:40]
        raise InputError(f"{path}: its timesteps are {text}, not the first and one past the last")
    return first, end


def _place(key: str, path: Path) -> tuple[str, int, Layout]:
    """The parameter that a tensor changes, whether it is all (0) or a factor (1, 2), its layout."""
    name = key
    for prefix in PREFIXES:
        name = name.removeprefix(prefix)
    for part, suffix in enumerate((DIFFERENCE, *FACTORS)):
        if name.endswith(suffix):
            module = name.removesuffix(suffix)
            found = UNET.to_ours(module if not part else f"{module}.weight")
            if found is not None:
                return found[0], part, found[1]
    raise InputError(f"{path} is no adapter of a denoiser: {key} changes nothing that one has")


def _peft_config(metadata: Mapping[str, str], path: Path, from_peft: bool) -> dict[str, Any]:
    """Rank and alpha: diffusers keeps them in the metadata, PEFT in a file beside."""
    try:
        config = parse_json(metadata.get(PEFT, "{}"))
        if PEFT not in metadata and from_peft:
            config = read_json(path.with_name("adapter_config.json"))
        config = {key.removeprefix(PREFIXES[0]): value for key, value in config.items()}
    except InputError as error:
        raise InputError(f"{path} is PEFT's, whose rank and alpha are elsewhere: {error}") from None
    except (ValueError, AttributeError, RecursionError) as error:
        raise InputError(f"{path}: its {PEFT} cannot be read: {error}") from None
    if unknown := [name for name in UNSUPPORTED if config.get(name)]:
        raise InputError(f"{path} sets {unknown[0]}, which is not supported")
    return config


def _scale(config: Mapping[str, Any]) -> float:
    """PEFT's alpha divided by its rank."""
    rank = config.get("r", 1)
    alpha = config.get("lora_alpha", rank)
    numbers = all(type(value) in (int, float) for value in (rank, alpha))
    # NaN is within no range.
    if not numbers or not 1 <= rank <= MAX_RANK or not abs(alpha) <= MAX_RANK:
        raise InputError(f"an adapter of rank {rank!r:.40} and alpha {alpha!r:.40} is not possible")
    return alpha / rank


def _digest(tensors: Iterable[tuple[str, np.ndarray]]) -> str:
    digest = hashlib.sha256()
    for key, array in tensors:
        digest.update(key.encode() + np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:16]


def _shape(change: tuple[np.ndarray, ...]) -> tuple[int, ...]:
    """Of the parameter that is changed."""
    if len(change) == 1 or change[0].shape[-1] != change[1].shape[0]:
        return change[0].shape
    return (*change[0].shape[:-1], change[1].shape[-1])


def _largest(change: tuple[np.ndarray, ...]) -> float:
    """What no number of a change exceeds."""
    bounds = [float(np.abs(part).max(initial=0)) for part in change]
    return bounds[0] if len(change) == 1 else bounds[0] * bounds[1] * change[1].shape[0]


def _whole(change: tuple[np.ndarray, ...]) -> np.ndarray:
    return change[0] if len(change) == 1 else change[0] @ change[1]


def apply_adapters(params: Any, adapters: Sequence[tuple[Adapter, float]]) -> Any:
    """Parameters with what adapters change, each times its weight; added in fp32.

    Args:
      params: the network's.
      adapters: with weights: 0 for nothing of it, 1 for all.

    Returns:
      A tree like `params`, in its dtypes, where it was.

    Raises:
      InputError: if one was made for another network. Of those from elsewhere
        that is not known.
    """
    if not adapters:
        return params
    base = base_fingerprint(params)
    for adapter, _ in adapters:
        if adapter.base not in ("", base):
            raise InputError(
                f"{adapter.source} was made for another checkpoint (fingerprint {adapter.base}, "
                f"not {base}): take the one that it was trained on, or train it anew"
            )
    flat = dict(flatten_dict(params, sep="/"))
    total: dict[str, Any] = {}
    for adapter, weight in adapters:
        for path, change in adapter.changes.items():
            total[path] = total.get(path, 0) + np.float32(weight) * _whole(change)
    for path, difference in total.items():
        changed = (flat[path].astype(jnp.float32) + difference).astype(flat[path].dtype)
        flat[path] = in_kernel_order(changed)
    return unflatten_dict(flat, sep="/")


def parse_adapter(text: str) -> tuple[Path, float]:
    """An adapter's file and weight, from `FILE` or `FILE=WEIGHT`.

    Raises:
      InputError: if the weight is no number.
    """
    if not isinstance(text, str):  # of a config
        raise InputError(f"adapters are files or FILE=WEIGHT, not {text!r:.40}")
    file, _, weight = text.rpartition("=")
    if not file:
        return as_path(text), 1.0
    try:
        value = float(weight)
    except ValueError:
        value = np.nan
    if not np.isfinite(value):
        raise InputError(f"adapter {text!r}: {weight!r} is not a weight, such as 0.8")
    return as_path(file), value
