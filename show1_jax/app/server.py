"""Runs the application: the page, the HTTP service and the worker, in one process."""

import contextlib
import os
import shutil
import signal
import socket
from collections.abc import Iterator
from types import FrameType

import uvicorn
from absl import logging
from etils.epath import Path
from ml_collections import ConfigDict

from show1_jax.app.http import make_app
from show1_jax.app.service import Service
from show1_jax.errors import InputError
from show1_jax.lock import locked
from show1_jax.paths import Checkpoint, local_path

GRACE = 5  # seconds in which open connections may end


class Server(uvicorn.Server):
    """Ends after the running videos at SIGTERM, and after their next steps at Ctrl-C."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        """See uvicorn."""
        super().__init__(config)
        self._service = service

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Sets the signals' handlers for as long as it serves."""
        signals = (signal.SIGTERM, signal.SIGINT)
        before = {number: signal.signal(number, self._on_signal) for number in signals}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        del frame
        if number == signal.SIGTERM and not self._service.draining:
            logging.warning("The service ends after the running videos finish.")
            self._service.drain(self._end)
        else:
            self._end()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Ends the connections that browsers keep open, then all others."""
        self.config.app.state.page_ends.set()  # type: ignore[union-attr]
        await super().shutdown(sockets)

    def _end(self) -> None:
        self.should_exit = True


def serve(
    config: ConfigDict,
    checkpoint: Checkpoint,
    *,
    out: Path,
    host: str,
    port: int,
    token: str = "",
    max_queue: int = 100,
    max_upload: int = 512 * 2**20,
) -> None:
    """Serves until a signal ends it.

    Args:
      config: as in `configs/show1.py`; see `generate.prepare`.
      checkpoint: a converted checkpoint, or several; see `Engine`.
      out: the output folder.
      host: the address to listen at.
      port: likewise.
      token: what clients must show; "" for nothing.
      max_queue: how many videos may wait.
      max_upload: bytes of an uploaded adapter.

    Raises:
      InputError: if a setting is wrong, the folder cannot be used, or the port is taken.
    """
    folder = local_path(out).absolute()
    with _usable(folder), contextlib.ExitStack() as stack:
        folder.mkdir(parents=True, exist_ok=True)
        stack.enter_context(locked(folder, "--out"))
        held = stack.pop_all()
    cache = folder / ".page"
    # Gradio reads these when it is imported.
    os.environ["GRADIO_TEMP_DIR"] = str(cache)
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    from show1_jax.app.page import add_page

    with held, _bound(host, port) as bound:
        shutil.rmtree(cache, ignore_errors=True)
        with _usable(folder):
            service = Service(config, checkpoint, folder, max_queue)
        app = add_page(make_app(service, token, max_upload), service, max_upload)
        settings = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=GRACE)
        try:
            service.start()
            _say(bound.getsockname()[1], host, token)
            Server(settings, service).run([bound])
        finally:
            service.close()


@contextlib.contextmanager
def _usable(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(f"{folder} cannot be used: {error.strerror}; give another --out") from None


def _bound(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Raises:
      InputError: if the address or the port cannot be used.
    """
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise InputError(
            f"{host}, port {port}, cannot be used: {error.strerror}; give another --port or --host"
        ) from None


def _say(port: int, host: str, token: str) -> None:
    if host not in ("127.0.0.1", "::1", "localhost") and not token:
        logging.warning("Everybody who reaches this machine can use the service: give a --token.")
    address = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    query = "?token=..." if token else ""
    print(f"the page: {address}/{query}   for programs: {address}/docs", flush=True)
