"""Running the application until it is told to stop."""

import logging
from types import FrameType

import uvicorn

from foretell.serve.app import create_app
from foretell.serve.service import Service


class _Server(uvicorn.Server):
    """Told to stop once more, drops what still runs, without a traceback for each request."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        super().handle_exit(sig, frame)
        if self.force_exit:
            logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)


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
