"""One patient of a data set: where the files lie and what the expert mask means; read when asked for, not before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from voxplain.errors import InputError
from voxplain.io.nifti import read_labels, read_sequences, read_stacked
from voxplain.scan import Labels, Scan

_CONVENTIONS = (
    " (BraTS numbers 1 necrotic, 2 oedema, 4 enhancing, from 2023 on 3 enhancing; the Decathlon 1 oedema, "
    "2 non-enhancing, 3 enhancing: --dataset brats or msd says which one is read)"
)


@dataclass(frozen=True)
class Case:
    """One scan of one patient, as files; making a case reads none of them.

    `patient` is what splits go by: two time points of one patient are two cases with the same `patient`. `files` are
    the sequences by canonical name, in the order in which the scan's channels come; `missing` the sequences that the
    data set promises and this patient lacks. `grade` is the tumour's class in the words of the data set where it is
    known: "HGG" or "LGG" in BraTS, "G", "A" or "O" in CPM-RadPath. `label_values` says which value the expert mask
    gives to each part of the tumour. Where one 4D file holds all sequences, `places` says which of its volumes each is.
    """

    id: str
    patient: str
    files: Mapping[str, Path] = field(hash=False)
    segmentation: Path | None
    grade: str | None
    label_values: Mapping[str, int] = field(hash=False)
    missing: tuple[str, ...] = ()
    places: Mapping[str, int] = field(default_factory=dict, hash=False)

    def scan(self, sequences: Sequence[str] | None = None) -> Scan:
        """The scan with all its sequences, or with those named, in that order.

        Raises:
            InputError: this patient lacks one of the sequences, or a file is broken (see `voxplain.io.nifti`).
        """
        wanted = (*self.files, *self.missing) if sequences is None else tuple(sequences)
        absent = [name for name in wanted if name not in self.files]
        if absent or not wanted:
            raise InputError(
                f"case {self.id} has no sequence {' or '.join(absent) or 'to read'}; it has "
                f"{', '.join(self.files) or 'none'}; add the missing files, ask only for those that it has, "
                "or leave this case out"
            )
        try:
            if self.places:
                return read_stacked(self.files[wanted[0]], {name: self.places[name] for name in wanted})
            return read_sequences({name: self.files[name] for name in wanted})
        except InputError as error:
            raise InputError(f"case {self.id}: {error}") from error

    def labels(self) -> Labels:
        """The expert mask with the values of the data set, as `label_values` names them.

        Raises:
            InputError: this case has no expert mask, or its file is broken.
        """
        if self.segmentation is None:
            raise InputError(
                f"case {self.id} has no expert mask (no _seg or -seg file); choose cases that have one, "
                "which the training part of a data set does and its validation part does not"
            )
        return read_labels(self.segmentation)

    def tumour(self) -> Labels:
        """The whole tumour as a mask: 1 wherever the expert mask holds one of `label_values`, 0 elsewhere.

        Raises:
            InputError: no expert mask, a value in it that is not among `label_values`, or another grid than the scan's.
        """
        labels = self._checked_labels()
        return Labels(labels.data > 0, labels.grid)

    def parts(self, names: Sequence[str]) -> Labels:
        """The expert mask with other numbers: the place in `names`, from 1 on, of each voxel's part of the tumour.

        Raises:
            InputError: as of `tumour`, or `label_values` has other names.
        """
        if sorted(names) != sorted(self.label_values):
            raise InputError(
                f"the expert mask of case {self.id} tells {', '.join(self.label_values)} apart; asked for "
                f"{', '.join(names)}"
            )
        labels = self._checked_labels()
        numbers = np.zeros(int(labels.data.max()) + 1, dtype=np.int32)
        for place, name in enumerate(names, start=1):
            if self.label_values[name] < len(numbers):
                numbers[self.label_values[name]] = place
        return Labels(numbers[labels.data], labels.grid)

    def _checked_labels(self) -> Labels:
        labels = self.labels()
        known = {0, *self.label_values.values()}
        strange = sorted(set(np.unique(labels.data).tolist()) - known)
        if strange:
            names = ", ".join(f"{value} {name}" for name, value in self.label_values.items())
            raise InputError(
                f"the expert mask of case {self.id} holds {', '.join(map(str, strange))}; expected 0 background, "
                f"{names}; check that the file belongs to this data set and was not resampled by interpolation"
                + (_CONVENTIONS if "oedema" in self.label_values else "")
            )
        # One sequence is enough to know the grid: the scan itself refuses sequences that differ.
        sequence = next(iter(self.files), None)
        grid = self.scan(None if sequence is None else [sequence]).grid
        if difference := grid.difference(labels.grid):
            raise InputError(
                f"the expert mask of case {self.id} does not lie on the grid of its {sequence}: {difference}; "
                "resample it to the scan with nearest neighbours, or fetch the file again"
            )
        return labels


def check_complete(cases: Sequence[Case]) -> None:
    """Nothing, if every case has all its sequences.

    Raises:
        InputError: some lack one; five of them are named.
    """
    if lacking := [f"{case.id} ({', '.join(case.missing)})" for case in cases if case.missing]:
        shown = ", ".join(lacking[:5]) + (", ..." if len(lacking) > 5 else "")
        raise InputError(
            f"{len(lacking)} of {len(cases)} cases lack a sequence: {shown}; add the files, or take these cases out"
        )
