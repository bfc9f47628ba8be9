"""Exceptions for users, and how to recognise errors of other libraries."""

import contextlib
import errno
import tokenize
import zipfile
import zlib
from collections.abc import Iterator

# Advice for `out_of_memory_as_error`.
LESS_MEMORY = (
    "raise accumulate or mesh.fsdp, make batch_size smaller, set a denoiser's remat to "
    "nothing_saveable, or split each clip with mesh.frames"
)
LESS_MEMORY_SAMPLING = (
    "set memory to low, make batch_size smaller, or use more devices: mesh.frames splits each "
    "clip, mesh.fsdp and mesh.tensor split the parameters"
)
LESS_MEMORY_NETWORK = (
    "end other programs that hold memory, or use more devices: mesh.fsdp and mesh.tensor split "
    "the parameters"
)
# Parts of messages that different libraries raise when memory is short.
OUT_OF_MEMORY_MESSAGES = ("RESOURCE_EXHAUSTED", "bad_alloc", "can't start new thread")

# What NumPy raises for damaged files of arrays. TokenError: the header is cut off. MemoryError: the
# header claims more data than there is. RuntimeError: an archive has encrypted or packed parts.
ARRAY_DAMAGE: tuple[type[Exception], ...] = (OSError, ValueError, EOFError, KeyError, RuntimeError)
ARRAY_DAMAGE += (MemoryError, SyntaxError, tokenize.TokenError, zipfile.BadZipFile, zlib.error)


class InputError(ValueError):
    """Something that the user gave is wrong.

    The message is one line that says what is wrong and what to do. Command-line programs print it
    without a traceback, and exit with status 1.
    """


class UsageError(InputError):
    """The command line, or a value that it gave a config, is wrong; exit status 2."""


class Preempted(Exception):
    """A signal (SIGTERM, Ctrl-C) stopped the program, which has saved its work; exit status 143."""


def why(error: BaseException) -> object:
    """What an error says, without the number and the path that an OSError has."""
    return getattr(error, "strerror", None) or error


@contextlib.contextmanager
def out_of_memory_as_error(what: str, advice: str) -> Iterator[None]:
    """Turns errors about too little memory, of a device or of the host, into an InputError.

    Args:
      what: name of what is computed.
      advice: what to change, such as `LESS_MEMORY`.

    Raises:
      InputError: if memory runs out within the context.
    """
    try:
        yield
    except (MemoryError, RuntimeError, OSError) as error:  # JaxRuntimeError is a RuntimeError
        if not is_out_of_memory(error):
            raise
        whose = "the device's" if isinstance(error, RuntimeError) else "this machine's"
        raise InputError(f"{what} does not fit {whose} memory: {advice}") from error


def is_out_of_memory(error: BaseException) -> bool:
    """Returns whether an error says that a device or the host has too little memory."""
    if isinstance(error, RuntimeError):
        return any(text in str(error) for text in OUT_OF_MEMORY_MESSAGES)
    return isinstance(error, MemoryError) or (
        isinstance(error, OSError) and error.errno == errno.ENOMEM
    )
