"""One program at a time in a folder."""

import contextlib
import errno
import fcntl
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

from absl import logging
from etils.epath import Path

from show1_jax.errors import InputError
from show1_jax.paths import in_bucket

FILE = "lock"
# What file systems without locks say.
UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)
BEAT_SECONDS = 10.0  # between two signs of life in a bucket
DEAD_SECONDS = 45.0  # without one: whoever had the lock is gone


@contextlib.contextmanager
def locked(folder: Path, flag: str) -> Iterator[None]:
    """Locks a folder, which exists, against other programs that lock it too.

    On a disk, the operating system frees it when the program ends, however it does. Machines that
    share an NFS folder see each other's locks unless it is mounted with `nolock` or `local_lock`;
    other network file systems may know none, which is logged.

    In a bucket, the lock is an object that the program writes anew while it runs. One that was
    killed is noticed at once on its own machine, and by others after `DEAD_SECONDS`.

    Args:
      folder: which folder.
      flag: the flag that names another, for messages.

    Raises:
      InputError: if another program has it.
      OSError: if the lock's file cannot be written.
    """
    with _lease(folder, flag) if in_bucket(folder) else _flock(folder, flag):
        yield


def _in_use(folder: Path, whose: str, flag: str) -> InputError:
    return InputError(
        f"{folder} is in use by another program ({whose}): wait until it ends, or give "
        f"another {flag}"
    )


@contextlib.contextmanager
def _flock(folder: Path, flag: str) -> Iterator[None]:
    with open(folder / FILE, "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            whose = file.read(200).strip() or "unknown"
            raise _in_use(folder, whose, flag) from None
        except OSError as error:
            if error.errno not in UNSUPPORTED:
                raise
            logging.warning("%s cannot be locked: let no other program use it", folder)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield


@contextlib.contextmanager
def _lease(folder: Path, flag: str) -> Iterator[None]:
    path: Any = folder / FILE
    own = {"host": socket.gethostname(), "process": os.getpid(), "token": secrets.token_hex(8)}

    def content() -> bytes:
        return json.dumps(own | {"time": time.time()}).encode()

    _await_free(path, folder, flag)
    try:
        path.create(content())
    except FileExistsError:
        raise _in_use(folder, _whose(_read(path)), flag) from None
    # Not all stores that speak these protocols refuse the second of two that create.
    if _read(path).get("token") != own["token"]:
        raise _in_use(folder, _whose(_read(path)), flag)
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(BEAT_SECONDS):
            try:
                if _read(path).get("token", own["token"]) != own["token"]:
                    logging.error("%s was taken by %s: stop one of both", path, _whose(_read(path)))
                    return
                path.write_bytes(content())
            except OSError as error:
                logging.warning("%s cannot be kept: %s", path, error.strerror)

    beating = threading.Thread(target=beat, daemon=True, name="lock")
    beating.start()
    try:
        yield
    finally:
        ended.set()
        beating.join()
        with contextlib.suppress(OSError):
            if _read(path).get("token") == own["token"]:
                path.unlink(missing_ok=True)


def _await_free(path: Any, folder: Path, flag: str) -> None:
    """Returns when nobody has a lease, or its owner is gone; raises InputError if it lives."""
    held = _read(path)
    if held and not _dead(held):
        logging.info("%s: seeing whether %s is alive", path, _whose(held))
        print(f"{folder} is locked by {_whose(held)}; seeing whether it still runs", flush=True)
        end = time.monotonic() + DEAD_SECONDS
        while time.monotonic() < end:
            time.sleep(min(2.0, DEAD_SECONDS))
            now = _read(path)
            if now and now != held:
                raise _in_use(folder, _whose(now), flag)
            if not now:
                return
    if held:
        path.unlink(missing_ok=True)


def _read(path: Any) -> dict[str, Any]:
    """What a lock says; nothing if there is none or it is damaged; raises OSError."""
    try:
        found = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _whose(held: dict[str, Any]) -> str:
    return f"process {held.get('process')} on {held.get('host')}"


def _dead(held: dict[str, Any]) -> bool:
    """Whether the owner ran on this machine and does not any more."""
    if held.get("host") != socket.gethostname() or not isinstance(held.get("process"), int):
        return False
    try:
        os.kill(held["process"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False
