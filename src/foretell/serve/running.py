"""Running the application until it is told to stop."""

import uvicorn

from foretell.serve.app import create_app
from foretell.serve.service import Service


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
    return uvicorn.Server(config)
