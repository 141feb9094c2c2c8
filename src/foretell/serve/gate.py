"""What stands before every request: the API key and the size of the body."""

import hmac

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from foretell.serve.errors import ApiError, refusal
from foretell.serve.metrics import Metrics

GUARDED = ("/v1/", "/metrics")
"""What needs the key, where there is one."""

PATHS = (
    "/",
    "/health",
    "/metrics",
    "/openapi.json",
    "/v1/models",
    "/v1/completions",
    "/v1/chat/completions",
)
"""What answers are counted by. A client can ask for any path, and every count stays in memory."""


class Gate:
    """Refuses what has no key, and bodies that are too long, before anything reads them.

    Args:
        app: that is behind it.
        metrics: counts every answer.
        max_body_bytes: of a request.
        api_key: None lets everybody in.
    """

    def __init__(
        self, app: ASGIApp, metrics: Metrics, max_body_bytes: int, api_key: str | None = None
    ) -> None:
        self.app, self.metrics, self.max_body_bytes = app, metrics, max_body_bytes
        self.api_key = api_key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request pass, or answer it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        path = scope["path"]

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                self.metrics.response(path if path in PATHS else "other", message["status"])
            await send(message)

        try:
            self._check(path, headers)
        except ApiError as error:
            await refusal(error)(scope, receive, counted)
            return
        await self.app(scope, self._limited(receive), counted)

    def _check(self, path: str, headers: dict[bytes, bytes]) -> None:
        if self.api_key is not None and path.startswith(GUARDED):
            given = headers.get(b"authorization", b"")
            if not hmac.compare_digest(given, b"Bearer " + self.api_key.encode()):
                raise ApiError(401, "give the API key of this server.", code="invalid_api_key")
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > self.max_body_bytes:
            raise self._too_large()

    def _limited(self, receive: Receive) -> Receive:
        """The same for bodies whose length nobody said."""
        read = 0

        async def limited() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > self.max_body_bytes:
                raise self._too_large()
            return message

        return limited

    def _too_large(self) -> HTTPException:
        most = self.max_body_bytes
        return ApiError(413, f"the body is larger than {most} bytes.", code="body_too_large")
