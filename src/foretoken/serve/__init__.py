"""An OpenAI-compatible server over the decoding loop, and its page. Needs `foretoken[serve]`."""

from foretoken.serve.app import PRODUCTION, create_app
from foretoken.serve.engine import Engine
from foretoken.serve.jobs import Job, Progress, Settings
from foretoken.serve.limits import Limits
from foretoken.serve.metrics import Metrics
from foretoken.serve.running import server
from foretoken.serve.service import Service

__all__ = [
    "PRODUCTION",
    "Engine",
    "Job",
    "Limits",
    "Metrics",
    "Progress",
    "Service",
    "Settings",
    "create_app",
    "server",
]
