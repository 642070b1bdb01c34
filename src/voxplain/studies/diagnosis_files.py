"""What `voxplain diagnose` leaves on disk."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

from voxplain import segment
from voxplain.diagnosis import Diagnosis
from voxplain.errors import InputError
from voxplain.explain.cam import ClassActivationMap, GradCAM
from voxplain.explain.grad_cam_plus_plus import GradCAMPlusPlus
from voxplain.explain.hires_cam import HiResCAM
from voxplain.explain.layer_cam import LayerCAM
from voxplain.explain.score_cam import ScoreCAM
from voxplain.io.atomic import output_folder, write_json, writing
from voxplain.io.nifti import save
from voxplain.report.depths import COLOURS, contact_sheet, depths_picture
from voxplain.report.diagnosis_page import diagnosis_report
from voxplain.results import write_results
from voxplain.scan import Labels, Scan
from voxplain.tumour_regions import NAMES

_CAMS: tuple[type[ClassActivationMap], ...] = (GradCAM, GradCAMPlusPlus, HiResCAM, LayerCAM, ScoreCAM)


def cam_named(method: str, colours: str = COLOURS[0]) -> ClassActivationMap:
    """The method of a name, with its defaults.

    Raises:
        InputError: no such method, or no such colours, before any work is done.
    """
    known = {kind.name: kind for kind in _CAMS}
    if method not in known:
        raise InputError(f"--method is one of {', '.join(known)}; got {method!r}")
    if colours not in COLOURS:
        raise InputError(f"--colours is {' or '.join(COLOURS)}; got {colours!r}")
    return known[method]()


def write_diagnosis(
    diagnosis: Diagnosis,
    scan: Scan,
    folder: str | Path,
    *,
    sources: Mapping[str, Path] | None = None,
    seen: Mapping[str, bool | None] | None = None,
    truth: Labels | None = None,
    note: str | None = None,
    colours: str = "uniform",
    depths: int = 3,
) -> dict[str, Path]:
    """Write masks, maps (in `maps/`, as `voxplain explain` does), agreement.tsv, diagnosis.json, pictures and the page.

    `depths` is how many axial slices the picture shows. `seen` says of "classifier" and "segmenter" whether it was
    trained on this scan, None where nobody knows.

    Returns:
        The paths, by what they hold.
    """
    folder, seen = output_folder(folder), dict(seen or {})
    paths: dict[str, Path] = {}
    for region, mask in diagnosis.regions.items():
        paths[NAMES[region]] = folder / f"{NAMES[region].replace(' ', '-')}.nii.gz"
        save(mask, paths[NAMES[region]])
    method = str(diagnosis.provenance["method"])
    paths["maps"] = folder / "maps"
    # The page says of every map whether its network has seen the scan.
    maps = {
        layer: dataclasses.replace(why, provenance=why.provenance | {"seen": seen.get("classifier")})
        for layer, why in diagnosis.maps.items()
    }
    diagnosis = dataclasses.replace(diagnosis, maps=maps)
    foreground = Labels(scan.foreground(), scan.grid)
    for layer, why in diagnosis.maps.items():
        mask = segment.otsu(why, everywhere=True, mask=foreground)
        name = f"{method}-{layer}"
        write_results(why, mask, name, paths["maps"], rule="otsu", sources=sources, seen=seen.get("classifier"))
    paths["agreement"] = folder / "agreement.tsv"
    with writing(paths["agreement"]) as temporary:
        diagnosis.agreement.to_csv(temporary, sep="\t", index=False, float_format="%.6g")
    first_name, first = next(iter(diagnosis.maps.items()))
    tumour = diagnosis.regions["WT"]
    pictures = {
        "depths": depths_picture(
            scan, first, diagnosis.regions, title=f"{method} at {first_name}", depths=depths, colours=colours
        ),
        "layers": contact_sheet(scan, diagnosis.maps, tumour=tumour, colours=colours),
    }
    for name, picture in pictures.items():
        paths[name] = folder / f"{name}.png"
        with writing(paths[name]) as temporary:
            temporary.write_bytes(picture)
    content = {
        "class": diagnosis.predicted,
        "probabilities": dict(diagnosis.probabilities),
        "volumes_ml": {region: round(mask.volume, 3) for region, mask in diagnosis.regions.items()},
        "sentence": diagnosis.sentence,
        "tumour_share_of_head": diagnosis.share,
        "axial_slices_without_tumour": dict(diagnosis.empty_slices),
        "seen": seen,
        "not_for_diagnosis": True,
        **diagnosis.provenance,
    }
    paths["provenance"] = folder / "diagnosis.json"
    write_json(json.loads(json.dumps(content, default=str)), paths["provenance"])
    known = [name for name, was in seen.items() if was]
    said = f"The {' and the '.join(known)} learnt from this scan." if known else None
    page = folder / "report.html"
    paths["report"] = diagnosis_report(
        scan,
        diagnosis,
        path=page,
        depths=pictures["depths"],
        layers=pictures["layers"],
        truth=truth,
        note=note,
        seen=said,
    )
    return paths
