"""One program at a time in a folder."""

import contextlib
import errno
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from absl import logging

from show1_jax.errors import InputError

FILE = "lock"
# What file systems without locks say.
UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)


@contextlib.contextmanager
def locked(folder: Path, flag: str) -> Iterator[None]:
    """Locks a folder, which exists, against other programs that lock it too.

    The operating system frees it when the program ends, however it does. Machines that share an
    NFS folder see each other's locks unless it is mounted with `nolock` or `local_lock`; other
    network file systems may know none, which is logged.

    Args:
      folder: which folder.
      flag: the flag that names another, for messages.

    Raises:
      InputError: if another program has it.
      OSError: if the lock's file cannot be written.
    """
    with (folder / FILE).open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            whose = file.read(200).strip() or "unknown"
            raise InputError(
                f"{folder} is in use by another program ({whose}): wait until it ends, or give "
                f"another {flag}"
            ) from None
        except OSError as error:
            if error.errno not in UNSUPPORTED:
                raise
            logging.warning("%s cannot be locked: let no other program use it", folder)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield
