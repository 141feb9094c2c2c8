"""Running the application until it is told to stop."""

import logging
import signal
import socket
from types import FrameType

import uvicorn

from foretell.serve.app import create_app
from foretell.serve.service import Service


class _Server(uvicorn.Server):
    """Told to stop once more, drops what still runs, without a traceback for each request.

    Raises:
        KeyboardInterrupt: when it has ended, if it was Ctrl-C that told it to stop.
    """

    interrupted = False

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        super().handle_exit(sig, frame)
        self.interrupted |= sig == signal.SIGINT
        if self.force_exit:
            logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        super().run(sockets)
        if self.interrupted:  # asyncio has swallowed it, if the signal came late
            raise KeyboardInterrupt


def server(service: Service, host: str, port: int) -> uvicorn.Server:
    """A server that listens there; told to stop, it lets requests finish for a while."""
    config = uvicorn.Config(
        create_app(service),
        host=host,
        port=port,
        log_level="warning",
        server_header=False,
        timeout_graceful_shutdown=service.limits.grace_seconds,
    )
    return _Server(config)
