"""Pictures of the grading study: whether probabilities can be believed, and which classes are taken for which."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import numpy as np

from voxplain.metrics.reliability import ReliabilityCurve

_DPI = 110


def reliability_picture(curves: Mapping[str, ReliabilityCurve]) -> bytes:
    """What was said beside what came, a curve each; the size of a point is its share of the cases. A PNG file."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6, 4.4), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    axis.plot([0, 1], [0, 1], color="0.6", linewidth=1, linestyle="--", label="as said")
    for name, curve in curves.items():
        held = curve.cases > 0
        sizes = 20 + 180 * curve.cases[held] / max(1, curve.cases.sum())
        axis.plot(curve.probability[held], curve.observed[held], linewidth=1.2)
        axis.scatter(curve.probability[held], curve.observed[held], s=sizes, label=name)
    axis.set(xlabel="probability of the predicted class", ylabel="share that is of it", xlim=(0, 1), ylim=(-0.02, 1.02))
    axis.legend(frameon=False, loc="upper left")
    return _png(figure)


def confusion_picture(matrix: np.ndarray, classes: Sequence[str]) -> bytes:
    """A confusion matrix (003, fig. 6): rows are what a tumour is, columns what it is said to be. A PNG file."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.8, 4.0), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    axis.imshow(matrix, cmap="cividis", vmin=0, vmax=max(1, matrix.max()))
    for (row, column), count in np.ndenumerate(matrix):
        bright = count > 0.6 * matrix.max()
        axis.text(column, row, str(int(count)), ha="center", va="center", color="black" if bright else "white")
    axis.set_xticks(range(len(classes)), classes, rotation=20, ha="right")
    axis.set_yticks(range(len(classes)), classes)
    axis.set(xlabel="said to be", ylabel="is")
    return _png(figure)


def _png(figure: object) -> bytes:
    target = io.BytesIO()
    figure.savefig(target, format="png", facecolor="white", metadata={"Software": None})  # type: ignore[attr-defined]
    return target.getvalue()
