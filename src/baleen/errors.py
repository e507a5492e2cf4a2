"""The one error tree of baleen.

::

    BaleenError                     code
    ├── UsageError                  usage            wrong flag or argument (also ValueError)
    ├── ConfigError                 config           a config that cannot be used (also ValueError)
    ├── MissingExtraError           missing-extra    an extra is not installed (also ImportError)
    ├── ProtocolError               protocol         messages no prompt is made of (also ValueError)
    ├── CheckpointError             checkpoint       weights that are missing, wrong or damaged
    ├── NumericsError               numerics         NaN in the network (also FloatingPointError)
    ├── EndpointError               endpoint         a model endpoint failed or answered nonsense
    ├── RunError                    run              a run folder that cannot be opened or resumed
    └── SandboxError                sandbox          root of everything a sandbox can raise
        └── (leaves in baleen.sandbox.errors)

Every leaf has a stable kebab-case ``code`` for programs and a message for people: what failed, the
value, what to do next. Errors pickle, so worker processes can relay them.
"""

from __future__ import annotations


class BaleenError(Exception):
    """Root of all errors that baleen raises on purpose."""

    code = "baleen"

    def __init__(self, message: str, *, remedy: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message} ({self.remedy})" if self.remedy else self.message

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.args, self.__dict__))


def _rebuild(
    kind: type[BaleenError], args: tuple[object, ...], state: dict[str, object]
) -> BaleenError:
    error = kind.__new__(kind, *args)
    error.args = args
    error.__dict__.update(state)
    return error


class UsageError(BaleenError, ValueError):
    """A flag, key or argument is wrong; the caller can fix it at once."""

    code = "usage"


class ConfigError(BaleenError, ValueError):
    """A configuration cannot be used: unknown key, wrong type, values that exclude each other."""

    code = "config"


class MissingExtraError(BaleenError, ImportError):
    """An optional dependency is not installed; the message holds the install command."""

    code = "missing-extra"


class ProtocolError(BaleenError, ValueError):
    """Messages or schemas that no prompt can be made of; names index and field."""

    code = "protocol"


class CheckpointError(BaleenError):
    """A checkpoint is missing, incomplete, of the wrong shape, or damaged; names the tensor."""

    code = "checkpoint"


class NumericsError(BaleenError, FloatingPointError):
    """The network computed NaN: the weights or the inputs are broken."""

    code = "numerics"


class EndpointError(BaleenError):
    """A model endpoint could not be reached or answered something that is not an answer."""

    code = "endpoint"


class RunError(BaleenError):
    """A run folder cannot be opened, continued or replayed."""

    code = "run"


class SandboxError(BaleenError):
    """Root of every infrastructure failure of a sandbox; never the result of a command."""

    code = "sandbox"
