"""Running the application until it is told to stop."""

import logging
import signal
import socket
from types import FrameType

import uvicorn

from foretell.errors import InputError
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


def listen(host: str, port: int) -> socket.socket:
    """A socket, before a model is loaded: a port that is taken is known at once.

    Args:
        host: a name or an address.
        port: from 0 (any that is free) to 65535.

    Raises:
        InputError: it cannot be had.
    """
    if not 0 <= port <= 65535:
        raise InputError(f"--port is {port}; give one from 0 to 65535.")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
    except (OSError, UnicodeError) as error:  # the latter where a name is none
        listening.close()
        why = getattr(error, "strerror", None) or error
        raise InputError(f"cannot listen at {host}:{port} ({why}); give another --port.") from None
    return listening


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
