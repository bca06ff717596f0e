"""`--wire-dtype`: which format vectors have on the wire, as text. Needs no torch, so that the command line starts without it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from topology.suggestion import nearest

KINDS = ("fp32", "bf16", "fp16", "int8", "top-k")


@dataclass(frozen=True, slots=True)
class WireDtype:
    """kind: one of KINDS. fraction: of the elements that are sent, in (0, 1]; 1 unless top-k."""

    kind: str
    fraction: float = 1.0

    def __str__(self) -> str:
        return f"{self.kind}:{self.fraction:g}" if self.kind == "top-k" else self.kind

    @property
    def keeps_replicas(self) -> bool:
        """Whether gossip sends differences to what the other end knows, because the vector itself would lose too much."""
        return self.kind in ("int8", "top-k")

    @classmethod
    def parse(cls, text: str) -> WireDtype:
        """Raises ValueError with half a sentence."""
        kind, colon, fraction = text.strip().partition(":")
        if kind not in KINDS:
            raise ValueError(f"unknown format {text!r}; {nearest(kind, KINDS)}")
        if kind != "top-k":
            if colon:
                raise ValueError(f"{kind} takes no fraction, but {text!r} has one")
            return cls(kind)
        try:
            kept = float(fraction)
        except ValueError:
            kept = math.nan
        if not 0 < kept <= 1:
            raise ValueError(f"top-k:R needs a fraction R in (0, 1], for instance top-k:0.1, not {text!r}")
        return cls(kind, kept)
