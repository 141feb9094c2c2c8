"""An OpenAI-compatible server over the decoding loop, and its page. Needs the extra `serve`."""

from foretell.serve.app import PRODUCTION, create_app
from foretell.serve.engine import Engine
from foretell.serve.jobs import Job, RowStep, Settings
from foretell.serve.limits import Limits
from foretell.serve.metrics import Metrics
from foretell.serve.running import listen, server
from foretell.serve.service import Service

__all__ = [
    "PRODUCTION",
    "Engine",
    "Job",
    "Limits",
    "Metrics",
    "RowStep",
    "Service",
    "Settings",
    "create_app",
    "listen",
    "server",
]
