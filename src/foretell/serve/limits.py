"""What a server takes on, and what it refuses."""

from dataclasses import dataclass, fields

from foretell.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Attributes:
    max_body_bytes: of a request; a larger one is answered 413.
    max_prompt_tokens: of a prompt; a longer one is answered 400.
    max_tokens: that a request may ask for; more is answered 400.
    max_batch: rows that are decoded together.
    max_queue: requests that wait; one more is answered 429.
    grace_seconds: that running requests are given to finish when the server is told to stop.
    """

    max_body_bytes: int = 1 << 20
    max_prompt_tokens: int = 4096
    max_tokens: int = 1024
    max_batch: int = 16
    max_queue: int = 256
    grace_seconds: int = 30

    def __post_init__(self) -> None:
        for field in fields(self):
            if getattr(self, field.name) < 1:
                option = field.name.replace("_", "-")
                raise InputError(f"--{option} is {getattr(self, field.name)}; give at least 1.")
