"""What is known of one lesion already, by a hash of all that it follows from: small JSON files."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from voxplain.explain.explainer import Explainer
from voxplain.io.atomic import read_json, write_json
from voxplain.model import Model
from voxplain.prediction import deciding
from voxplain.scan import Scan


@dataclass(frozen=True)
class Cache:
    """A folder of results by key; a damaged file counts as missing."""

    folder: Path

    def path(self, key: str, ending: str = ".json") -> Path:
        """Where the result of a key lies."""
        return self.folder / f"{key}{ending}"

    def get(self, key: str) -> dict[str, Any] | None:
        """The result of a key, NaN where None was written; None where there is no result."""
        try:
            found = read_json(self.path(key))
        except ValueError:
            return None
        return None if found is None else {name: _numbers(value) for name, value in found.items()}

    def put(self, key: str, result: Mapping[str, Any]) -> None:
        """Keep a result: numbers, words, and lists and tables of these."""
        write_json({name: _plain(value) for name, value in result.items()}, self.path(key))


def key_of(*content: Any) -> str:
    """A hash of plain data, of mappings of it, and of explainers."""
    text = json.dumps(content, sort_keys=True, default=_described)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def model_key(model: Model) -> dict[str, Any]:
    """All of a model that decides on its scores: weights and what of the card does, the threshold among it."""
    return {"weights": model.fingerprint, "card": deciding(model.card), "threshold": model.card.threshold}


def region_key(scan: Scan, region: np.ndarray) -> list[str]:
    """A scan, and the voxels of a region on its grid, boolean (X, Y, Z)."""
    voxels = hashlib.sha256(np.flatnonzero(region).astype(np.int64).tobytes()).hexdigest()
    return [scan.fingerprint, voxels[:24]]


def _described(value: Any) -> Any:
    if isinstance(value, Explainer):
        kind = type(value)
        return {"explainer": f"{kind.__module__}:{kind.__qualname__}", "options": dataclasses.asdict(value)}
    raise TypeError(f"no part of a key: {type(value).__name__}")


def _plain(value: Any) -> Any:
    """JSON knows no NaN."""
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [_plain(item) for item in value]
    if isinstance(value, float | np.floating):
        if math.isnan(value):
            return None
        return "infinite" if math.isinf(value) else float(value)
    return int(value) if isinstance(value, np.integer) else value


def _numbers(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _numbers(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_numbers(item) for item in value]
    if value is None:
        return math.nan
    return math.inf if value == "infinite" else value
