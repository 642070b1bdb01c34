"""Passes of a network over inputs like one prepared input: counted, in batches that fit, its output looked at."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from voxplain.compute import Compute, size_in_words
from voxplain.engine.blocks import blocks
from voxplain.engine.boxes import memory_format
from voxplain.engine.budget import MemoryMeter, is_out_of_memory
from voxplain.engine.progress import console
from voxplain.engine.tracing import refuse_training
from voxplain.engine.windows import Stitched
from voxplain.errors import InputError
from voxplain.model import Model
from voxplain.preparation import Prepared
from voxplain.target import RegionScore, Target

# Passes over the same input may differ by rounding, where threads add up in another order.
_ROUNDING = 1e-4


class OutOfMemory(InputError):
    """Not even this batch fits into memory; a smaller one might."""


@contextmanager
def memory_guarded() -> Iterator[None]:
    """Say what to do where memory runs out."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemory(
            "out of memory; free some, give a smaller --memory or --batch-size, --device cpu, or use a smaller network"
        ) from error


class Running:
    """A network at work on one region of a scan, read by one target.

    Attributes:
        model, prepared, target, compute: as given; the predicted class is settled by the clean pass.
        network: what runs: the model's network, or where the card has a window its blended prediction in the windows
            that the target's region touches.
        input: the network's input, float32 (C, X, Y, Z), on the CPU, read-only.
        logit, probability: the target's score on the clean input, which is what is explained.
        calibrated: the probability after the card's calibration, which is what is said of the region.
        positive: whether the network says of the region that something is there.
        rng: the only source of randomness.
        forwards, backwards: how many inputs went through the network so far, each way; one that is read in several
            windows counts once.
        followed: how many of the forwards computed only what the perturbation changes.
        batch_size: how many inputs run at a time: as many as the first pass says fit into the memory limit; it shrinks
            when a batch does not fit into memory nevertheless.
        notices: what the user should know of how it ran.
        facts: what provenance should say of how it ran, in plain data.
    """

    def __init__(self, model: Model, prepared: Prepared, target: Target, seed: int, compute: Compute) -> None:
        self.model, self.prepared, self.target, self.compute = model, prepared, target, compute
        self.rng = np.random.default_rng(seed)
        self.forwards = self.backwards = self.followed = 0
        self._repeatable = False
        if not isinstance(model.network, torch.jit.ScriptModule):
            refuse_training(model.network)
        self.notices: list[str] = []
        self.facts: dict[str, Any] = {}
        self.input = prepared.input.data
        self._device = compute.torch_device
        self.network = model.network if model.card.window is None else self._in_windows()
        # Not inference mode: what a network keeps of a pass (grids of positions) must serve its gradients later on.
        with MemoryMeter(self._device) as meter, torch.no_grad():
            output = self._forward(self._tensor(self.input[None]))
            self._read(output, "probability")
        self._clean_output, self._needs = output, meter.needs
        self.batch_size = self._needs.batch_size(compute.memory_bytes, compute)
        if self._needs.single > compute.memory_bytes and compute.batch_size is None:
            self.notices.append(
                f"one input takes about {size_in_words(self._needs.single)}, more than the limit of {compute.memory}: "
                "inputs run one at a time"
            )
        self.positive = target.positive(output, model.card)
        self.target = target.resolved(output, model.card)
        if self.target is not target:
            self.facts["class"] = self.target.record()["name"]
        self.logit = float(self.target.logit(output, model.card)[0])
        self.probability = float(self.target.probability(output, model.card)[0])
        self.calibrated = float(self.target.probability(model.card.calibrated(output), model.card)[0])

    def _in_windows(self) -> Stitched:
        """The network's blended prediction in the windows that the region touches.

        Raises:
            InputError: a target that is no region.
        """
        card, shape = self.model.card, self.input.shape[1:]
        stitched = Stitched(self.model.network, card, background=self.prepared.background)
        if not isinstance(self.target, RegionScore):
            # One window says what is wrong: no need to run them all.
            with torch.no_grad():
                piece = stitched.piece(self._tensor(self.input[None]), 0)
                self._checked(self._called(self.model.network, piece), tuple(piece.shape))
            raise InputError(
                "the card's window is for networks that give a map per class; this one gives one score per class: "
                "drop the window from the card"
            )
        stitched.read = self.target.mask.data > 0
        count, every = len(stitched.numbers(shape)), len(stitched.tiling(shape).boxes)
        self.facts["windows"] = {"size": list(card.window or ()), "overlap": card.overlap, "run": count, "of": every}
        return stitched

    @property
    def device(self) -> torch.device:
        """Where passes run."""
        return self._device

    def raw_scores(self, inputs: torch.Tensor) -> torch.Tensor:
        """The model's own network on the device, as float32: of a window where it reads those. It counts as no pass.

        The output is not looked at, and may hold NaN where the inputs do.
        """
        output = self._called(self.model.network, inputs)
        assert isinstance(output, torch.Tensor)  # the clean pass has seen to that
        return output.float()

    def scores(self, inputs: np.ndarray, scale: str) -> np.ndarray:
        """The target's "probability" or "logit" for each of the inputs (N, C, X, Y, Z); (N,) float64.

        They run in batches of `batch_size`. One that does not fit into memory is cut into smaller ones, as are all that
        follow; `notices` says so.

        Raises:
            InputError: a single input does not fit into memory.
        """
        return self._scores(len(inputs), lambda first, last: self._tensor(inputs[first:last]), scale)

    def scores_of(self, perturbations: Sequence[Callable[[np.ndarray], None]], scale: str) -> np.ndarray:
        """As `scores`, of copies of the clean input (C, X, Y, Z) that one perturbation each changes in place.

        No more copies exist at a time than one batch.

        Raises:
            InputError: the network draws on chance, or a single input does not fit into memory.
        """
        if perturbations:
            self._check_repeatable()

        def perturbed(first: int, last: int) -> torch.Tensor:
            some = perturbations[first:last]
            copies = self._copied(np.broadcast_to(self.input, (len(some), *self.input.shape)))
            for image, perturb in zip(copies.numpy(), some, strict=True):
                perturb(image)
            return self._on_device(copies)

        return self._scores(len(perturbations), perturbed, scale)

    def _scores(self, count: int, inputs: Callable[[int, int], torch.Tensor], scale: str) -> np.ndarray:
        """Scores of inputs that are made batch by batch: from the `first` to before the `last` of them."""
        found = np.zeros(count)

        def run(first: int, last: int) -> None:
            found[first:last] = self._read(self._forward(inputs(first, last)), scale)

        self._in_batches(count, run)
        return found

    def _in_batches(self, count: int, run: Callable[[int, int], None]) -> None:
        """Run all of `count` inputs, from the `first` to before the `last` at a time, as many as fit into memory."""
        first = 0
        while first < count:
            last = min(count, first + self._at_a_time())
            try:
                with torch.no_grad(), memory_guarded():
                    run(first, last)
                first = last
                continue
            except OutOfMemory:
                if last - first == 1:
                    raise
            # Outside of the except clause, whose error still holds the tensors of the batch that did not fit.
            self._release()
            self.batch_size = -(-(last - first) // 2)
            self.notices.append(f"out of memory with {last - first} inputs at a time; went on with {self.batch_size}")

    def _at_a_time(self) -> int:
        """How many inputs run in full at a time beside what is kept."""
        return min(self.batch_size, self._needs.batch_size(self.compute.memory_bytes - self._kept_bytes, self.compute))

    @property
    def _kept_bytes(self) -> int:
        """What stays in memory between passes."""
        return 0

    def _release(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def _check_repeatable(self) -> None:
        """Run the clean input again: comparing passes makes no sense where the network draws on chance."""
        if self._repeatable:
            return
        with torch.no_grad():
            again = self._read(self._forward(self._tensor(self.input[None])), "logit")[0]
        self.forwards -= 1
        self._compare(again)

    def _compare(self, again: float) -> None:
        """Refuse a network whose second pass over the clean input gives another logit."""
        if not np.isclose(again, self.logit, rtol=_ROUNDING, atol=_ROUNDING / 10):
            raise InputError(
                f"two passes over the same input differ ({self.logit:.6g} and {again:.6g}): the network draws on "
                "chance; make it deterministic"
            )
        self._repeatable = True

    def _read(self, output: torch.Tensor, scale: str) -> np.ndarray:
        read = self.target.probability if scale == "probability" else self.target.logit
        return read(output, self.model.card).double().cpu().numpy()

    def clean_score(self, scale: str) -> float:
        """The target's "probability" or "logit" on the clean input."""
        return self.probability if scale == "probability" else self.logit

    @memory_guarded()
    def class_map(self, read: Callable[[torch.Tensor], torch.Tensor], index: int) -> np.ndarray:
        """A map (X, Y, Z) float32 of one class, that the network gives of the clean input by a method of its own.

        `read` takes the input as the network does and gives (1, classes, X, Y, Z), or (1, classes, X, Y) in 2D. It
        counts as one forward pass.

        Raises:
            InputError: the map is of another shape, or is not finite.
        """
        with torch.no_grad(), self.compute.precision():
            output = read(self._tensor(self.input[None]))
        self.forwards += 1
        card = self.model.card
        expected = (1, len(card.classes), *self.input.shape[1 : 1 + card.spatial_dims])
        if tuple(output.shape) != expected:
            raise InputError(f"expected a map per class on the input's grid, {expected}; got {tuple(output.shape)}")
        if not bool(torch.isfinite(output).all()):
            raise InputError("the network's map is NaN or infinite for this scan; check its weights and the card")
        found: np.ndarray = output[0, index].float().cpu().numpy().reshape(self.input.shape[1:])
        return found

    def blocks(self) -> dict[str, tuple[int, ...]]:
        """The grid of every block's output by the block's name (`voxplain.engine.blocks`); costs one pass."""

        def run() -> None:
            with torch.no_grad():
                self._forward(self._tensor(self.input[None]))

        return blocks(self.model.network, run, dims=self.model.card.spatial_dims)

    def announce(self, passes: int, what: str, boxes: Sequence[Sequence[tuple[int, int]]] = ()) -> None:
        """Say how many passes are coming and how long they should take.

        `boxes`, (start, stop) per axis of (X, Y, Z), are what passes may perturb where they perturb a part of the input
        only. A few passes over the clean input are timed; they count as none.
        """
        if not self.compute.progress or not passes:
            return
        forwards, followed = self.forwards, self.followed
        seconds = self._seconds_in_boxes(boxes) if boxes else None
        how = "incremental passes" if seconds is not None else f"passes in batches of {self.batch_size}"
        seconds = passes * (self._seconds_in_full(passes) if seconds is None else seconds)
        self.forwards, self.followed = forwards, followed
        console.print(f"{self.prepared.name}: {what}, {passes} {how}, about {seconds:.0f} s", highlight=False)

    def _seconds_in_full(self, passes: int) -> float:
        """Seconds of one full pass: of an input alone, or in a batch where that is a matter of a second."""

        def nothing(_image: np.ndarray) -> None:
            """Leave a copy as it is."""

        seconds = timed(lambda: self.scores_of([nothing], "logit"))
        together = min(self.batch_size, passes)
        if together > 1 and together * seconds < 1:
            seconds = timed(lambda: self.scores_of([nothing] * together, "logit")) / together
        return seconds

    def _seconds_in_boxes(self, boxes: Sequence[Sequence[tuple[int, int]]]) -> float | None:
        """Mean seconds of a pass that perturbs one of these boxes; None where it runs in full."""
        return None

    def _tensor(self, inputs: np.ndarray) -> torch.Tensor:
        """A copy of inputs (N, C, X, Y, Z): the network must not be able to write into the scan."""
        return self._on_device(self._copied(inputs))

    @memory_guarded()
    def _copied(self, inputs: np.ndarray) -> torch.Tensor:
        """A copy on the CPU, laid out as networks are fastest with: one copy, not one more for the layout."""
        order = torch.contiguous_format if self.model.card.spatial_dims == 2 else memory_format(inputs.ndim)
        copies = torch.empty(inputs.shape, dtype=torch.float32, memory_format=order)
        copies.numpy()[...] = inputs
        return copies

    @memory_guarded()
    def _on_device(self, copies: torch.Tensor) -> torch.Tensor:
        return (copies[..., 0] if self.model.card.spatial_dims == 2 else copies).to(self._device)

    def _forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """The raw output for inputs, as float32 (B, classes, ...); they count."""
        output = self._checked(self._called(self.network, inputs), tuple(inputs.shape))
        self.forwards += len(inputs)
        return output

    @memory_guarded()
    def _called(self, network: Callable[[torch.Tensor], object], inputs: torch.Tensor) -> object:
        """What a network returns for inputs."""
        try:
            with self.compute.precision():
                return network(inputs)
        except InputError:
            raise
        except (RuntimeError, ValueError) as error:
            if is_out_of_memory(error):
                raise
            raise InputError(
                f"the network refuses inputs of shape {tuple(inputs.shape)}: {' '.join(str(error).split())[:200]}; "
                "does the card (channels, spatial_dims, shape, window) belong to this network?"
            ) from error

    def _checked(self, output: object, inputs: tuple[int, ...]) -> torch.Tensor:
        """The raw output for inputs of a shape (B, C, ...) as float32, (B, classes, ...), after a look at it."""
        card = self.model.card
        if not isinstance(output, torch.Tensor):
            raise InputError(
                f"expected one tensor of raw scores; the network returns {type(output).__name__}: "
                "wrap the network so that it returns its scores alone"
            )
        self.target.check_output(tuple(output.shape), inputs, card)
        if not bool(torch.isfinite(output).all()):
            raise InputError("the network returns NaN or infinite scores for this scan; check its weights and the card")
        return output.float()


def timed(run: Callable[[], object]) -> float:
    """Seconds that something takes."""
    started = time.perf_counter()
    run()
    return time.perf_counter() - started
