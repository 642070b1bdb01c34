"""The page that goes with a trained model: what it was trained on, how well it does, and where it ends."""

from __future__ import annotations

from collections.abc import Sequence

from voxplain.model import Card


def model_page(card: Card, words: tuple[str, str] = ("halves", "with tumour")) -> str:
    """A model card in Markdown, from the facts that the training wrote into the card.

    `words` are what inputs are called, and those of label 1 (see `voxplain.studies.task.Task`).
    """
    facts = card.training
    inputs, positive = words
    counted = f"n_{inputs}_{positive.replace(' ', '_').replace('-', '_')}"
    shape = " x ".join(map(str, card.shape)) if card.shape else "any"
    spacing = " x ".join(f"{step:g}" for step in card.spacing) if card.spacing else "the scan's own"
    reads = [
        f"- Sequences, by name: {', '.join(card.channels)}; {card.normalisation} per sequence.",
        f"- Region: {card.region}, {shape} voxels of {spacing} mm, orientation {card.orientation or 'as it comes'}.",
        f"- Says: {', '.join(card.classes)} ({card.activation}); positive from a probability of {card.threshold:g}. "
        f"Probabilities are calibrated on the labels of {facts['calibration']['labels']} (Platt scaling, both labels "
        f"weighing the same: {card.calibration[0]:g} x score + {card.calibration[1]:g}); maps explain the raw score.",
        f"- Network: `{card.factory}` with {dict(card.arguments)}; weights stored in 16 bits.",
    ]
    training = [
        f"- Data: {facts['data']}.",
        f"- {facts['n_patients']} patients, {facts[f'n_{inputs}']} labelled {inputs}, "
        f"{facts[counted]} {positive}; labels: {facts['labels']}.",
        f"- {facts['epochs']} epochs, seed {facts['seed']}, settings {facts['settings']}.",
        f"- Training ids: {', '.join(facts['ids'])}.",
    ]
    figures = ["None: this network was trained without a cross-validation."]
    if "cross_validation" in facts:
        found = facts["cross_validation"]
        figures = [
            f"Of exactly this architecture and training, cross-validated over {found['folds']} folds by patient "
            f"({found['n_patients']} patients), intervals are bootstrap 95 % over patients:",
            "",
            f"- AUC within folds {_with_interval(found['auc'], found['auc_interval'])} (plain)",
            f"- balanced accuracy {_with_interval(found['balanced_accuracy'], found['balanced_accuracy_interval'])} "
            "(plain)",
            "",
            "How well its maps segment: `docs/results/hemispheres.md`. On its own training cases figures are `seen`.",
        ]
        if "caution" in found:
            figures += ["", f"**These figures are {found['caution']}.**"]
    return _page(card, reads, training, figures)


def _with_interval(value: float, interval: tuple[float, float]) -> str:
    return f"{value:.3f} [{interval[0]:.3f}, {interval[1]:.3f}]"


def slices_page(card: Card) -> str:
    """A model card in Markdown of a network that judges slices (`voxplain train gp`), from its card's facts."""
    facts = card.training
    shape = " x ".join(map(str, card.shape[:2])) if card.shape else "any"
    spacing = " x ".join(f"{step:g}" for step in card.spacing[:2]) if card.spacing else "the image's own"
    counted = ", ".join(f"{count} {name}" for name, count in facts["n_slices"].items())
    where = f"{card.slices} slices of a volume" if card.slices else "images, whole"
    unit = "mm" if card.slices else "pixels of the image"
    reads = [
        f"- Reads {where}: {', '.join(card.channels)} ({card.normalisation}), {shape} pixels of {spacing} {unit}.",
        f"- Says: {', '.join(card.classes)} ({card.activation}), and shows why: `voxplain explain heat-map`.",
        f"- Network: `{card.factory}` with {dict(card.arguments)}, {facts['parameters']:,} weights, stored in 16 bits.",
    ]
    training = [
        f"- Data: {facts['data']}.",
        f"- Labels: {facts['labels']}.",
        f"- Learnt from {counted} slices of {len(facts['ids'])} scans, which model.json lists.",
        f"- {facts['epochs']} epochs, seed {facts['seed']}, settings {facts['settings']}.",
    ]
    return _page(card, reads, training, [_elsewhere("gp", "scans")])


def lesions_page(card: Card) -> str:
    """A model card in Markdown of a network that segments lesions (`voxplain train lesions`), from its card's facts."""
    facts = card.training
    window = " x ".join(map(str, card.window or ()))
    reads = [
        f"- Sequences, by name: {', '.join(card.channels)}; {card.normalisation} per sequence over voxels that are not "
        "0; skull-stripped, at 1 mm.",
        f"- Windows of {window} voxels, {card.overlap:.0%} overlap, Gaussian blending.",
        f"- Says: {', '.join(card.classes)} ({card.activation}); lesion from a probability of {card.threshold:g} "
        "(the paper: 0.3); lesions are 18-connected and measure at least 5 mm^3.",
        f"- Network: `{card.factory}` with {dict(card.arguments)}, {facts['parameters']:,} weights, stored in 16 bits.",
    ]
    training = [
        f"- Data: {facts['data']}.",
        f"- Labels: {facts['labels']}.",
        f"- Patients: {', '.join(facts['ids'])}, each as it is and {facts['painted']} times with made lesions; "
        f"{facts['phantoms']} made brains; shapes from masks of {facts['shapes']} other patients.",
        f"- Seed {facts['seed']}, settings {facts['settings']}.",
    ]
    figures = [
        "Of this architecture and recipe, each patient left out of a training of its own: `docs/results/instance.md`. "
        "On its own training scans figures are of kind `seen`."
    ]
    return _page(card, reads, training, figures)


def grading_page(card: Card) -> str:
    """A model card in Markdown of a network that classifies tumours (`voxplain train grading`), from its facts."""
    facts = card.training
    shape = " x ".join(map(str, card.shape or ()))
    counted = ", ".join(f"{count} {name}" for name, count in facts["n_cases"].items())
    reads = [
        f"- Sequences, by name: {', '.join(card.channels)}; {card.normalisation} per sequence; skull-stripped. The box "
        f"of the brain is resampled to {shape} voxels.",
        f"- Says: {', '.join(card.classes)} ({card.activation}). Probabilities are calibrated on "
        f"{facts['calibration']['n_cases']} validation cases (temperature {1 / card.calibration[0]:.3g}); maps explain "
        "the raw score.",
        f"- Network: `{card.factory}` with {dict(card.arguments)}, {facts['parameters']:,} weights, stored in 16 bits.",
    ]
    training = [
        f"- Data: {facts['data']}.",
        f"- Labels: {facts['labels']}.",
        f"- Learnt from {counted}; model.json lists them.",
        f"- {facts['epochs']} epochs, seed {facts['seed']}, settings {facts['settings']}.",
    ]
    figures = [_elsewhere("grading", "cases")]
    figures += ["", f"**Figures are {facts['caution']}.**"] if "caution" in facts else []
    return _page(card, reads, training, figures)


def tumours_page(card: Card) -> str:
    """A model card in Markdown of a network that segments tumours (`voxplain train segmentation`), from its facts."""
    facts = card.training
    window = " x ".join(map(str, card.window or ()))
    spacing = " x ".join(f"{step:g}" for step in card.spacing) if card.spacing else "the scan's own"
    branch = ""
    if facts["variational_branch"]:
        branch = f" Learnt with a variational branch ({facts['parameters_in_training']:,} weights), which is gone."
    reads = [
        f"- Sequences, by name: {', '.join(card.channels)}; {card.normalisation} per sequence over voxels that are not "
        f"0; skull-stripped, at {spacing} mm.",
        f"- Windows of {window} voxels, {card.overlap:.0%} overlap, Gaussian blending.",
        f"- Says: {', '.join(card.classes)}, each for itself ({card.activation}), from a probability of "
        f"{card.threshold:g}.",
        f"- Network: `{card.factory}` with {dict(card.arguments)}, {facts['parameters']:,} weights, stored in 16 bits."
        f"{branch}",
    ]
    training = [
        f"- Data: {facts['data']}.",
        f"- Labels: {facts['labels']}.",
        f"- Learnt from {len(facts['ids'])} cases; model.json lists them.",
        f"- Seed {facts['seed']}, settings {facts['settings']}.",
    ]
    return _page(card, reads, training, [_elsewhere("grading", "cases")])


def _page(card: Card, reads: Sequence[str], training: Sequence[str], figures: Sequence[str]) -> str:
    """What all pages share: name, description, then what it reads, how it was trained, how well it does, its limits."""
    sections = {
        "What it reads and says": reads,
        "Training": training,
        "Figures": figures,
        "Limits": [str(card.training["limits"])],
    }
    lines = [f"# {card.name}", "", card.description, ""]
    for title, its in sections.items():
        lines += [f"## {title}", "", *its, ""]
    return "\n".join(lines)


def _elsewhere(study: str, inputs: str) -> str:
    return (
        f"Of this architecture and recipe, on {inputs} that a network had not seen: `docs/results/{study}.md`. On its "
        f"own training {inputs} figures are of kind `seen`."
    )
