"""Counters, gauges and histograms, written in Prometheus' text format.

Updating one is an addition in a dict or an append to a list; nothing is sorted into buckets or
formatted before it is asked for.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence

Labels = tuple[str, ...]


class Counter:
    """A number per combination of label values that only grows."""

    kind = "counter"

    def __init__(self, name: str, help_text: str, labels: Labels = ()) -> None:
        self.name, self.help, self.labels = name, help_text, labels
        self.values: dict[Labels, float] = {}
        self.plain = 0.0
        """The number of a counter without labels."""

    def add(self, amount: float = 1.0, *values: str) -> None:
        """Add to the number with these label values."""
        if values:
            self.values[values] = self.values.get(values, 0.0) + amount
        else:
            self.plain += amount

    def lines(self, common: str) -> Iterator[str]:
        """The samples in text format."""
        found = self.values if self.labels else {(): self.plain}
        for values, number in sorted(found.items()):
            yield f"{self.name}{_braces(common, self.labels, values)} {_number(number)}"


class Gauge:
    """A number that is read when it is asked for."""

    kind = "gauge"

    def __init__(
        self, name: str, help_text: str, read: Callable[[], float], labels: Mapping[str, str]
    ) -> None:
        self.name, self.help, self.read, self._labels = name, help_text, read, labels

    def lines(self, common: str) -> Iterator[str]:
        """The sample in text format."""
        braces = _braces(common, tuple(self._labels), tuple(self._labels.values()))
        yield f"{self.name}{braces} {_number(self.read())}"


class Histogram:
    """How often a value fell below each bound."""

    kind = "histogram"

    def __init__(self, name: str, help_text: str, bounds: Sequence[float]) -> None:
        self.name, self.help, self.bounds = name, help_text, tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.total = 0.0
        self._new: list[float] = []
        self.observe = self._new.append
        """Note a value; it is counted when :meth:`fold` is called, or when somebody looks."""
        self.observe_all = self._new.extend

    def fold(self) -> None:
        """Count what was noted."""
        counts, bounds = self.counts, self.bounds
        for value in self._new:
            counts[bisect_left(bounds, value)] += 1
        self.total += sum(self._new)
        self._new.clear()

    def quantile(self, share: float) -> float:
        """The bound below which this share of the values lies; 0 without values."""
        self.fold()
        wanted, seen = share * sum(self.counts), 0
        for bound, count in zip((*self.bounds, self.bounds[-1]), self.counts, strict=True):
            seen += count
            if count and seen >= wanted:
                return bound
        return 0.0

    def lines(self, common: str) -> Iterator[str]:
        """The samples in text format."""
        self.fold()
        seen = 0
        for bound, count in zip((*map(_number, self.bounds), "+Inf"), self.counts, strict=True):
            seen += count
            yield f"{self.name}_bucket{_braces(common, ('le',), (bound,))} {seen}"
        yield f"{self.name}_sum{_braces(common, (), ())} {_number(self.total)}"
        yield f"{self.name}_count{_braces(common, (), ())} {seen}"


Metric = Counter | Gauge | Histogram


class Registry:
    """All metrics of one gateway; ``common`` labels stand on every sample."""

    def __init__(self, common: Mapping[str, str]) -> None:
        self._common = ",".join(f'{key}="{_escaped(value)}"' for key, value in common.items())
        self._metrics: list[Metric] = []

    def counter(self, name: str, help_text: str, *labels: str) -> Counter:
        """A new counter."""
        self._metrics.append(made := Counter(name, help_text, labels))
        return made

    def gauge(self, name: str, help_text: str, read: Callable[[], float], **labels: str) -> None:
        """A new gauge."""
        self._metrics.append(Gauge(name, help_text, read, labels))

    def histogram(self, name: str, help_text: str, bounds: Sequence[float]) -> Histogram:
        """A new histogram."""
        self._metrics.append(made := Histogram(name, help_text, bounds))
        return made

    def fold(self) -> None:
        """Sort what was noted into buckets, so that it takes no more room."""
        for metric in self._metrics:
            if isinstance(metric, Histogram):
                metric.fold()

    def text(self) -> str:
        """Everything, in text format."""
        lines: list[str] = []
        for metric in self._metrics:
            lines += (
                f"# HELP {metric.name} {metric.help}",
                f"# TYPE {metric.name} {metric.kind}",
                *metric.lines(self._common),
            )
        return "\n".join(lines) + "\n"


def _braces(common: str, labels: Labels, values: Labels) -> str:
    own = [f'{key}="{_escaped(value)}"' for key, value in zip(labels, values, strict=True)]
    joined = ",".join(filter(None, [common, *own]))
    return f"{{{joined}}}" if joined else ""


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(value)
