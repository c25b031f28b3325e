"""Numbers as people read them: "1.23 GFLOPS", "12.4 M", "3.1 ms". Powers of 1000, rounded to `precision` digits after the point."""
from __future__ import annotations

DEFAULT_PRECISION = 2
_MAGNITUDES = {"T": 1e12, "G": 1e9, "M": 1e6, "K": 1e3, "": 1.0, "m": 1e-3, "u": 1e-6}


def number_to_string(num: float, units: str | None = None, precision: int = DEFAULT_PRECISION) -> str:
    """`num` in the largest unit that leaves at least 1, or in `units` (a key of T, G, M, K, m, u; others are 1): "1.23 K", "7 "."""
    if units is None:
        units = "" if num == 0 else next((unit for unit, size in _MAGNITUDES.items() if abs(num) >= size), "u")
    return f"{round(num / _MAGNITUDES.get(units, 1.0), precision):g} {units}"


def flops_to_string(flops: float, units: str | None = None, precision: int = DEFAULT_PRECISION) -> str:
    return number_to_string(flops, units, precision) + "FLOPS"


def macs_to_string(macs: float, units: str | None = None, precision: int = DEFAULT_PRECISION) -> str:
    return number_to_string(macs, units, precision) + "MACs"


def bytes_to_string(b: float, units: str | None = None, precision: int = DEFAULT_PRECISION) -> str:
    return number_to_string(b, units, precision) + "B"


def params_to_string(params_num: float, units: str | None = None, precision: int = DEFAULT_PRECISION) -> str:
    """As number_to_string, with B (billion) in the place of G and nothing after a number without unit."""
    text = number_to_string(params_num, units.replace("B", "G") if units else units, precision)
    return text.replace("G", "B").strip()


def duration_to_string(duration: float, units: str | None = None, precision: int = DEFAULT_PRECISION) -> str:
    """`duration` in seconds."""
    return number_to_string(duration, units, precision) + "s"
