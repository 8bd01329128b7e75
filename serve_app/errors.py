"""Why a request gets no answer: what the parts of the service raise, and HTTP refuses with."""

from collections.abc import Mapping, Sequence

from cluster.errors import FirstlineError


class OverloadedError(FirstlineError):
    """Too much is waiting. Nothing was taken in; the client may come back in `retry_after_s`."""

    def __init__(self, message: str, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class DeadlineError(TimeoutError):
    """The caller waited less than a tier may fairly take, so the tier is not to blame."""


class EmptyTextsError(FirstlineError):
    """Texts in which nothing is left after normalising."""

    def __init__(self, indices: Sequence[int]) -> None:
        super().__init__(f"{len(indices)} of the texts have no visible character. Leave them out.")
        self.indices = tuple(indices)


class UnansweredError(FirstlineError):
    """Messages that no tier which may see them could answer; so no answer of the request leaves."""

    def __init__(self, indices: Sequence[int]) -> None:
        super().__init__(
            f"{len(indices)} of the texts got no answer from any tier that may see them, so the "
            "request has none. Try again, or send the others without them."
        )
        self.indices = tuple(indices)


class RefusedError(FirstlineError):
    """A request that is not let in, with the HTTP status, code and headers of its refusal."""

    def __init__(
        self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.headers = dict(headers or {})


class BodyTooLargeError(FirstlineError):
    """More bytes came, or were announced, than one body may have."""

    def __init__(self, limit_bytes: int) -> None:
        super().__init__(
            f"The body has more than {limit_bytes:,} bytes, the limit. Send fewer or shorter texts."
        )


class SlowBodyError(FirstlineError):
    """The body was not there in time."""

    def __init__(self, limit_s: float) -> None:
        super().__init__(
            f"The body was not there within {limit_s:g} s. Send it at once, or in smaller requests."
        )


class IdempotencyKeyError(FirstlineError):
    """The header cannot be used as a key."""


class IdempotencyConflictError(FirstlineError):
    """The key was used before, for another request."""


class IdempotencyInWorkError(FirstlineError):
    """The first request with the key is not answered yet."""
