"""What the page's script gets to show: scan, maps, masks and how they are coloured, as plain data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from voxplain.report.colours import MASK_COLOUR, TRUTH_COLOUR, colour_tables, scale_of
from voxplain.report.volumes import Packed, View, pack_labels, pack_map, pack_scan, window_of
from voxplain.scan import Labels, Scan


def viewer_data(
    scan: Scan, view: View, methods: Sequence[dict[str, Any]], truth: Labels | None, sequence: str
) -> dict[str, Any]:
    """What the page's script needs; every volume is a NIfTI file in base64 on the view's grid.

    `methods` are what `method_data` and its like make.
    """

    foreground = scan.foreground()
    sequences = []
    for name in scan.channels:
        low, high = window_of(scan.channel(name), foreground)
        packed = pack_scan(scan.channel(name), foreground, view)
        sequences.append({"name": name, "low": low, "high": high, **volume(packed)})
    unsigned, _ = colour_tables(scale_of(np.array([1.0]), signed=False))
    positive, negative = colour_tables(scale_of(np.array([-1.0, 1.0]), signed=True))
    assert negative is not None
    flat = [axis for axis, size in enumerate(view.grid.shape) if size == 1]
    return {
        "shape": list(view.grid.shape),
        "affine": view.grid.affine.tolist(),
        "flat": flat[-1] if flat else None,
        "sequence": scan.channels.index(sequence),
        "sequences": sequences,
        "truth": None if truth is None else volume(pack_labels(truth, view)),
        "tables": {"unsigned": unsigned.tolist(), "positive": positive.tolist(), "negative": negative.tolist()},
        "colours": {"mask": MASK_COLOUR, "truth": TRUTH_COLOUR},
        "methods": list(methods),
        "lesions": None,
        "lesion": None,
    }


def volume(packed: Packed) -> dict[str, Any]:
    """A volume as plain data."""
    return {
        "base64": packed.base64,
        "slope": packed.slope,
        "intercept": packed.intercept,
        "clipped": packed.clipped,
        "background": packed.background,
    }


def channel_data(
    name: str, values: np.ndarray, view: View, *, signed: bool, exact: bool = False, steps: int | None = None
) -> dict[str, Any]:
    """One map (X, Y, Z) on the whole grid, and its scale, as plain data."""
    scale = scale_of(values, signed=signed)
    return {
        **volume(pack_map(values, view, exact=exact, steps=steps)),
        "name": name,
        "peak": scale.peak,
        "threshold": scale.threshold,
        "diverging": scale.diverging,
        "gradient": _gradient(scale.diverging),
    }


def _gradient(diverging: bool) -> str:
    """The colours of the bar, from low to high, for CSS."""
    scale = scale_of(np.array([-1.0, 1.0] if diverging else [0.0, 1.0]), signed=diverging)
    positive, negative = colour_tables(scale)
    table = positive if negative is None else np.concatenate([negative[::-1], positive])
    chosen = table[np.linspace(0, len(table) - 1, 33).astype(int)]
    return ", ".join(f"rgb({r} {g} {b})" for r, g, b in chosen)
