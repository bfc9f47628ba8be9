"""The one exception that a person at a terminal is meant to read, and what several of them say."""

import contextlib
from collections.abc import Iterator

# What to change where memory is short.
LESS_MEMORY = (
    "raise accumulate or mesh.fsdp, make batch_size smaller, set a denoiser's remat to "
    "nothing_saveable, or spread each clip with mesh.frames"
)
LESS_MEMORY_SAMPLING = (
    "make batch_size or translation.vae_frames smaller, or use more devices: mesh.frames spreads "
    "each clip, mesh.fsdp and mesh.tensor the parameters"
)


class InputError(ValueError):
    """Something the user gave is wrong; the message is one line that says what would work.

    Command-line programs print it without a traceback and exit with status 1.
    """


class Preempted(Exception):
    """The program was told to end (SIGTERM, Ctrl-C) and has saved what it had; exit status 143."""


@contextlib.contextmanager
def fitting(what: str, advice: str) -> Iterator[None]:
    """Turns what JAX says when a device's memory is short into an InputError.

    Args:
      what: is computed.
      advice: what to change, such as `LESS_MEMORY`.

    Raises:
      InputError: if it does not fit.
    """
    try:
        yield
    except RuntimeError as error:  # JaxRuntimeError is one
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise InputError(f"{what} does not fit the device's memory: {advice}") from error
