"""What a training that was stopped goes on from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from voxplain.errors import InputError


def read_checkpoint(path: Path, identity: str, *, of: str) -> dict[str, Any]:
    """The state that a training left behind; `identity` is what it must agree in, `of` what it learns from, in words.

    Raises:
        InputError: a torn or foreign file, or the state of another training.
    """
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a torn or foreign file makes torch.load raise
        raise InputError(f"the checkpoint {path} cannot be read; remove it to train from the start") from error
    if not isinstance(state, dict) or state.get("identity") != identity:
        raise InputError(
            f"{path.parent} holds a half-finished training with other {of} or settings; remove the folder, or give "
            "another --out"
        )
    return state
