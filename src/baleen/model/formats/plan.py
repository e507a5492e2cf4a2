"""From a tensor and a format to what is written: one tensor, or codes and scales."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from baleen.errors import UsageError
from baleen.model.formats import fp4, fp8
from baleen.model.formats.names import scale_name
from baleen.model.formats.stored import Format, Kind, Stored, kind_in, plain_dtype
from baleen.model.formats.writer import Planned


def plan_tensor(
    name: str,
    source: Callable[[], Stored],
    like: Stored,
    format: Format,
    hint: Tensor | None = None,
) -> Iterator[Planned]:
    """What writing one tensor comes to.

    `source` is asked when the bytes are written, and again if codes and scales are not written one
    after the other; `like` tells dtypes and shape (its tensors may be on the meta device). `hint`
    are scales to keep if they give every value back.

    Raises:
        UsageError: the format has no place for that shape.
    """
    kind = kind_in(name, format)
    if kind is Kind.PLAIN:
        dtype = plain_dtype(name, format, like.values_dtype)
        yield Planned(name, dtype, like.shape, lambda: source().values(dtype))
        return
    if len(like.shape) != 2 or (kind is Kind.FP4 and like.shape[-1] % fp4.BLOCK):
        raise UsageError(
            f"{name} {list(like.shape)} has no whole blocks of {fp4.BLOCK} inputs for FP4",
            remedy="choose the format fp8 or bf16",
        )
    rows, columns = like.shape
    if kind is Kind.FP4:
        codes = (torch.int8, (rows, columns // 2))
        scales = (torch.float8_e8m0fnu, (rows, columns // fp4.BLOCK))
    else:
        # scales stay fp32 where they were, as in base models' files
        kept = like.scales if like.kind is Kind.FP8 else _fitting(kind, like.shape, hint)
        dtype = torch.float8_e8m0fnu if kept is None else kept.dtype
        codes, scales = (torch.float8_e4m3fn, like.shape), (dtype, fp8.scale_shape(like.shape))
    matrix = _Matrix(name, source, kind, _fitting(kind, like.shape, hint), scales[0])
    yield Planned(name, *codes, matrix.codes)
    yield Planned(scale_name(name), *scales, matrix.scales)


class _Matrix:
    """Quantises when its codes are asked for, and keeps the scales until they are fetched too."""

    def __init__(
        self,
        name: str,
        source: Callable[[], Stored],
        kind: Kind,
        hint: Tensor | None,
        scales_dtype: torch.dtype,
    ) -> None:
        self.name, self.source, self.kind, self.hint = name, source, kind, hint
        self.scales_dtype = scales_dtype
        self._kept: Tensor | None = None

    def codes(self) -> Tensor:
        stored = requantize(self.source(), self.kind, self.hint)
        self._kept = stored.scales
        return stored.data

    def scales(self) -> Tensor:
        scales = self._kept
        if scales is None:
            scales = requantize(self.source(), self.kind, self.hint).scales
        assert scales is not None, f"{self.name} was planned as {self.kind}"
        self._kept = None
        return scales.to(self.scales_dtype)


def requantize(stored: Stored, kind: Kind, hint: Tensor | None = None) -> Stored:
    """The same matrix in another form: untouched if it is in it already, without loss from FP4 to
    FP8 where its scales allow, else rounded to nearest."""
    if stored.kind is kind:
        return stored
    if stored.kind is Kind.FP4 and kind is Kind.FP8:
        assert stored.scales is not None
        lossless = fp8.from_fp4(stored.data, stored.scales)
        if lossless is not None:
            return Stored(*lossless)
    return encode(stored.values(), kind, hint)


def encode(values: Tensor, kind: Kind, hint: Tensor | None = None) -> Stored:
    """Quantises a matrix; with `hint`, the scales that it was once stored with, if they still fit.

    They fit when they give back every value exactly; so weights that nobody changed are written
    with the bytes that they were read from.
    """
    codec = fp4 if kind is Kind.FP4 else fp8
    if hint is not None:
        kept = Stored(*codec.encode(values, hint))
        if torch.equal(kept.values(values.dtype), values):
            return kept
    return Stored(*codec.encode(values))


def _fitting(kind: Kind, shape: tuple[int, ...], hint: Tensor | None) -> Tensor | None:
    """A hint that belongs to this kind; one that was read from another format is of no use."""
    if hint is None:
        return None
    is_fp4 = kind is Kind.FP4
    wanted = (shape[0], shape[1] // fp4.BLOCK) if is_fp4 else fp8.scale_shape(shape)
    return hint if tuple(hint.shape) == wanted else None
