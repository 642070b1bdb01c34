"""Paper gp (002) as one study: five networks learn from one label per slice, and three of them show why.

One network is rotated over all folds, the others learn one fold, unless all are asked for; everything that is finished
is kept, so that a stopped study goes on where it was.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console

from voxplain.compute import Compute
from voxplain.errors import InputError
from voxplain.explain.explainer import versions
from voxplain.io.atomic import output_folder, read_json, write_json, writing
from voxplain.io.bundle import load_model
from voxplain.model import Model
from voxplain.networks.self_explaining import SelfExplaining
from voxplain.studies.gp_data import Parts, Stack, check_card, folds, stacks
from voxplain.studies.gp_pictures import confusions, histograms, maps_of_slice, post_hoc
from voxplain.studies.gp_posthoc import compare, summary_rows
from voxplain.studies.gp_presets import NETWORKS, VARIANTS, preset
from voxplain.studies.gp_results import summed_up, write_tables
from voxplain.studies.gp_scoring import (
    RULES,
    localisation,
    plain_localisation,
    predictions,
    with_chosen_offsets,
)
from voxplain.studies.gp_training import Store, train_network

# So many test scans are explained by post-hoc methods as well.
_EXPLAINED = 12
# Maps of so many test scans at most are scored: images take most of a second each, for six ways to make a mask.
_SHOWN = 200
# So many validation scans at most choose the offset.
_CHOOSING = 150
_QUICK_STACKS = {"cheng": 6, "brats-slices": 1, "brats-grade-slices": 1}


def evaluate(
    model: Model,
    dataset: str,
    root: Path,
    out: Path,
    *,
    quick: bool = False,
    seed: int = 0,
    compute: Compute,
    console: Console,
) -> pd.DataFrame:
    """Classification and localisation of a trained network on the slices of a data set that it has not seen.

    Where it has seen all of them they are scored nevertheless, and every figure is of kind "seen". Writes
    `slices.tsv`, `cases.tsv`, `scores.tsv` and `tables.md` into `out`.

    Raises:
        InputError: nothing there, or a network that does not read these slices.
    """
    every = stacks(dataset, root)
    check_card(model.card, dataset)
    # Another slice of a patient whom the network has seen is seen as well.
    known = {one.group for one in every if one.id in model.card.training_ids}
    unseen = [one for one in every if one.group not in known]
    kind, scored = ("deployable", unseen) if unseen else ("seen", every)
    if unseen and len(unseen) < len(every):
        console.print(f"{len(every) - len(unseen)} of {len(every)} scans were seen in training and are left out")
    if not unseen:
        console.print("the network was trained on all of these scans: every figure is of kind seen")
    if quick:
        scored = _thinned(scored, _QUICK_STACKS[dataset])
    output_folder(out)
    store = Store()
    name = model.card.name
    slices = predictions(model, store.slices(scored, model.card, compute), kind=kind, compute=compute)
    lines = [plain_localisation(scored, model.card, seed=seed, compute=compute).assign(network="")]
    if isinstance(model.network, SelfExplaining):
        found = localisation(model, scored, kind=kind, seed=seed, compute=compute)
        lines.append(with_chosen_offsets(found, found.iloc[:0]).assign(network=name))
    facts = {"model": {"name": name, "fingerprint": model.fingerprint}, "dataset": dataset, "kind": kind, "seed": seed}
    summary = summed_up(_named(slices, name), pd.concat(lines, ignore_index=True), model.card, seed=seed)
    write_tables(summary, out, dataset=dataset, facts=facts | {"versions": versions()})
    _write(slices, out / "slices.tsv")
    _write(pd.concat(lines, ignore_index=True), out / "cases.tsv")
    return summary


def train(
    dataset: str,
    root: Path,
    out: Path,
    *,
    network: str,
    size: str,
    fold: int | None,
    seed: int = 0,
    compute: Compute,
) -> dict[str, Any]:
    """Train one network into `out`: on the training part of a fold, or for as many steps on all scans (`fold` None)."""
    chosen = preset(network, dataset, size)
    every = stacks(dataset, root)
    training, validation, changes = every, list[Stack](), {}
    if fold is None:
        # As many steps as on the training part of a fold, which has about half of all scans.
        epochs = -(-chosen.settings.epochs // 2)
        changes = {"settings": {"epochs": epochs, "patience": epochs}}
    else:
        parts = folds(dataset, every, seed)
        if not 0 <= fold < len(parts):
            raise InputError(f"fold is one of 0 to {len(parts) - 1}; got {fold}")
        training, validation, _ = parts[fold]
    if size == "quick":
        training, validation = (_thinned(part, 4 * _QUICK_STACKS[dataset]) for part in (training, validation))
    return train_network(
        training,
        validation,
        out,
        network=network,
        dataset=dataset,
        size=size,
        store=Store(),
        seed=seed,
        compute=compute,
        title=network,
        changes=changes,
    )


def study(
    dataset: str,
    root: Path,
    out: Path,
    *,
    size: str,
    networks: Sequence[str] = NETWORKS,
    rotated: Sequence[str] = ("gp-unet",),
    turns: Sequence[int] | None = None,
    ablation: bool = False,
    seed: int = 0,
    compute: Compute,
    console: Console,
) -> pd.DataFrame:
    """Train, classify, explain, score: `slices.tsv`, `cases.tsv`, `scores.tsv` and `tables.md` in `out`.

    `rotated` networks learn every fold, or those of `turns`, the others the first of them. `ablation` trains gp-unet
    there once more for every one of `VARIANTS`.

    Raises:
        InputError: nothing there, no such network or preset, or a folder with another study.
    """
    for network in (*networks, *rotated):
        preset(network, dataset, size)
    if strange := [network for network in rotated if network not in networks]:
        raise InputError(
            f"{strange[0]} cannot learn every fold, for the study is of {', '.join(networks)}; name it too"
        )
    output_folder(out)
    every = stacks(dataset, root)
    parts = folds(dataset, every, seed)
    if strange := [str(index) for index in turns or () if not 0 <= index < len(parts)]:
        raise InputError(f"fold is one of 0 to {len(parts) - 1}; got {', '.join(strange)}")
    turned = list(turns) if turns else list(range(len(parts)))
    runs: list[tuple[str, str, int, Mapping[str, Mapping[str, Any]]]] = [
        (network, network, index, {})
        for network in networks
        for index in (turned if network in rotated else turned[:1])
    ]
    if ablation:
        runs += [(f"{network}, {name}", network, turned[0], changes) for network, name, changes in VARIANTS]
    store = Store()
    slices, lines = [], []
    for name, network, index, changes in runs:
        part = _quick(parts[index], dataset) if size == "quick" else parts[index]
        folder = out / re.sub("[^a-z0-9]+", "-", name) / f"fold{index}"
        train_network(
            part[0],
            part[1],
            folder,
            network=network,
            dataset=dataset,
            size=size,
            store=store,
            seed=seed,
            compute=compute,
            title=f"{name}, fold {index}",
            changes=changes,
        )
        classified, shown = _scored(load_model(folder), part, folder, store, seed, compute, f"{name}, fold {index}")
        slices.append(_named(classified, name).assign(fold=index))
        # A table without lines has columns of no type, which would spread to all of them.
        if len(shown):
            lines.append(shown.assign(network=name, fold=index))
    card = preset(networks[0], dataset, size).card
    tested = sorted({index for one in slices for index in one.fold})
    for index in tested:
        part = _quick(parts[index], dataset) if size == "quick" else parts[index]
        lines.append(
            _plain(_thinned(part[2], _SHOWN), card, out / f"plain{index}.tsv.gz", seed, compute).assign(
                network="", fold=index
            )
        )
    all_slices, all_lines = (pd.concat(some, ignore_index=True) for some in (slices, lines))
    post = _post_hoc(networks, turned[0], parts[turned[0]][2], out, 2 if size == "quick" else _EXPLAINED, seed, compute)
    summary = summed_up(all_slices, all_lines, card, seed=seed, more=summary_rows(post, seed=seed))
    histograms(all_lines, out / "dice.png")
    confusions(all_slices, card.classes, out / "confusion.png")
    facts = {"dataset": dataset, "preset": size, "seed": seed, "networks": list(networks), "rotated": list(rotated)}
    facts |= {"folds": turned, "ablation": ablation}
    write_tables(summary, out, dataset=dataset, facts=facts | {"versions": versions()})
    _write(all_slices, out / "slices.tsv")
    _write(all_lines, out / "cases.tsv")
    console.print(f"tables: {out / 'scores.tsv'}, {out / 'tables.md'}", highlight=False, soft_wrap=True)
    return summary


def _scored(
    model: Model, part: Parts, folder: Path, store: Store, seed: int, compute: Compute, title: str
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The lines of one network on the test scans of its fold; kept beside its weights."""
    kept = folder / "classified.tsv.gz", folder / "localised.tsv.gz"
    identity = json.dumps([model.fingerprint, [one.id for one in part[2]], seed, *RULES])
    if (read_json(folder / "scored.json") or {}).get("identity") == identity:
        return _read(kept[0]), _read(kept[1])
    classified = predictions(model, store.slices(part[2], model.card, compute), kind="deployable", compute=compute)
    shown = pd.DataFrame(columns=["stack", "group", "slice", "label", "predicted", "row", "kind", "dice", "area"])
    if isinstance(model.network, SelfExplaining):
        choosing = _thinned(part[1], _CHOOSING)
        chosen = localisation(
            model, choosing, kind="deployable", offsets_only=True, seed=seed, compute=compute, title=f"{title}: offset"
        )
        tested = _thinned(part[2], _SHOWN)
        found = localisation(model, tested, kind="deployable", seed=seed, compute=compute, title=f"{title}: maps")
        shown = with_chosen_offsets(found, chosen)
    for lines, path in zip((classified, shown), kept, strict=True):
        _write(lines, path)
    write_json({"identity": identity}, folder / "scored.json")
    # Read back, so that a study that was stopped comes to the same digits.
    return _read(kept[0]), _read(kept[1])


def _post_hoc(
    networks: Sequence[str], fold: int, tested: Sequence[Stack], out: Path, count: int, seed: int, compute: Compute
) -> pd.DataFrame:
    """Post-hoc maps of a few test slices of a fold, with pictures; kept."""
    models = {network: load_model(out / network / f"fold{fold}") for network in networks}
    identity = json.dumps([[model.fingerprint for model in models.values()], count, seed])
    if (read_json(out / "post-hoc.json") or {}).get("identity") == identity:
        return _read(out / "post-hoc.tsv")
    lines, pictures = compare(models, _thinned(tested, count), seed=seed, compute=compute)
    folder = output_folder(out / "pictures")
    for name in dict.fromkeys(one["slice"].name for one in pictures):
        its = [one for one in pictures if one["slice"].name == name]
        maps_of_slice(its, folder / f"{name.replace(' ', '-')}-maps.png")
        post_hoc(its, folder / f"{name.replace(' ', '-')}-post-hoc.png")
    _write(lines, out / "post-hoc.tsv")
    write_json({"identity": identity}, out / "post-hoc.json")
    return _read(out / "post-hoc.tsv")


def _plain(some: Sequence[Stack], card: Any, path: Path, seed: int, compute: Compute) -> pd.DataFrame:
    identity = json.dumps([[one.id for one in some], card.spacing, card.shape, seed])
    record = path.with_name(path.name.replace(".tsv.gz", ".json"))
    if (read_json(record) or {}).get("identity") != identity:
        _write(plain_localisation(some, card, seed=seed, compute=compute), path)
        write_json({"identity": identity}, record)
    return _read(path)


def _named(classified: pd.DataFrame, network: str) -> pd.DataFrame:
    """The lines with the network's name, and how slices were read where not by themselves."""
    suffix = classified.reading.map({"alone": "", "mirrored": ", mirrored", "neighbours": ", neighbours"})
    return classified.assign(network=network + suffix)


def _quick(part: Parts, dataset: str) -> Parts:
    """A few scans of each part: a smoke run."""
    count = _QUICK_STACKS[dataset]
    training, validation, test = part
    return _thinned(training, 4 * count), _thinned(validation, 2 * count), _thinned(test, count)


def _thinned(some: Sequence[Stack], count: int) -> list[Stack]:
    """At most `count` scans, at even steps."""
    kept = np.unique(np.linspace(0, len(some) - 1, min(count, len(some))).round().astype(int))
    return [some[index] for index in kept]


def _write(lines: pd.DataFrame, path: Path) -> None:
    with writing(path) as temporary:
        # The temporary file's own name does not say that it is to be packed.
        lines.to_csv(
            temporary, sep="\t", index=False, float_format="%.5g", compression="gzip" if path.suffix == ".gz" else None
        )


def _read(path: Path) -> pd.DataFrame:
    # Ids of slices are numbers with leading zeros.
    return pd.read_csv(path, sep="\t", dtype={"stack": str, "group": str, "slice": str}, keep_default_na=True)
