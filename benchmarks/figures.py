"""Figures that benchmarks print, with their limits and peers."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Figure:
    """One measured value."""

    name: str
    value: float
    unit: str
    limit: float | None = None  # more than this is a failure
    peer: float | None = None  # what the peer took, in the same unit

    @property
    def over(self) -> bool:
        """Whether the value is over its limit."""
        return self.limit is not None and self.value > self.limit

    def __str__(self) -> str:
        parts = [f"{self.name:<55} {self.value:9.3f} {self.unit}"]
        if self.peer is not None:
            parts.append(f"peer {self.peer:.3f} {self.unit}, {self.value / self.peer:.2f}x")
        if self.limit is not None:
            parts.append(f"limit {self.limit:.3g}{', OVER' if self.over else ''}")
        return "  ".join(parts)
