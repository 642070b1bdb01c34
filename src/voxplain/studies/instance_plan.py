"""What the instance study is asked to do, how much that is, and what to say of it before its tables."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console

from voxplain.compute import Compute
from voxplain.datasets.case import Case
from voxplain.datasets.phantom_cohort import SOFTWARE_CHECK
from voxplain.engine.progress import console as progress
from voxplain.explain.explainer import Explainer
from voxplain.model import Model
from voxplain.studies import instance_lesions
from voxplain.studies.instance_cache import Cache
from voxplain.studies.instance_experiments import key_of_context, key_of_placements
from voxplain.studies.instance_lesions import expected_passes, waiting_lesions
from voxplain.studies.instance_patients import Patient, chosen, read_patient
from voxplain.studies.instance_presets import InstancePreset
from voxplain.studies.placements import clearly_visible


@dataclass(frozen=True)
class Task:
    """One patient and the network that explains; `whole` asks for all experiments, not the maps alone."""

    case: Case
    model: Model
    made: bool
    whole: bool


@dataclass(frozen=True)
class Settings:
    """How a study runs: what is done, where to, and what is kept."""

    size: str
    preset: InstancePreset
    out: Path
    seed: int
    compute: Compute
    console: Console
    keep_maps: bool

    @property
    def cache(self) -> Cache:
        """What is known already of single lesions."""
        return Cache(self.out / "maps")

    def say(self, line: str) -> None:
        """Say how far the work is, where that is wanted."""
        if self.compute.progress:
            progress.print(line, highlight=False, soft_wrap=True, markup=False)

    @property
    def quiet(self) -> Compute:
        """How single lesions are run: what is said of them is said here."""
        return dataclasses.replace(self.compute, progress=False)


def asked(task: Task, patient: Patient, settings: Settings) -> list[tuple[Explainer, list[int]]]:
    """Which methods explain which lesions of a patient."""
    wanted, table = settings.preset, patient.lesions.table
    every = chosen(table, most=wanted.most_made if task.made else wanted.most, seed=settings.seed)
    found: list[tuple[Explainer, list[int]]] = [(wanted.explainer, every)]
    if task.whole:
        found += [(explainer, every) for explainer in wanted.cheap]
        # Some of those that the others explain, so that methods can be put beside each other.
        among = table[table["lesion"].isin(every)]
        few = chosen(among, most=wanted.few, seed=settings.seed, kinds=("TP", "FP"))
        found += [(explainer, few) for explainer in wanted.costly]
    return found


def announce(tasks: Sequence[Task], settings: Settings, shapes: Sequence[Path], moved: Sequence[str]) -> None:
    """Predict, and say before anything is explained how much is to be done, and about how long it takes."""
    forward = gradients = 0
    pace = instance_lesions.Pace()
    for task in tasks:
        patient = read_patient(
            task.case, task.model, settings.out, made=task.made, seed=settings.seed, compute=settings.compute
        )
        table = patient.lesions.table
        sizes = dict(zip(table["lesion"].astype(int), table["volume_mm3"].astype(float), strict=True))
        voxel = patient.scan.grid.voxel_volume
        brain = float(patient.scan.foreground().sum()) * voxel
        said = []
        for explainer, numbers in asked(task, patient, settings):
            waiting = waiting_lesions(patient, explainer, numbers, settings.cache, seed=settings.seed)
            each = [expected_passes(explainer, round(sizes[n] / voxel), brain) for n in waiting]
            forward += sum(count for count, _ in each)
            gradients += sum(count for _, count in each)
            said.append(f"{explainer.name} {len(waiting)} of {len(numbers)}")
            if waiting and np.isnan(pace.forward):
                pace = instance_lesions.pace_of(patient, waiting[len(waiting) // 2], compute=settings.quiet)
        most, distances = settings.preset.context, settings.preset.distances
        key = key_of_context(patient, shapes, most=most, distances=distances, seed=settings.seed)
        if task.whole and not settings.cache.path(key).is_file():
            # Real and made lesions, and a last pass with everything shown.
            forward += 2 * most * (len(distances) + 1)
        number = clearly_visible(table) if task.case.id in moved else None
        if (
            number is not None
            and not settings.cache.path(
                key_of_placements(patient, settings.preset.explainer, number, seed=settings.seed)
            ).is_file()
        ):
            copies, each_voxel = expected_passes(settings.preset.explainer, 93, brain)
            forward, gradients = forward + 4 * (copies + 1), gradients + 4 * each_voxel
        found = ", ".join(f"{count} {kind}" for kind, count in patient.counts.items())
        settings.console.print(
            f"{patient.id} ({patient.kind}): {found}; to explain: {', '.join(said)}", highlight=False, soft_wrap=True
        )
    eta = (
        "" if np.isnan(pace.forward) else f", about {(forward * pace.forward + gradients * pace.gradient) / 60:.0f} min"
    )
    settings.console.print(
        f"at most {forward} passes forward (through the windows of a lesion) and {gradients} gradients of single "
        f"voxels{eta}; what is known already costs nothing",
        highlight=False,
        soft_wrap=True,
    )


def notes_of(
    tasks: Sequence[Task],
    settings: Settings,
    kinds: Mapping[str, str],
    left_out: Mapping[str, str],
    shapes: Sequence[Path],
) -> list[str]:
    """What is to be known before the tables are read."""
    wanted = settings.preset
    explainer = wanted.explainer
    used, used_made = ("all" if most is None else f"at most {most}" for most in (wanted.most, wanted.most_made))
    real = [task.case.id for task in tasks if not task.made]
    notes = [
        f"{len(real)} real patients ({', '.join(f'{name}: {kinds[name]}' for name in real)}) and "
        f"{len(tasks) - len(real)} phantoms; {used} lesions of a class and patient ({used_made} of phantoms), drawn at "
        "random.",
        f"{explainer.name}: {explainer.copies} copies, sigma {explainer.sigma:g}, at most {explainer.most_voxels} "
        "voxels of a lesion are looked at.",
    ]
    if any(task.whole for task in tasks):
        notes.append(f"costly methods explain {wanted.few} TP and {wanted.few} FP of each patient at most.")
        if not shapes:
            notes.append("there is no lesion_masks/ beside the patients: no made lesions, n = 0.")
    if settings.size == "quick":
        notes.append("a smoke run: these figures mean nothing.")
    if any(task.made for task in tasks):
        notes.append(f"figures on made patients are {SOFTWARE_CHECK}: we wrote the rules that they obey.")
        explaining = {task.made: task.model.fingerprint for task in tasks}
        if len(set(explaining.values())) > 1:
            name = next(task.model.card.name for task in tasks if task.made)
            notes.append(
                f"phantoms are explained by {name}, which has seen none of them; each real patient by the network that "
                "was trained without them: the score of errors is carried from one network to another."
            )
    notes += [f"{name} is left out: {why}." for name, why in left_out.items()]
    if len(real) == 1:
        notes.append("one patient: nothing is pooled.")
    return notes
