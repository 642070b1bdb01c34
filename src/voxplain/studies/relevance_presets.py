"""How large the relevance study is: folds, grid, samples of each method, in three sizes."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import NamedTuple

from voxplain.errors import InputError
from voxplain.studies.paper_tables import grid_row


class Cell(NamedTuple):
    """A cell of the grid: supervoxels cut on a sequence, so many to start with, and what they are filled with."""

    channel: str
    segments: int
    fill: str

    @property
    def row(self) -> str:
        """Its name in tables."""
        return grid_row(self.fill, self.channel, self.segments)


@dataclass(frozen=True)
class RelevancePreset:
    """The size of the relevance study.

    Attributes:
        training: preset of the classifier's training.
        perturbation: preset of the optimal fill's training (`voxplain.studies.perturbation.PRESETS`).
        folds: folds of the cross-validation.
        grid_folds: the grid runs on the validation patients of so many folds, from the first on.
        methods_folds: every method is scored on the test patients of so many folds.
        optimal_folds: so many of these folds get an optimal fill of their own.
        patients: at most so many patients of a fold are scored; None scores all.
        grid_segments: numbers of supervoxels of the grid.
        grid_fills: fills of the grid.
        grid_fills_of_whole_scans: fills that join the grid where the network reads whole scans.
        segments: supervoxels of every method beside the grid, on T2 where there is one, as in 000.
        mask: "brain" for supervoxels inside of the brain, "none" as in the papers.
        lime_samples: samples of LIME, the whole scan included.
        shap_samples: coalitions of KernelSHAP.
        rise_masks: masks of RISE.
        occlusion_passes: windows of occlusion per region; None covers all of them.
        along_seeds: trainings whose maps are followed epoch by epoch (hemisphere labels); 0 leaves evaluation 4 out.
        along_epochs: epochs of each of them.
        along_patients: at most so many validation patients whose maps are followed.
    """

    training: str
    perturbation: str
    folds: int = 5
    grid_folds: int = 2
    methods_folds: int = 2
    optimal_folds: int = 2
    patients: int | None = None
    grid_segments: tuple[int, ...] = (50, 100, 250)
    grid_fills: tuple[str, ...] = ("blank", "min", "max", "tissue-mean", "blurred:8")
    grid_fills_of_whole_scans: tuple[str, ...] = ("mirror",)
    segments: int = 100
    mask: str = "brain"
    lime_samples: int = 1000
    shap_samples: int = 512
    rise_masks: int = 1000
    occlusion_passes: int | None = 300
    along_seeds: int = 3
    along_epochs: int = 8
    along_patients: int = 6

    def __post_init__(self) -> None:
        for name in ("grid_folds", "methods_folds", "optimal_folds"):
            if not 0 <= getattr(self, name) <= self.folds:
                raise InputError(f"{name} is 0 to {self.folds}, the number of folds; got {getattr(self, name)}")
        if not self.methods_folds:
            raise InputError("methods_folds is at least 1: without a scored fold there is no table")
        if self.lime_samples < self.segments:
            raise InputError(
                f"{self.segments} supervoxels need at least as many samples of LIME; got {self.lime_samples}: give "
                "more samples, or fewer segments"
            )
        if self.shap_samples < 2 * self.segments:
            raise InputError(
                f"the Shapley values of {self.segments} supervoxels need at least {2 * self.segments} coalitions; got "
                f"{self.shap_samples}: give more, or fewer segments"
            )


PRESETS = {
    # Hours on two CPU cores.
    "small": RelevancePreset(training="small", perturbation="small"),
    # As 000: no brain mask, LIME with 1,000 samples; what the paper does not run has the methods' usual sizes.
    "paper": RelevancePreset(
        training="paper",
        perturbation="paper",
        grid_folds=5,
        methods_folds=5,
        optimal_folds=5,
        mask="none",
        shap_samples=2048,
        rise_masks=4000,
        occlusion_passes=None,
    ),
    # A smoke run: every step, in seconds, with figures that mean nothing.
    "quick": RelevancePreset(
        training="quick",
        perturbation="quick",
        folds=2,
        grid_folds=1,
        methods_folds=1,
        optimal_folds=1,
        patients=1,
        grid_segments=(5, 10),
        grid_fills=("blank", "min"),
        segments=10,
        lime_samples=40,
        shap_samples=100,
        rise_masks=20,
        occlusion_passes=20,
        along_seeds=1,
        along_epochs=2,
        along_patients=1,
    ),
}


def preset_of(
    name: str,
    *,
    folds: int | None = None,
    grid_folds: int | None = None,
    methods_folds: int | None = None,
    optimal_folds: int | None = None,
) -> RelevancePreset:
    """A preset by its name, with other numbers of folds where they are given.

    Raises:
        InputError: no such preset, or more folds to score than there are.
    """
    if name not in PRESETS:
        raise InputError(f"preset is one of {', '.join(PRESETS)}; got {name!r}")
    found = PRESETS[name]
    count = found.folds if folds is None else folds
    return dataclasses.replace(
        found,
        folds=count,
        # A preset that runs on all folds cannot run on more than there are.
        grid_folds=min(found.grid_folds, count) if grid_folds is None else grid_folds,
        methods_folds=min(found.methods_folds, count) if methods_folds is None else methods_folds,
        optimal_folds=min(found.optimal_folds, count) if optimal_folds is None else optimal_folds,
    )
