"""What the daemon answers: the value, the error, the pages of a list."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from http import HTTPStatus
from typing import Protocol, TypeVar

from .generated.models import ErrorBody
from .generated.types import UNSET, Unset

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class ApiError(Exception):
    """The daemon refused, or something in front of it answered.

    status: the HTTP status.
    code: stable, for programs; "" if the answer is not the daemon's.
    message: for people.
    errors: the reasons for each wrong member of the request.
    retry_after: seconds to wait before the next attempt, if the daemon said so.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        errors: Mapping[str, list[str]] | None = None,
        retry_after: int | None = None,
    ) -> None:
        reasons = "".join(f"; {member}: {', '.join(wrong)}" for member, wrong in (errors or {}).items())
        super().__init__(f"{status} {code}: {message}{reasons}" if code else f"{status}: {message}")
        self.status = status
        self.code = code
        self.message = message
        self.errors = dict(errors or {})
        self.retry_after = retry_after


class _Answer(Protocol[T_co]):
    @property
    def status_code(self) -> HTTPStatus: ...
    @property
    def parsed(self) -> T_co | ErrorBody | None: ...


class _Envelope(Protocol[T_co]):
    @property
    def data(self) -> T_co: ...


class _Page(Protocol):
    @property
    def next_(self) -> str | None | Unset: ...


P = TypeVar("P", bound=_Page)


def failure(status: int, body: ErrorBody | None) -> ApiError:
    if body is None:
        return ApiError(status, "", HTTPStatus(status).phrase)
    errors = body.errors.additional_properties if body.errors else None
    return ApiError(status, body.code, body.message, errors, body.retry_after or None)


def value(answer: _Answer[_Envelope[T]]) -> T:
    """The `data` of an answer of `sync_detailed` or `asyncio_detailed`; raises ApiError for every other answer."""
    body = answer.parsed
    if body is None or isinstance(body, ErrorBody):
        raise failure(answer.status_code, body)
    return body.data


def pages(fetch: Callable[[str | Unset], _Answer[_Envelope[P]]]) -> Iterator[P]:
    """Fetches page after page; `fetch` gets the cursor of the page: UNSET, then `next` of the page before."""
    cursor: str | Unset = UNSET
    while True:
        page = value(fetch(cursor))
        yield page
        if not page.next_:
            return
        cursor = page.next_
