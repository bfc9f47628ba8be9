"""The one exception that a person at a terminal is meant to read, and what several of them say."""

import contextlib
import errno
import tokenize
import zipfile
import zlib
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
LESS_MEMORY_NETWORK = (
    "end other programs that hold memory, or use more devices: mesh.fsdp and mesh.tensor spread "
    "the parameters"
)
# How errors of different libraries say it.
SHORT_OF_MEMORY = ("RESOURCE_EXHAUSTED", "bad_alloc", "can't start new thread")


# What NumPy raises on damaged files of arrays: tokenize's of a header that is cut off, MemoryError
# of one that says more than there is, RuntimeError of archives' encrypted or packed parts.
ARRAY_DAMAGE: tuple[type[Exception], ...] = (OSError, ValueError, EOFError, KeyError, RuntimeError)
ARRAY_DAMAGE += (MemoryError, SyntaxError, tokenize.TokenError, zipfile.BadZipFile, zlib.error)


class InputError(ValueError):
    """Something the user gave is wrong; the message is one line that says what would work.

    Command-line programs print it without a traceback and exit with status 1.
    """


class UsageError(InputError):
    """The command line, or a value that it gave a config, is wrong; exit status 2."""


class Preempted(Exception):
    """The program was told to end (SIGTERM, Ctrl-C) and has saved what it had; exit status 143."""


@contextlib.contextmanager
def fitting(what: str, advice: str) -> Iterator[None]:
    """Turns what is raised when the memory of a device or of the host is short into an InputError.

    Args:
      what: is computed.
      advice: what to change, such as `LESS_MEMORY`.

    Raises:
      InputError: if it does not fit.
    """
    try:
        yield
    except (MemoryError, RuntimeError, OSError) as error:  # JaxRuntimeError is a RuntimeError
        if not short_of_memory(error):
            raise
        whose = "the device's" if isinstance(error, RuntimeError) else "this machine's"
        raise InputError(f"{what} does not fit {whose} memory: {advice}") from error


def short_of_memory(error: BaseException) -> bool:
    """Whether an error says that the memory of a device or of the host is short."""
    if isinstance(error, RuntimeError):
        return any(text in str(error) for text in SHORT_OF_MEMORY)
    return isinstance(error, MemoryError) or (
        isinstance(error, OSError) and error.errno == errno.ENOMEM
    )
