"""A training history -> a picture of losses and accuracy by step."""

from collections.abc import Mapping, Sequence
from pathlib import Path


def draw_curves(history: Sequence[Mapping[str, float]], stage: str, folder: Path) -> Path:
    """Writes `<stage>-curves.png` into the folder and returns its path."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.subplots()
    for name, style in (("loss", "-"), ("eval_loss", "--"), ("eval_accuracy", ":")):
        points = [(row["step"], row[name]) for row in history if name in row]
        if points:
            axes.plot(*zip(*points, strict=True), style, marker="o", markersize=3, label=name)
    axes.set_xlabel("step")
    axes.set_title(stage)
    axes.legend()
    path = folder / f"{stage}-curves.png"
    figure.savefig(path, dpi=120)
    return path
