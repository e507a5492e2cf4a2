"""What images can raise.

::

    SandboxError
    ├── ImageError          image             an image, tarball or layout that cannot be used
    ├── ImageNotFoundError  image-not-found   no image of that name here
    ├── UnsafeImageError    image-unsafe      an archive that tries to leave its root, or a bomb
    ├── PullError           image-pull        a registry refused, vanished or sent other bytes
    └── BuildError          image-build       a Dockerfile step failed; names file and line
"""

from __future__ import annotations

from baleen.errors import SandboxError


class ImageError(SandboxError):
    """An image, tarball, layout or store that cannot be used; says why."""

    code = "image"


class ImageNotFoundError(SandboxError):
    """No image of that name is in the store."""

    code = "image-not-found"


class UnsafeImageError(SandboxError):
    """An archive tries to write outside its root, or is a decompression bomb."""

    code = "image-unsafe"


class PullError(SandboxError):
    """A registry refused, vanished, or sent bytes of another digest."""

    code = "image-pull"


class BuildError(SandboxError):
    """A step of a Dockerfile is wrong or failed; the message names file and line."""

    code = "image-build"

    def __init__(
        self, message: str, *, remedy: str | None = None, line: int = 0, output: str = ""
    ) -> None:
        super().__init__(message, remedy=remedy)
        self.line = line
        self.output = output


LEAVES: tuple[type[SandboxError], ...] = (
    ImageError,
    ImageNotFoundError,
    UnsafeImageError,
    PullError,
    BuildError,
)
