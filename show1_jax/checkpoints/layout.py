"""How a network's folder in a checkpoint says where its parameters are."""

import json
import re
from pathlib import Path

from show1_jax.checkpoints.networks import read_json
from show1_jax.errors import InputError

PARAMS = "params"
# Which file held which tensor, so that converting back makes the same files.
ORIGIN = "torch_files.json"
# In place of `params/`: names the network of the same checkpoint that has equal parameters.
REFERENCE = "params.json"
_KEY = "same_as"


def has_params(network: Path) -> bool:
    """Whether a network's folder holds parameters, or refers to another's."""
    return (network / PARAMS).is_dir() or (network / REFERENCE).is_file()


def reference(network: Path) -> str | None:
    """The name of the network whose parameters this one shares, such as `show-1-base/unet`.

    Args:
      network: its folder, such as `CHECKPOINT/show-1-sr1/text_encoder`.

    Returns:
      The name in the checkpoint; None for a network that has its own.

    Raises:
      InputError: if what it refers to is no such name.
    """
    path = network / REFERENCE
    if (network / PARAMS).is_dir() or not path.is_file():
        return None
    name = read_json(path).get(_KEY)
    # Two plain names: it cannot lead out of the checkpoint.
    if not isinstance(name, str) or not re.fullmatch(r"[^./\\][^/\\]*/\w+", name):
        raise InputError(f"{path} does not name a network, such as show-1-base/text_encoder")
    return name


def params_folder(network: Path) -> Path:
    """The Orbax checkpoint of a network's parameters, which may be an equal network's.

    Args:
      network: its folder, such as `CHECKPOINT/show-1-sr1/text_encoder`.

    Raises:
      InputError: if it refers to a network that is not in the same checkpoint.
    """
    name = reference(network)
    if name is None:
        return network / PARAMS
    other = network.absolute().parent.parent / name / PARAMS
    if not other.is_dir():
        raise InputError(
            f"{network} has the parameters of {name}, but there is no {other}: "
            "keep the folders of one checkpoint together"
        )
    return other


def write_reference(network: Path, other: str) -> None:
    """Makes a network's folder refer to the parameters of another, such as `show-1-base/unet`."""
    (network / REFERENCE).write_text(json.dumps({_KEY: other}) + "\n")
