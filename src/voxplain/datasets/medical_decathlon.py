"""Task01_BrainTumour of the Medical Segmentation Decathlon: 4D images, and labels numbered unlike those of BraTS."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from voxplain.datasets.brats import SEQUENCES
from voxplain.datasets.case import Case
from voxplain.errors import InputError
from voxplain.io.atomic import read_json
from voxplain.io.sequences import canonical, without_suffix

# The words of dataset.json, in lower case, and ours. BraTS has 1 for the necrotic core and 2 for oedema.
_PARTS = {
    "edema": "oedema",
    "oedema": "oedema",
    "non-enhancing tumor": "necrotic",
    "non-enhancing tumour": "necrotic",
    "enhancing tumor": "enhancing",
    "enhancing tumour": "enhancing",
}
_EXPECTED = (
    "expected the unpacked Task01_BrainTumour: dataset.json beside imagesTr/ and labelsTr/, with modalities "
    "FLAIR, T1w, t1gd, T2w and labels background, edema, non-enhancing tumor, enhancing tumour"
)


def cases(root: Path | str) -> list[Case]:
    """The training patients that `dataset.json` lists, sorted by id; their images are not read.

    Which volume of an image is which sequence, and which number which part of the tumour, is taken from that file:
    in the Decathlon 1 is oedema, 2 the non-enhancing core, 3 enhancing tumour.

    Raises:
        InputError: no `dataset.json` or a broken one, other modalities or labels than those of Task01, a file that it
            lists and that is not there, or one id twice.
    """
    root = Path(root).expanduser().resolve()
    try:
        listed = read_json(root / "dataset.json")
    except ValueError as error:
        raise InputError(f"{root / 'dataset.json'} is not JSON ({error}); {_EXPECTED}") from error
    if listed is None:
        raise InputError(f"there is no {root / 'dataset.json'}; {_EXPECTED}")
    places, values = _places(listed), _label_values(listed)
    found: dict[str, Case] = {}
    for entry in listed.get("training", []):
        image, mask = (root / str(entry.get(name, "")) for name in ("image", "label"))
        for path in (image, mask):
            if not path.is_file():
                raise InputError(f"dataset.json lists {path}, which is not there; unpack the archive again")
        name = without_suffix(image)
        if name in found:
            raise InputError(f"dataset.json lists {name} twice; correct it")
        found[name] = Case(
            id=name,
            patient=name,
            files=dict.fromkeys(places, image),
            segmentation=mask,
            grade=None,
            label_values=values,
            places=places,
        )
    if not found:
        raise InputError(f"dataset.json of {root} lists no training patient; {_EXPECTED}")
    return [found[name] for name in sorted(found)]


def _places(listed: Mapping[str, Any]) -> dict[str, int]:
    modalities = _table(listed, "modality")
    places = {canonical(str(name)): int(place) for place, name in modalities.items() if str(place).isdigit()}
    if not set(SEQUENCES) <= set(places) or len(places) != len(modalities):
        raise InputError(f"dataset.json has the modalities {', '.join(map(str, modalities.values()))}; {_EXPECTED}")
    return {name: places[name] for name in SEQUENCES}


def _label_values(listed: Mapping[str, Any]) -> dict[str, int]:
    labels = {str(value): str(name).lower() for value, name in _table(listed, "labels").items()}
    values = {_PARTS[name]: int(value) for value, name in labels.items() if name in _PARTS}
    if len(values) != 3 or set(labels.values()) - set(_PARTS) != {"background"} or labels.get("0") != "background":
        said = ", ".join(f"{value} {name}" for value, name in labels.items())
        raise InputError(f"dataset.json has the labels {said}; {_EXPECTED}")
    return values


def _table(listed: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = listed.get(name)
    if not isinstance(found, dict):
        raise InputError(f"dataset.json has no table {name!r}; {_EXPECTED}")
    return found
