"""A network at work on one prepared input: every call is counted, every hook removed."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property, partial

import numpy as np
import torch

from voxplain.compute import size_in_words
from voxplain.engine.differentiating import Differentiating
from voxplain.engine.incremental import Box, Incremental, KeepsTooMuchError, Patch
from voxplain.engine.patched_windows import PatchedWindows
from voxplain.engine.running import OutOfMemory, memory_guarded, timed
from voxplain.engine.tracing import UntraceableError
from voxplain.engine.windows import Stitched
from voxplain.target import RegionScore

# Boxes are small where networks are wide: so many are followed together before a larger batch gains nothing.
PATCHES_AT_ONCE = 64
# So many perturbed inputs, from the smallest box to the largest, tell how long incremental passes take.
_TIMED_PATCHES = 8
# Networks of fewer multiply-accumulates are done with a full pass in about 10 ms.
_WORTH_FOLLOWING = 5e8


class Probe(Differentiating):
    """A network, one region of a scan and a target: what an explainer gets to work with.

    It runs perturbed inputs incrementally where that is asked for or pays; of a network that reads the scan in windows
    it runs those that a perturbation and the target's region touch. What it holds is said by `Running`.
    """

    def scores_of_patches(self, patches: Sequence[Patch], scale: str) -> np.ndarray:
        """The target's "probability" or "logit" where one box of the input is replaced, (N,) float64.

        A patch is a box, (start, stop) per axis of (X, Y, Z), and its contents (C, x, y, z). Only what the patches can
        change is computed again, where the run is incremental and memory allows; where it does not, the rest of the
        run goes on in full, and `notices` says so.
        """
        if self._windows is not None:
            return self._scores_in_windows(self._windows, patches, scale)
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
            except OutOfMemory:
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

    @property
    def works_in_boxes(self) -> bool:
        """Whether `scores_of_patches` is less work than passes over whole inputs."""
        return self._windows is not None or self.incremental is not None

    @cached_property
    def _windows(self) -> PatchedWindows | None:
        """The region's scores window by window; None of a network that reads its input at once."""
        if not isinstance(self.network, Stitched):
            return None
        assert isinstance(self.target, RegionScore)
        stitched = self.network
        if self.compute.engine == "incremental":
            self.notices.append(
                "the network runs in full in each window that a perturbation reaches: the incremental engine does not "
                "work in windows"
            )

        def call(pieces: torch.Tensor) -> torch.Tensor:
            return self._checked(self._called(stitched.window_scores, pieces), tuple(pieces.shape))

        windows = PatchedWindows(stitched, self._tensor(self.input[None])[0], self.target, call)
        self._compare(float(windows.read(windows.clean[None], self.model.card, "logit")[0]))
        return windows

    def _scores_in_windows(self, windows: PatchedWindows, patches: Sequence[Patch], scale: str) -> np.ndarray:
        """As `scores_of_patches`: windows run that a patch and the region touch, the others count as they were."""
        reached = [windows.reached(box) for box, _ in patches]
        jobs = [(number, row) for row, numbers in enumerate(reached) for number in numbers]
        found = np.repeat(windows.clean[None], len(patches), axis=0)

        def run(first: int, last: int) -> None:
            some = jobs[first:last]
            pieces = [windows.piece(number, *patches[row]) for number, row in some]
            changes = windows.changes([number for number, _ in some], pieces)
            for (_, row), (held, change) in zip(some, changes, strict=True):
                found[row][:, held] += change

        self._in_batches(len(jobs), run)
        ran = [row for row, numbers in enumerate(reached) if numbers]
        self.forwards += len(ran)
        scores = np.full(len(patches), self.clean_score(scale))
        scores[ran] = windows.read(found[ran], self.model.card, scale)
        return scores

    def _seconds_in_windows(self, windows: PatchedWindows, boxes: Sequence[Box]) -> float:
        """Mean seconds of an input that is perturbed in one of these boxes."""
        reached = [len(windows.reached(box)) for box in boxes]
        largest = boxes[int(np.argmax(reached))]
        values = self.input[(slice(None), *(slice(*side) for side in largest))].copy()
        seconds = timed(lambda: self.scores_of_patches([(largest, values)], "logit"))
        return seconds * float(np.mean(reached)) / max(1, *reached)

    @memory_guarded()
    def _scores_together(self, run: Incremental, patches: list[Patch], scale: str) -> np.ndarray:
        """Scores of patches that are followed together; their outputs are dropped."""
        dims = self.model.card.spatial_dims
        with torch.no_grad():
            scores = self._read(
                self._checked(run.follow(patches), (len(patches), *self.input.shape[: 1 + dims])), scale
            )
        self.forwards += len(patches)
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
        if isinstance(self.network, Stitched) or self.compute.engine == "full":
            return None
        if self.compute.engine == "auto" and not self._may_pay():
            return None
        try:
            with memory_guarded():
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
        except OutOfMemory:
            reason = "out of memory with the activations that the incremental engine keeps"
        self._release()
        self.notices.append(f"the network runs in full: {reason}")
        return None

    def _may_pay(self) -> bool:
        """Whether engine "auto" should look at incremental passes at all: they were never measured on a GPU."""
        float32 = self.compute.dtype == "float32"
        return self._device.type == "cpu" and float32 and self._needs.arithmetic >= _WORTH_FOLLOWING

    @property
    def _kept_bytes(self) -> int:
        """What the incremental engine keeps, where there is one."""
        run = vars(self).get("incremental")
        return 0 if run is None else run.kept_bytes

    @property
    def finished_in_full_from(self) -> tuple[str, ...]:
        """Names of the layers from which perturbed inputs ran in full, where the engine is incremental."""
        run = vars(self).get("incremental")  # not made where no method asked for it
        return () if run is None else run.finished_in_full_from

    def _seconds_in_boxes(self, boxes: Sequence[Box]) -> float | None:
        """Mean seconds of a pass that perturbs one of these boxes; None where it runs in full.

        Boxes of several sizes are timed; by the arithmetic inside of them follow the others.
        """
        if self._windows is not None:
            return self._seconds_in_windows(self._windows, boxes)
        if self.incremental is None:
            return None
        arithmetic = self.incremental.arithmetic([box[: self.model.card.spatial_dims] for box in boxes]).inside
        costs = np.array(arithmetic) + 1  # a network without convolutions has none
        count = min(_TIMED_PATCHES, len(boxes))
        chosen = np.argsort(costs, kind="stable")[((np.arange(count) + 0.5) * len(boxes) / count).astype(int)]
        patches = [(boxes[i], self.input[(slice(None), *(slice(*side) for side in boxes[i]))].copy()) for i in chosen]
        seconds = timed(lambda: self.scores_of_patches(patches, "logit"))
        # Not where there was no memory for them.
        return None if self.incremental is None else float(seconds * costs.mean() / costs[chosen].sum())


def _put(box: Box, values: np.ndarray | torch.Tensor, image: np.ndarray) -> None:
    """Write a patch into an input (C, X, Y, Z)."""
    image[(slice(None), *(slice(*side) for side in box))] = values
