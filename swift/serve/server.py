"""The uvicorn server around the application: TLS, signals, the log line every so often, and an orderly end."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from types import FrameType
from typing import Any

import uvicorn

from swift.config.serving import ServingOptions
from swift.runs import announce
from swift.serve.app import create_app
from swift.serve.service import Service

log = logging.getLogger("swift.serve")

GRACE_SECONDS = 30.0  # how long running requests may go on after a signal
KEEP_ALIVE_SECONDS = 75  # longer than clients' pools keep idle connections


class Server(uvicorn.Server):
    """Refuses new requests from the first signal on, and ends what still runs after the grace."""

    def __init__(self, config: uvicorn.Config, service: Service, log_interval: float, grace: float = GRACE_SECONDS):
        super().__init__(config)
        self._service, self._log_interval, self._grace = service, log_interval, grace
        self._loop: asyncio.AbstractEventLoop | None = None
        self._lines: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._loop = asyncio.get_running_loop()
        if self._log_interval:
            self._lines = asyncio.ensure_future(self._log_lines())
        for listener in sockets or ():
            host, port = listener.getsockname()[:2]
            scheme = "https" if self.config.is_ssl else "http"
            names = ", ".join((*self._service.settings.names, *self._service.engine.capabilities.adapters))
            place = f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"
            log.info("serving %s at %s/v1", names, place)
            announce(address=place)

    async def _log_lines(self) -> None:
        while True:
            await asyncio.sleep(self._log_interval)
            line = self._service.meters.line(self._service.engine.stats())
            if line is not None:
                log.info(line)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if not self._service.draining and self._loop is not None:
            self._service.draining = True
            self._loop.call_soon_threadsafe(self._drain)
        super().handle_exit(sig, frame)

    def _drain(self) -> None:
        running = self._service.active
        if running:
            log.info("stopping: %d requests have %.0f s to end; Ctrl-C again ends them now", running, self._grace)
        asyncio.get_running_loop().call_later(self._grace, self._service.stop)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        if self._lines is not None:
            self._lines.cancel()
        await super().shutdown(sockets)


def run(service: Service, options: ServingOptions, listener: socket.socket, grace: float = GRACE_SECONDS) -> None:
    """Serve until SIGTERM or SIGINT, then close the engine."""
    if options.host not in ("127.0.0.1", "localhost", "::1") and options.api_key is None:
        log.warning("anyone who reaches %s can use this server: --api_key KEY asks for one", options.host)
    logging.getLogger("uvicorn").setLevel("DEBUG" if options.log_level == "debug" else "WARNING")
    tls: dict[str, Any] = {"ssl_keyfile": options.ssl_keyfile, "ssl_certfile": options.ssl_certfile}
    config = uvicorn.Config(
        create_app(service),
        log_config=None,
        access_log=False,
        server_header=False,
        lifespan="off",
        ws="none",
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=int(grace) + 5,
        **(tls if options.ssl_certfile else {}),
    )
    # uvicorn raises the signals again when it has ended: here they have done their work by then.
    previous = {sig: signal.signal(sig, lambda *_: None) for sig in (signal.SIGINT, signal.SIGTERM)}
    try:
        Server(config, service, options.log_interval, grace).run(sockets=[listener])
    finally:
        for sig, handler in previous.items():
            signal.signal(sig, handler)
        service.close()
    log.info("stopped")
