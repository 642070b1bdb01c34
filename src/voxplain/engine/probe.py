"""A network at work on one prepared input: every call is counted, every hook removed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from torch import nn

from voxplain.compute import Compute, size_in_words
from voxplain.engine.boxes import memory_format
from voxplain.engine.budget import MemoryMeter, is_out_of_memory
from voxplain.engine.incremental import Box, Incremental, KeepsTooMuchError, Patch
from voxplain.engine.progress import console
from voxplain.engine.tracing import UntraceableError, refuse_training
from voxplain.errors import InputError
from voxplain.model import Model
from voxplain.preparation import Prepared
from voxplain.target import Target

# Boxes are small where networks are wide: so many are followed together before a larger batch gains nothing.
PATCHES_AT_ONCE = 64
# So many perturbed inputs, from the smallest box to the largest, tell how long incremental passes take.
_TIMED_PATCHES = 8


# Networks of fewer multiply-accumulates are done with a full pass in about 10 ms.
_WORTH_FOLLOWING = 5e8
# Passes over the same input may differ by rounding, where threads add up in another order.
_ROUNDING = 1e-4


class _NoGradientError(InputError):
    """The score has no gradient with respect to the input, or none that fits into memory."""


class _OutOfMemory(InputError):
    """Not even this batch fits into memory; a smaller one might."""


@contextmanager
def _memory_guarded() -> Iterator[None]:
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise _OutOfMemory(
            "out of memory; free some, give a smaller --memory or --batch-size, --device cpu, or use a smaller network"
        ) from error


class Probe:
    """A network, one region of a scan and a target: what an explainer gets to work with.

    Attributes:
        prepared: the region as the network reads it.
        input: the network's input, float32 (C, X, Y, Z), on the CPU, read-only.
        target: what is explained; the predicted class is settled by the clean pass.
        logit, probability: the target's score on the clean input, which is what is explained.
        calibrated: the probability after the card's calibration, which is what is said of the region.
        positive: whether the network says of the region that something is there.
        rng: the only source of randomness.
        forwards, backwards: how many inputs went through the network so far, each way.
        followed: how many of the forwards computed only what the perturbation changes.
        batch_size: how many inputs run at a time: as many as the first pass says fit into the memory limit; it shrinks
            when a batch does not fit into memory nevertheless.
        notices: what the user should know of how it ran.
        facts: what provenance should say of how the input was perturbed, in plain data.
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
        first = 0
        while first < count:
            last = min(count, first + self._at_a_time())
            try:
                with torch.no_grad(), _memory_guarded():
                    found[first:last] = self._read(self._forward(inputs(first, last)), scale)
                first = last
                continue
            except _OutOfMemory:
                if last - first == 1:
                    raise
            # Outside of the except clause, whose error still holds the tensors of the batch that did not fit.
            self._release()
            self.batch_size = -(-(last - first) // 2)
            self.notices.append(f"out of memory with {last - first} inputs at a time; went on with {self.batch_size}")
        return found

    def _at_a_time(self) -> int:
        """How many inputs run in full at a time beside what the incremental engine keeps, where there is one."""
        run = vars(self).get("incremental")
        room = self.compute.memory_bytes - (0 if run is None else run.kept_bytes)
        return min(self.batch_size, self._needs.batch_size(room, self.compute))

    def _release(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def scores_of_patches(self, patches: Sequence[Patch], scale: str) -> np.ndarray:
        """The target's "probability" or "logit" where one box of the input is replaced, (N,) float64.

        A patch is a box, (start, stop) per axis of (X, Y, Z), and its contents (C, x, y, z). Only what the patches can
        change is computed again, where the run is incremental and memory allows; where it does not, the rest of the
        run goes on in full, and `notices` says so.
        """
        flat = self.model.card.spatial_dims == 2
        cut = [(box[:2], values[..., 0]) if flat else (box, values) for box, values in patches]
        scores = np.zeros(len(patches))
        waiting: list[list[int]] = []
        if self._affords(cut):
            assert self.incremental is not None
            waiting = self.incremental.together([box for box, _ in cut])
        in_full = [] if waiting else list(range(len(patches)))
        while waiting and self.incremental is not None:
            rows = waiting.pop(0)
            try:
                scores[rows] = self._scores_together(self.incremental, [cut[row] for row in rows], scale)
                continue
            except _OutOfMemory:
                pass
            self._release()
            left = sorted([*rows, *(row for chunk in waiting for row in chunk)])
            if len(rows) == 1:
                self._run_in_full(
                    "out of memory with a single perturbed input beside what the incremental engine keeps"
                )
                in_full = left
                break
            self.incremental.batch_size = -(-len(rows) // 2)
            self.notices.append(
                f"out of memory with {len(rows)} perturbed inputs at a time; went on with {self.incremental.batch_size}"
            )
            again = self.incremental.together([cut[row][0] for row in left])
            waiting = [[left[position] for position in chunk] for chunk in again]
        scores[in_full] = self.scores_of([partial(_put, *patches[row]) for row in in_full], scale)
        return scores

    @_memory_guarded()
    def _scores_together(self, run: Incremental, patches: list[Patch], scale: str) -> np.ndarray:
        """Scores of patches that are followed together; their outputs are dropped."""
        with torch.no_grad():
            scores = self._read(self._checked(run.follow(patches), len(patches)), scale)
        self.followed += len(patches)
        return scores

    def _affords(self, patches: list[Patch]) -> bool:
        """Whether patches (as the network reads them) are followed incrementally, within the memory limit."""
        run, boxes = self.incremental, [box for box, _ in patches]
        limit = self.compute.memory_bytes
        if run is None:
            return False
        if self.compute.engine == "auto" and not run.pays(boxes):
            # A full pass must fit beside what is kept for boxes that pay, or nothing is kept.
            if run.kept_bytes + self._needs.single > limit:
                self.incremental = None
            return False
        held = run.kept_bytes + sum(values.nbytes for _, values in patches)
        needed = held + run.needed_bytes(boxes)
        if needed > limit:
            needed = held + max(run.needed_bytes([box]) for box in boxes)
        # Beyond the limit still, but not by as much as a full pass is.
        if needed > max(limit, self._needs.single):
            self._run_in_full(self._too_small_for(needed))
            return False
        run.memory_bytes = limit - held
        return True

    def _too_small_for(self, needed: int) -> str:
        return (
            f"the incremental engine needs {size_in_words(needed)} here, more than the limit of {self.compute.memory}; "
            f"give --memory {size_in_words(needed)} or more"
        )

    def _run_in_full(self, reason: str) -> None:
        """Drop the incremental engine for the rest of the run."""
        self.incremental = None
        self._release()
        self.notices.append(f"the network runs in full: {reason}")

    @cached_property
    def incremental(self) -> Incremental | None:
        """The network at work on perturbations of the clean input; None where it runs in full.

        A network that torch.fx cannot follow, or whose activations do not fit into memory, runs in full, and `notices`
        says so.
        """
        if self.compute.engine == "full" or (self.compute.engine == "auto" and not self._may_pay()):
            return None
        try:
            with _memory_guarded():
                run = Incremental(
                    self.model.network,
                    self._tensor(self.input[None]),
                    expected=self._clean_output,
                    batch_size=self.compute.batch_size or PATCHES_AT_ONCE,
                    most_kept_bytes=max(self.compute.memory_bytes, self._needs.single),
                )
                self._repeatable = True
                return run
        except UntraceableError as error:
            reason = str(error)
        except KeepsTooMuchError as error:
            reason = self._too_small_for(error.kept_bytes + self._needs.single)
        except _OutOfMemory:
            reason = "out of memory with the activations that the incremental engine keeps"
        self._release()
        self.notices.append(f"the network runs in full: {reason}")
        return None

    def _may_pay(self) -> bool:
        """Whether engine "auto" should look at incremental passes at all: they were never measured on a GPU."""
        float32 = self.compute.dtype == "float32"
        return self._device.type == "cpu" and float32 and self._needs.arithmetic >= _WORTH_FOLLOWING

    def _check_repeatable(self) -> None:
        """Run the clean input again: comparing passes makes no sense where the network draws on chance."""
        if self._repeatable:
            return
        with torch.no_grad():
            again = self._read(self._forward(self._tensor(self.input[None])), "logit")[0]
        self.forwards -= 1
        if not np.isclose(again, self.logit, rtol=_ROUNDING, atol=_ROUNDING / 10):
            raise InputError(
                f"two passes over the same input differ ({self.logit:.6g} and {again:.6g}): the network draws on "
                "chance; make it deterministic"
            )
        self._repeatable = True

    def input_gradient(self) -> np.ndarray | None:
        """As `gradient`; None where there is none, for methods that do without."""
        try:
            return self.gradient()
        except _NoGradientError:
            return None

    def gradient(self, during: AbstractContextManager[object] | None = None) -> np.ndarray:
        """The logit's gradient with respect to the clean input, float32 (C, X, Y, Z).

        The pass forward runs within `during`, which may change what functions of torch do.

        Raises:
            InputError: the score does not depend on the input in a way that PyTorch can follow, the gradient is not
                finite, or what the pass has to save takes more than the memory limit.
        """
        limit, saved = self.compute.memory_bytes - self._needs.single, dict[int, int]()

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            block = tensor.untyped_storage()
            saved[block.data_ptr()] = block.nbytes()
            if sum(saved.values()) > limit:
                raise _NoGradientError(
                    f"the gradient has to keep more than the limit of {self.compute.memory}; give a larger --memory, "
                    "or use a method that needs calls only"
                )
            return tensor

        inputs = self._tensor(self.input[None]).requires_grad_()
        with during or nullcontext(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            output = self._forward(inputs.clone())
        score = self.target.logit(output, self.model.card).sum()
        gradient = self._followed_back(score, inputs) if score.requires_grad else None
        if gradient is None:
            raise _NoGradientError(
                "the score does not depend on the input in a way that PyTorch can follow; use a method that needs "
                "calls only"
            )
        if not bool(torch.isfinite(gradient).all()):
            raise _NoGradientError(
                "the gradient of the score holds NaN or infinity; use a method that needs calls only"
            )
        found: np.ndarray = gradient[0].float().cpu().numpy()
        return found[..., None] if self.model.card.spatial_dims == 2 else found

    @_memory_guarded()
    def _followed_back(self, score: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor | None:
        """The score's gradient with respect to the inputs; None where it does not depend on them."""
        try:
            (gradient,) = torch.autograd.grad(score, inputs, allow_unused=True)
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            reason = " ".join(str(error).split())[:200]
            raise _NoGradientError(
                f"PyTorch cannot follow the score back to the input: {reason}; use a method that needs calls only"
            ) from error
        self.backwards += 1
        return gradient

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

    @_memory_guarded()
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

    def layers_like_blocks(self) -> list[str]:
        """Names of the network's outermost modules that hold weights."""
        return [name for name, module in self.model.network.named_children() if [*module.parameters()]]

    def announce(self, passes: int, what: str, boxes: Sequence[Box] = ()) -> None:
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

        seconds = _timed(lambda: self.scores_of([nothing], "logit"))
        together = min(self.batch_size, passes)
        if together > 1 and together * seconds < 1:
            seconds = _timed(lambda: self.scores_of([nothing] * together, "logit")) / together
        return seconds

    def _seconds_in_boxes(self, boxes: Sequence[Box]) -> float | None:
        """Mean seconds of a pass that perturbs one of these boxes; None where it runs in full.

        Boxes of several sizes are timed; by the arithmetic inside of them follow the others.
        """
        if self.incremental is None:
            return None
        arithmetic = self.incremental.arithmetic([box[: self.model.card.spatial_dims] for box in boxes]).inside
        costs = np.array(arithmetic) + 1  # a network without convolutions has none
        count = min(_TIMED_PATCHES, len(boxes))
        chosen = np.argsort(costs, kind="stable")[((np.arange(count) + 0.5) * len(boxes) / count).astype(int)]
        patches = [(boxes[i], self.input[(slice(None), *(slice(*side) for side in boxes[i]))].copy()) for i in chosen]
        seconds = _timed(lambda: self.scores_of_patches(patches, "logit"))
        # Not where there was no memory for them.
        return None if self.incremental is None else float(seconds * costs.mean() / costs[chosen].sum())

    def _tensor(self, inputs: np.ndarray) -> torch.Tensor:
        """A copy of inputs (N, C, X, Y, Z): the network must not be able to write into the scan."""
        return self._on_device(self._copied(inputs))

    @_memory_guarded()
    def _copied(self, inputs: np.ndarray) -> torch.Tensor:
        """A copy on the CPU, laid out as networks are fastest with: one copy, not one more for the layout."""
        order = torch.contiguous_format if self.model.card.spatial_dims == 2 else memory_format(inputs.ndim)
        copies = torch.empty(inputs.shape, dtype=torch.float32, memory_format=order)
        copies.numpy()[...] = inputs
        return copies

    @_memory_guarded()
    def _on_device(self, copies: torch.Tensor) -> torch.Tensor:
        return (copies[..., 0] if self.model.card.spatial_dims == 2 else copies).to(self._device)

    @_memory_guarded()
    def _forward(self, inputs: torch.Tensor) -> torch.Tensor:
        try:
            with self.compute.precision():
                output = self.model.network(inputs)
        except InputError:
            raise
        except (RuntimeError, ValueError) as error:
            if is_out_of_memory(error):
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


def _put(box: Box, values: np.ndarray | torch.Tensor, image: np.ndarray) -> None:
    """Write a patch into an input (C, X, Y, Z)."""
    image[(slice(None), *(slice(*side) for side in box))] = values


def _timed(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started
