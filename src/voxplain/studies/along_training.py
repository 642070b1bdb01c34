"""Relevance along training: how maps change from epoch to epoch, beside the validation loss (paper 000, evaluation 4).

The paper shows maps of eight epochs and expects them to be less confident where the validation loss is high. Here what
they show is measured, for several seeds. Epochs of one training follow from each other and are not independent, so
that correlations over epochs come without p-values.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from scipy.stats import spearmanr

from voxplain.compute import Compute
from voxplain.datasets.case import Case
from voxplain.datasets.hemispheres import half_label, tumour_volume
from voxplain.engine.progress import tracked
from voxplain.errors import InputError
from voxplain.explain import RelevanceMap
from voxplain.io.atomic import output_folder, read_json, write_json, writing
from voxplain.io.bundle import load_model, save_model
from voxplain.metrics.concentration import relevance_entropy, top_share
from voxplain.metrics.overlap import best_grouping
from voxplain.metrics.statistics import bootstrap_interval
from voxplain.optimisation import finish
from voxplain.studies.cross_validation import fold_parts, new_network
from voxplain.studies.hemispheres import TASK
from voxplain.studies.scoring import CASE_COLUMNS, SCORE_COLUMNS
from voxplain.studies.task import Labelled, Preset
from voxplain.training import train

# What is measured of each map, its kind, and what the figure calls it.
MEASURES = {
    "entropy": ("plain", "entropy (0 to 1)"),
    "top_1_share": ("plain", "share of the top supervoxel"),
    "correlation_with_previous": ("plain", "Spearman with epoch before"),
    "best_grouping_dice": ("oracle", "Dice of best grouping [oracle]"),
}
_TABLE = "along-training"


def along_training(
    cases: Sequence[Case],
    out: Path,
    *,
    preset: str = "small",
    seeds: Sequence[int] = (0, 1, 2),
    epochs: int = 8,
    patients: int = 6,
    folds: int = 5,
    segments: int = 100,
    seed: int = 0,
    compute: Compute,
) -> pd.DataFrame:
    """Train the first epochs of the hemisphere task once per seed, and measure the maps of every epoch.

    Patients are split as fold 0 of `voxplain.studies.hemispheres.cross_validate` with the same `seed` splits them, and
    the networks of seed s are those of its training with seed s, epoch by epoch. The maps are the papers' (blank,
    supervoxels on FLAIR), of the halves with tumour of the first `patients` validation patients: no weight was learnt
    from them, and no epoch is chosen here. Writes `along-training.tsv`, `along-training-cases.tsv` and
    `along-training.svg`; epochs and maps that are there are kept.

    Returns:
        A table with the columns `voxplain.studies.scoring.SCORE_COLUMNS`. Rows "seed 0/epoch 1" hold the losses, and
        the mean over halves, with a bootstrap 95 % interval over the n patients, of: entropy of the relevance (0 to 1),
        share of the top supervoxel (0 to 1), Spearman correlation with the map of the epoch before, Dice of the best
        grouping [oracle]. Rows "seed 0" hold the Spearman correlation of each measure's mean with the validation loss
        over the epochs; there n counts epochs, and there is neither interval nor p-value.

    Raises:
        InputError: fewer than two epochs, no seed or patient, no such preset, too few patients, no validation half with
            tumour, or a folder that holds another training.
    """
    if epochs < 2 or not seeds or patients < 1:
        raise InputError(
            "relevance along training needs at least 2 epochs, 1 seed and 1 patient; got "
            f"{epochs} epochs, {len(seeds)} seeds, {patients} patients"
        )
    chosen = TASK.preset(preset)
    # The preset's own learning rates, epoch by epoch, unless it is shorter than what is asked for.
    longest = max(epochs, chosen.settings.epochs)
    chosen = Preset(chosen.card, dataclasses.replace(chosen.settings, epochs=longest, patience=longest))
    output_folder(out)
    parts, stored = fold_parts(TASK, cases, out, chosen.card, folds, seed, compute)
    training, validation, _ = parts[0]
    losses: dict[int, dict[str, list[float]]] = {}
    for number in dict.fromkeys(seeds):
        folder = out / f"seed{number}"
        asked = {
            "card": chosen.card.to_dict(),
            "settings": chosen.settings.record(),
            "epochs": epochs,
            "seed": number,
            "training_ids": [case.id for case in training],
            "validation_ids": [case.id for case in validation],
        }
        known = read_json(folder / "metrics.json")
        if known is None:
            stored = stored if stored is not None else TASK.read([*training, *validation], chosen.card, compute)
            known = _train_seed(folder, asked, chosen, stored, number, compute)
        elif known["asked_for"] != json.loads(json.dumps(asked)):
            raise InputError(
                f"{folder} holds a training on other patients or with other settings; give another --out, or remove it"
            )
        losses[number] = {name: known[name] for name in ("training_losses", "validation_losses")}
    found = _measured(validation[:patients], out, list(losses), epochs, segments, seed, compute)
    if found.empty:
        raise InputError(
            "none of the validation patients of fold 0 has a half with more than 2 ml of tumour; give more patients"
        )
    summary = _summary(found, losses, epochs, seed)
    for table, name in ((found, "along-training-cases.tsv"), (summary, "along-training.tsv")):
        with writing(out / name) as temporary:
            table.to_csv(temporary, sep="\t", index=False, float_format="%.9g")
    draw(summary, out / "along-training.svg")
    return summary


def _train_seed(
    folder: Path, asked: dict[str, Any], chosen: Preset, stored: Sequence[Labelled], number: int, compute: Compute
) -> dict[str, Any]:
    """Train, and keep the weights of every epoch in `folder/epoch1`, ..."""
    training, validation = (
        [one.example for one in stored if one.case.id in asked[name]] for name in ("training_ids", "validation_ids")
    )

    def keep(epoch: int, network: torch.nn.Module, loss: float, validation_loss: float) -> None:
        facts = {
            "ids": asked["training_ids"],
            "validation_ids": asked["validation_ids"],
            "seed": number,
            "epochs": epoch,
            "training_loss": loss,
            "validation_loss": validation_loss,
        }
        words = f"Epoch {epoch} of a training, kept to see how its maps change."
        card = dataclasses.replace(chosen.card, description=words, training=facts)
        save_model(network, card, folder / f"epoch{epoch}", half_precision=True)

    result = train(
        new_network(chosen.card, number),
        training,
        validation,
        folder,
        settings=chosen.settings,
        seed=number,
        stop_after=asked["epochs"],
        compute=compute,
        title=f"seed {number}",
        after_epoch=keep,
    )
    metrics = {
        "asked_for": asked,
        "training_losses": list(result.training_losses),
        "validation_losses": list(result.validation_losses),
        "seconds": result.seconds,
    }
    finish(folder, metrics)
    return metrics


def _measured(
    cases: Sequence[Case], out: Path, seeds: Sequence[int], epochs: int, segments: int, seed: int, compute: Compute
) -> pd.DataFrame:
    """Every measure of every half with tumour, at every epoch of every seed."""
    explainer = RelevanceMap(fill="blank", segments=segments, channel="flair")
    quiet = dataclasses.replace(compute, progress=False)
    kept = output_folder(out / "maps")
    work = [(case, number, epoch) for case in cases for number in seeds for epoch in range(1, epochs + 1)]
    rows: list[tuple[str, str, int, str, str, str, str, str, float]] = []
    before: dict[str, list[float]] = {}
    for case, number, epoch in tracked(work, "explaining every epoch", shown=compute.progress):
        model = load_model(out / f"seed{number}" / f"epoch{epoch}")
        path = kept / f"{case.id}-seed{number}-epoch{epoch}.json"
        identity = [model.fingerprint, dataclasses.asdict(explainer), seed, sorted(map(str, case.files.values()))]
        known = read_json(path)
        if known is None or known["identity"] != identity:
            scan, tumour = case.scan(), case.tumour()
            why = explainer(model, scan, seed=seed, compute=quiet)
            assert why.parts is not None
            assert why.scores is not None
            halves = {}
            for region in why.regions:
                if half_label(tumour_volume(tumour, region.box)) == 1:
                    dice = best_grouping(why.parts.data[region.slices], why.scores, tumour.data[region.slices] > 0).dice
                    scores = why.scores[why.labels_in(region) - 1].tolist()
                    halves[region.name] = {"scores": scores, "best_grouping_dice": dice}
            known = {"identity": identity, "halves": halves}
            write_json(known, path)
        for side, half in known["halves"].items():
            # Supervoxels follow the scan and not the network: part i is the same place at every epoch.
            scores = np.array(half["scores"])
            last = np.array(before[side]) if epoch > 1 else np.full(len(scores), np.nan)
            values = (
                relevance_entropy(scores),
                top_share(scores),
                _spearman(last, scores),
                half["best_grouping_dice"],
            )
            for (name, (kind, _)), value in zip(MEASURES.items(), values, strict=True):
                row = f"seed {number}/epoch {epoch}"
                rows.append((case.id, case.patient, 0, side, _TABLE, row, name, kind, float(value)))
            before[side] = half["scores"]
    return pd.DataFrame(rows, columns=list(CASE_COLUMNS))


def _summary(found: pd.DataFrame, losses: dict[int, dict[str, list[float]]], epochs: int, seed: int) -> pd.DataFrame:
    rows: list[tuple[str, str, str, str, float, float, float, int]] = []
    correlations: list[tuple[str, str, str, str, float, float, float, int]] = []
    known = found["patient"].nunique()
    for number, its in losses.items():
        means: dict[str, list[float]] = {name: [] for name in MEASURES}
        for epoch in range(1, epochs + 1):
            row = f"seed {number}/epoch {epoch}"
            for name in ("training_loss", "validation_loss"):
                rows.append((_TABLE, row, name, "plain", its[f"{name}es"][epoch - 1], np.nan, np.nan, known))
            for name, (kind, _) in MEASURES.items():
                group = found[(found["row"] == row) & (found["metric"] == name)].dropna(subset="value")
                mean = float(group["value"].mean()) if len(group) else np.nan
                low, high = bootstrap_interval(group["value"].to_numpy(), groups=group["patient"].to_numpy(), seed=seed)
                rows.append((_TABLE, row, name, kind, mean, low, high, group["patient"].nunique()))
                means[name].append(mean)
        for name, (kind, _) in MEASURES.items():
            pairs = np.array([means[name], its["validation_losses"]])
            pairs = pairs[:, ~np.isnan(pairs).any(axis=0)]
            metric = f"spearman_{name}_validation_loss"
            rho = _spearman(pairs[0], pairs[1])
            correlations.append((_TABLE, f"seed {number}", metric, kind, rho, np.nan, np.nan, pairs.shape[1]))
    return pd.DataFrame([*rows, *correlations], columns=list(SCORE_COLUMNS))


def _spearman(one: np.ndarray, other: np.ndarray) -> float:
    """Spearman's rank correlation, -1 to 1; NaN where one side does not vary or fewer than two values are there."""
    if len(one) < 2 or np.isnan(one).any() or np.isnan(other).any() or not np.ptp(one) or not np.ptp(other):
        return np.nan
    return float(spearmanr(one, other).statistic)


def draw(summary: pd.DataFrame, path: Path) -> Path:
    """Draw a table of `along_training` as SVG: validation loss and every measure over the epochs, a line per seed."""
    panels = {"validation_loss": "validation loss"} | {name: words for name, (_, words) in MEASURES.items()}
    # Text stays text, and the same figures give the same file.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "voxplain", "font.size": 8}):
        figure = Figure(figsize=(2.4 * len(panels), 2.6), layout="constrained")
        at_epoch = summary[summary["row"].str.contains("/epoch ")]
        for axes, (name, words) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
            its = at_epoch[at_epoch["metric"] == name]
            for row, lines in its.groupby(its["row"].str.partition("/")[0], sort=False):
                numbers = lines["row"].str.rpartition(" ")[2].astype(int)
                axes.plot(numbers, lines["value"], marker="o", markersize=3, label=str(row))
            axes.set_title(words, fontsize=8)
            axes.set_xlabel("epoch")
            axes.grid(alpha=0.3)
        figure.axes[0].legend(fontsize=7, frameon=False)
        with writing(path) as temporary:
            figure.savefig(temporary, format="svg", metadata={"Date": None})
    return path
