"""The one error tree of the platform.

    PlatformError
    ├── NotFound            404  what was asked for does not exist, or must not be known to exist
    │   ├── RepoNotFound         X-Error-Code: RepoNotFound
    │   ├── RevisionNotFound     X-Error-Code: RevisionNotFound
    │   └── EntryNotFound        X-Error-Code: EntryNotFound
    ├── Unauthenticated     401  no or bad credentials
    ├── Forbidden           403  known, but not allowed
    ├── Invalid             400  the request itself is wrong
    │   └── Unprocessable   422  well-formed, but its content is refused
    ├── Conflict            409  it exists already, or changed meanwhile
    │   └── Stale           412  the caller decided on an outdated head
    ├── TooLarge            413
    ├── TooMany             429  retryable
    ├── Unavailable         503  retryable: a part of the platform or the machine is not there now
    │   └── Superseded           this process's place was taken by another one; that one answers
    └── DiskFull            507  retryable once space is freed

Each class carries `code` (stable, snake_case), `http_status`, `retryable` and, where the Hub's clients
decide by it, `hub_code` (sent as `X-Error-Code`). A message says what failed, on what, and what to do.
"""

from __future__ import annotations

from typing import Any, ClassVar


class PlatformError(Exception):
    """The platform could not do what was asked."""

    code: ClassVar[str] = "internal"
    http_status: ClassVar[int] = 500
    retryable: ClassVar[bool] = False
    hub_code: ClassVar[str | None] = None

    def __init__(self, message: str | None = None, **data: Any) -> None:
        super().__init__(message or (self.__doc__ or "").strip().splitlines()[0])
        self.data = data

    @property
    def message(self) -> str:
        return str(self.args[0])


class NotFound(PlatformError):
    """Not found."""

    code, http_status = "not_found", 404


class RepoNotFound(NotFound):
    """Repository not found"""

    code, hub_code = "repo_not_found", "RepoNotFound"


class RevisionNotFound(NotFound):
    """Invalid rev id"""

    code, hub_code = "revision_not_found", "RevisionNotFound"


class EntryNotFound(NotFound):
    """Entry not found"""

    code, hub_code = "entry_not_found", "EntryNotFound"


class Unauthenticated(PlatformError):
    """Invalid credentials in Authorization header"""

    code, http_status = "unauthenticated", 401


class Forbidden(PlatformError):
    """You are not allowed to do this."""

    code, http_status = "forbidden", 403


class Invalid(PlatformError):
    """The request is not valid."""

    code, http_status = "invalid", 400


class Unprocessable(Invalid):
    """The content of the request is refused."""

    code, http_status = "unprocessable", 422


class Conflict(PlatformError):
    """It exists already."""

    code, http_status = "conflict", 409


class Stale(Conflict):
    """The branch was updated since you opened this page. Please refresh and try again."""

    code, http_status = "stale", 412


class TooLarge(PlatformError):
    """The content is larger than the limit."""

    code, http_status = "too_large", 413


class TooMany(PlatformError):
    """Too many requests; try again later."""

    code, http_status, retryable = "too_many", 429, True


class Unavailable(PlatformError):
    """A part of the platform is not available now; try again."""

    code, http_status, retryable = "unavailable", 503, True


class Superseded(Unavailable):
    """Another process has taken over; try again."""

    code = "superseded"


class DiskFull(PlatformError):
    """The disk is full; free some space and try again."""

    code, http_status, retryable = "disk_full", 507, True
