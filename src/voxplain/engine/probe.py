"""A network at work on one prepared input: every call is counted, every hook removed."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import nn

from voxplain.compute import Compute
from voxplain.engine.budget import ActivationMeter
from voxplain.engine.incremental import Incremental, Patch
from voxplain.engine.tracing import UntraceableError
from voxplain.errors import InputError
from voxplain.model import Model
from voxplain.preparation import Prepared
from voxplain.target import Target

# Boxes are small where networks are wide: so many are followed together before a larger batch gains nothing.
PATCHES_AT_ONCE = 64

console = Console(stderr=True)
Item = TypeVar("Item")


class _OutOfMemory(InputError):
    """Not even this batch fits into memory; a smaller one might."""


def _is_out_of_memory(error: Exception) -> bool:
    """Whether a device, or the CPU's allocator, had no memory left (PyTorch has no one type for both)."""
    words = str(error).lower()
    return isinstance(error, MemoryError) or "out of memory" in words or "can't allocate memory" in words


@contextmanager
def _memory_guarded() -> Iterator[None]:
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not _is_out_of_memory(error):
            raise
        raise _OutOfMemory(
            "out of memory; free some, give a smaller --memory or --batch-size, --device cpu, or use a smaller network"
        ) from error


class Probe:
    """A network, one region of a scan and a target: what an explainer gets to work with.

    Attributes:
        prepared: the region as the network reads it.
        input: the network's input, float32 (C, X, Y, Z), on the CPU, read-only.
        logit, probability: the target's score on the clean input, which is what is explained.
        calibrated: the probability after the card's calibration, which is what is said of the region.
        rng: the only source of randomness.
        forwards, backwards: how many inputs went through the network so far, each way.
        batch_size: how many inputs run at a time; it shrinks when a batch does not fit into memory.
        notices: what the user should know of how it ran.
        facts: what provenance should say of how the input was perturbed, in plain data.
    """

    def __init__(self, model: Model, prepared: Prepared, target: Target, seed: int, compute: Compute) -> None:
        self.model, self.prepared, self.target, self.compute = model, prepared, target, compute
        self.rng = np.random.default_rng(seed)
        self.forwards = self.backwards = 0
        self.notices: list[str] = []
        self.facts: dict[str, Any] = {}
        self.input = prepared.input.data
        self._device = compute.torch_device
        clean = self._tensor(self.input[None])
        # Not inference mode: what a network keeps of a pass (grids of positions) must serve its gradients later on.
        with ActivationMeter(model.network) as meter, torch.no_grad():
            output = self._forward(clean)
        self.batch_size = meter.batch_size(clean, compute)
        self.logit = float(target.logit(output, model.card)[0])
        self.probability = float(target.probability(output, model.card)[0])
        self.calibrated = float(target.probability(model.card.calibrated(output), model.card)[0])

    def scores(self, inputs: np.ndarray, scale: str) -> np.ndarray:
        """The target's "probability" or "logit" for each of a batch of inputs (B, C, X, Y, Z); (B,) float64.

        A batch that does not fit into memory is cut into smaller ones, as are all that follow; `notices` says so.

        Raises:
            InputError: a single input does not fit into memory.
        """
        try:
            with torch.no_grad():
                return self._read(self._forward(self._tensor(inputs)), scale)
        except _OutOfMemory:
            if len(inputs) == 1:
                raise
        # Outside of the except clause, whose error still holds the tensors of the batch that did not fit.
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        half = -(-len(inputs) // 2)
        self.batch_size = min(self.batch_size, half)
        self.notices.append(f"out of memory with {len(inputs)} inputs at a time; went on with {half}")
        found: list[float] = []
        while len(found) < len(inputs):
            found += self.scores(inputs[len(found) : len(found) + self.batch_size], scale).tolist()
        return np.array(found)

    def scores_of_patches(self, patches: Sequence[Patch], scale: str) -> np.ndarray:
        """The target's "probability" or "logit" where one box of the input is replaced, (N,) float64.

        A patch is a box, (start, stop) per axis of (X, Y, Z), and its contents (C, x, y, z). Only what the patches can
        change is computed again: for runs that have `incremental`.
        """
        assert self.incremental is not None
        flat = self.model.card.spatial_dims == 2
        cut = [(box[:2], values[..., 0]) if flat else (box, values) for box, values in patches]
        with torch.no_grad(), _memory_guarded():
            return self._read(self._checked(self.incremental.outputs(cut), len(patches)), scale)

    @cached_property
    def incremental(self) -> Incremental | None:
        """The network at work on perturbations of the clean input; None where it runs in full.

        A network that torch.fx cannot follow runs in full, and `notices` says so.
        """
        if self.compute.engine == "full":
            return None
        try:
            with _memory_guarded():
                return Incremental(
                    self.model.network,
                    self._tensor(self.input[None]),
                    batch_size=self.compute.batch_size or PATCHES_AT_ONCE,
                    memory_bytes=self.compute.memory_bytes,
                )
        except UntraceableError as error:
            self.notices.append(f"the network runs in full: {error}")
            return None

    @property
    def finished_in_full_from(self) -> tuple[str, ...]:
        """Names of the layers from which perturbed inputs ran in full, where the engine is incremental."""
        run = vars(self).get("incremental")  # not made where no method asked for it
        return () if run is None else run.finished_in_full_from

    def _read(self, output: torch.Tensor, scale: str) -> np.ndarray:
        read = self.target.probability if scale == "probability" else self.target.logit
        return read(output, self.model.card).double().cpu().numpy()

    def clean_score(self, scale: str) -> float:
        """The target's "probability" or "logit" on the clean input."""
        return self.probability if scale == "probability" else self.logit

    def activation_and_gradient(self, layer: str) -> tuple[np.ndarray, np.ndarray]:
        """A layer's output on the clean input and the logit's gradient there, both (channels, spatial...) float32.

        Raises:
            InputError: no such layer, a layer that runs more than once or not at all, or one whose output the score
                does not depend on.
        """
        kept: list[object] = []

        def keep(_module: nn.Module, _inputs: object, output: object) -> object:
            kept.append(output)
            # What follows works on a copy, so that an activation in place cannot overwrite what is kept.
            return output.clone() if isinstance(output, torch.Tensor) else output

        handle = self.model.layer(layer).register_forward_hook(keep)
        try:
            # The input asks for gradients, so that every layer's output does, with the weights left out of it. The
            # network gets a copy, which it may write into.
            output = self._forward(self._tensor(self.input[None]).requires_grad_().clone())
        finally:
            handle.remove()
        if len(kept) != 1:
            raise InputError(
                f"layer {layer!r} runs {len(kept)} times in one pass, so its map is not defined; "
                f"name a layer that runs once, such as a block ({', '.join(self.layers_like_blocks())})"
            )
        (activation,) = kept
        if not isinstance(activation, torch.Tensor) or activation.ndim != 2 + self.model.card.spatial_dims:
            raise InputError(f"layer {layer!r} gives no feature maps; name a convolution or a block")
        score = self.target.logit(output, self.model.card).sum()
        gradient = None
        if score.requires_grad and activation.requires_grad:
            (gradient,) = torch.autograd.grad(score, activation, allow_unused=True)
            self.backwards += 1
        if gradient is None:
            raise InputError(f"the score does not depend on layer {layer!r}; name a layer on the way to the output")
        return activation.detach()[0].float().cpu().numpy(), gradient[0].float().cpu().numpy()

    def layers_like_blocks(self) -> list[str]:
        """Names of the network's outermost modules that hold weights."""
        return [name for name, module in self.model.network.named_children() if [*module.parameters()]]

    def announce(self, passes: int, what: str) -> None:
        """Say how many passes are coming and how long they should take."""
        if not self.compute.progress or not passes:
            return
        # The very first pass also warms up, so the estimate rests on a second one.
        started = time.perf_counter()
        self.scores(self.input[None], "logit")
        seconds = passes * (time.perf_counter() - started)
        console.print(
            f"{self.prepared.name}: {what}, {passes} passes in batches of {self.batch_size}, about {seconds:.0f} s",
            highlight=False,
        )

    @_memory_guarded()
    def _tensor(self, inputs: np.ndarray) -> torch.Tensor:
        # The network must not be able to write into the scan.
        tensor = torch.from_numpy(np.array(inputs, dtype=np.float32))
        if self.model.card.spatial_dims == 2:
            return tensor[..., 0].to(self._device)
        return tensor.to(self._device, memory_format=torch.channels_last_3d)

    @_memory_guarded()
    def _forward(self, inputs: torch.Tensor) -> torch.Tensor:
        try:
            with self.compute.precision():
                output = self.model.network(inputs)
        except RuntimeError as error:
            if _is_out_of_memory(error):
                raise
            raise InputError(
                f"the network refuses inputs of shape {tuple(inputs.shape)}: {' '.join(str(error).split())[:200]}; "
                "does the card (channels, spatial_dims, shape) belong to this network?"
            ) from error
        return self._checked(output, len(inputs))

    def _checked(self, output: object, count: int) -> torch.Tensor:
        """The network's raw output as float32, (count, classes, ...), after a look at what came out."""
        self.forwards += count
        card = self.model.card
        if not isinstance(output, torch.Tensor):
            raise InputError(
                f"expected one tensor of raw scores; the network returns {type(output).__name__}: "
                "wrap the network so that it returns its scores alone"
            )
        inputs = (count, *self.input.shape[: 1 + card.spatial_dims])
        self.target.check_output(tuple(output.shape), inputs, card)
        if not bool(torch.isfinite(output).all()):
            raise InputError("the network returns NaN or infinite scores for this scan; check its weights and the card")
        return output.float()


def tracked(
    items: Iterable[Item], description: str, *, shown: bool, total: int | None = None
) -> Generator[Item, None, None]:
    """Pass items on, under a bar with counts and the time that remains (on standard error) where it is wanted.

    `total` is how many there are, for items that do not know.
    """
    if not shown:
        yield from items
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        yield from progress.track(items, total=total, description=description)
