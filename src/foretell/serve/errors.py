"""Errors as OpenAI's API writes them."""

from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from foretell.errors import InputError
from foretell.serve.jobs import Closed, QueueFull

TYPES = {401: "authentication_error", 429: "rate_limit_error", 503: "unavailable_error"}
"""By status; any other below 500 is an `invalid_request_error`."""


class ApiError(HTTPException):
    """A request that is refused.

    Args:
        status: of the answer.
        message: what is wrong, and what to do.
        param: the field that is wrong.
        code: what a program can tell it by.
    """

    def __init__(
        self, status: int, message: str, param: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(status, message)
        self.param, self.code = param, code


def error_body(error: HTTPException) -> dict[str, Any]:
    """The body of an answer that refuses."""
    status = error.status_code
    kind = "internal_error" if status == 500 else TYPES.get(status, "invalid_request_error")
    param, code = getattr(error, "param", None), getattr(error, "code", None)
    return {"error": {"message": str(error.detail), "type": kind, "param": param, "code": code}}


def refusal(error: HTTPException) -> JSONResponse:
    """An answer that refuses."""
    headers = {**(error.headers or {}), **_headers(error.status_code)}
    return JSONResponse(error_body(error), error.status_code, headers)


def as_api_error(error: Exception) -> ApiError:
    """What the engine raised or sent, as an answer."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, QueueFull):
        return ApiError(429, str(error), code="queue_full")
    if isinstance(error, Closed):
        return ApiError(503, str(error), code="shutting_down")
    if isinstance(error, InputError):
        return ApiError(400, str(error))
    return ApiError(500, "the server failed; its log says why.")


def add_handlers(app: FastAPI) -> None:
    """Answer every error in this form."""

    async def refused(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        if error.detail == UNREADABLE:
            error.detail = "the body is not JSON in UTF-8, or has more in it than JSON is read for."
        return refusal(error)

    async def invalid(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        return refusal(_invalid(error.errors()))

    async def failed(request: Request, error: Exception) -> JSONResponse:
        return refusal(as_api_error(error))

    app.add_exception_handler(HTTPException, refused)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(Exception, failed)


UNREADABLE = "There was an error parsing the body"
"""What FastAPI says of other bytes, of JSON in JSON without end, and of endless numbers."""
NO_OBJECT = ("missing", "model_type", "model_attributes_type")
"""What pydantic says of a body that is none."""


def _invalid(found: Sequence[Mapping[str, Any]]) -> ApiError:
    """What pydantic found wrong, in one line."""
    # Of all that a value could have been, what it is nearest to: in place, then in type.
    nearest = max(found, key=lambda each: (len(each["loc"]), not each["type"].endswith("_type")))
    place, kind, facts = nearest["loc"], nearest["type"], nearest.get("ctx", {})
    if kind == "json_invalid":
        return ApiError(400, f"the body is not JSON (character {place[-1]}: {facts['error']}).")
    if kind in NO_OBJECT and place == ("body",):
        message = "the body is not a JSON object; send one, with Content-Type: application/json."
        return ApiError(400, message)
    path = _path(place)
    if kind == "extra_forbidden":
        unknown = [".".join(_path(each["loc"])) for each in found if each["type"] == kind]
        message = f"this server does not know {', '.join(dict.fromkeys(unknown))}; leave it out."
        return ApiError(400, message, path[0])
    reason = str(nearest["msg"]).removeprefix("Value error, ")
    message = f"{'.'.join(path)}: {reason}" if path else reason
    return ApiError(400, message, path[0] if path else facts.get("field"))


def _path(place: Sequence[str | int]) -> list[str]:
    """The fields on the way there, without the types that they may have."""
    fields = (isinstance(part, int) or (part.isidentifier() and part != "str") for part in place)
    return [str(part) for part, field in zip(place, fields, strict=True) if field][1:]


def _headers(status: int) -> dict[str, str]:
    if status == 401:
        return {"WWW-Authenticate": "Bearer"}
    return {"Retry-After": "1"} if status in (429, 503) else {}
