"""What goes wrong in the gateway.

::

    ServerError                       server             root; has an HTTP status
    ├── BadRequestError               bad-request        400, in the words that clients match on
    ├── NotAuthorizedError            not-authorized     401, a missing or unknown API key
    ├── NoSuchPathError               no-such-path       404
    ├── WrongMethodError              wrong-method       405
    ├── SlowClientError               slow-client        408, a request that does not arrive
    ├── KeyConflictError              key-conflict       409, an idempotency key used twice
    ├── TooLargeError                 too-large          413
    ├── OverloadedError               overloaded         429, too many requests at once
    ├── DrainingError                 draining           503, about to stop
    ├── UpstreamError                 upstream           502, the engine failed or cannot be reached
    │   └── UpstreamRefusalError      upstream-refusal   502, the engine said no
    ├── UpstreamStallError            upstream-stall     504, the engine fell silent
    └── TokenLogError                 token-log          500, a token log that cannot be read
"""

from __future__ import annotations

from baleen.errors import BaleenError


class ServerError(BaleenError):
    """Root of the gateway's errors."""

    code = "server"
    status = 500
    kind = "server_error"
    """The ``type`` of the error object that clients get."""


class BadRequestError(ServerError, ValueError):
    """The request cannot be answered as it stands."""

    code = "bad-request"
    status = 400
    kind = "invalid_request_error"


class NotAuthorizedError(ServerError):
    """The request carries no API key, or one that is not known here."""

    code = "not-authorized"
    status = 401
    kind = "authentication_error"


class NoSuchPathError(ServerError):
    """There is nothing at that path, or no such model or response."""

    code = "no-such-path"
    status = 404
    kind = "not_found_error"


class WrongMethodError(ServerError):
    """The path exists and takes another method."""

    code = "wrong-method"
    status = 405
    kind = "invalid_request_error"


class SlowClientError(ServerError, TimeoutError):
    """The body of a request did not arrive in time."""

    code = "slow-client"
    status = 408
    kind = "timeout_error"


class KeyConflictError(ServerError):
    """An idempotency key came back with another request."""

    code = "key-conflict"
    status = 409
    kind = "invalid_request_error"


class TooLargeError(ServerError):
    """The body of a request exceeds the limit."""

    code = "too-large"
    status = 413
    kind = "invalid_request_error"


class OverloadedError(ServerError):
    """More requests are being answered than are allowed at once."""

    code = "overloaded"
    status = 429
    kind = "rate_limit_error"


class DrainingError(ServerError):
    """The gateway is finishing what it has begun and takes nothing new."""

    code = "draining"
    status = 503
    kind = "server_error"


class UpstreamError(ServerError):
    """The engine cannot be reached, or broke off."""

    code = "upstream"
    status = 502
    kind = "server_error"


class UpstreamRefusalError(UpstreamError):
    """The engine refused a request; asking again would not help."""

    code = "upstream-refusal"


class UpstreamStallError(ServerError, TimeoutError):
    """The engine sent nothing for too long."""

    code = "upstream-stall"
    status = 504
    kind = "timeout_error"


class TokenLogError(ServerError):
    """A token log is damaged or of another version."""

    code = "token-log"
