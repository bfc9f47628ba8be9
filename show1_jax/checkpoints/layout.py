"""Where a network's parameters are in its folder of a checkpoint."""

import json
import re

from etils.epath import Path

from show1_jax.checkpoints.networks import read_json
from show1_jax.errors import InputError

PARAMS = "params"
# Lists the file of each tensor, so that converting back makes the same files.
ORIGIN = "torch_files.json"
# Replaces `params/`: names a network of the same checkpoint that has equal parameters.
REFERENCE = "params.json"
_KEY = "same_as"


def has_params(network: Path) -> bool:
    """Returns whether a network's folder has parameters, or refers to those of another network."""
    return (network / PARAMS).is_dir() or (network / REFERENCE).is_file()


def reference(network: Path) -> str | None:
    """Returns the name of the network whose parameters this one uses, such as `show-1-base/unet`.

    Args:
      network: its folder, such as `CHECKPOINT/show-1-sr1/text_encoder`.

    Returns:
      The name; None if the network has its own parameters.

    Raises:
      InputError: if the reference is not a valid name.
    """
    path = network / REFERENCE
    if (network / PARAMS).is_dir() or not path.is_file():
        return None
    name = read_json(path).get(_KEY)
    # Two plain names, so that it cannot lead out of the checkpoint.
    if not isinstance(name, str) or not re.fullmatch(r"[^./\\][^/\\]*/\w+", name):
        raise InputError(f"{path} must name a network, such as show-1-base/text_encoder")
    return name


def params_folder(network: Path) -> Path:
    """Returns the Orbax checkpoint of a network's parameters, which an equal network may own.

    Args:
      network: its folder, such as `CHECKPOINT/show-1-sr1/text_encoder`.

    Raises:
      InputError: if the network refers to one that is not in the same checkpoint.
    """
    name = reference(network)
    if name is None:
        return network / PARAMS
    other = network.absolute().parent.parent / name / PARAMS
    if not other.is_dir():
        raise InputError(
            f"{network} uses the parameters of {name}, but {other} does not exist; keep the "
            "folders of a checkpoint together"
        )
    return other


def write_reference(network: Path, other: str) -> None:
    """Makes a network's folder refer to the parameters of another, such as `show-1-base/unet`."""
    (network / REFERENCE).write_text(json.dumps({_KEY: other}) + "\n")
