"""What a server takes on, and what it refuses."""

from foretell.config import BaseConfig, Count


class Limits(BaseConfig):
    """Limits of a server; a request beyond them is refused."""

    max_batch: Count = 16
    """Requests decoded together."""
    max_queue: Count = 256
    """Requests that may wait; others get a 429."""
    max_prompt_tokens: Count = 4096
    """Longest prompt; a longer one gets a 400."""
    max_tokens: Count = 1024
    """Most tokens a request may ask for; more get a 400."""
    max_body_bytes: Count = 1 << 20
    """Largest request; a larger one gets a 413."""
    grace_seconds: Count = 30
    """Time that running requests have when the server stops."""

    @classmethod
    def called(cls) -> str:
        return "a server"
