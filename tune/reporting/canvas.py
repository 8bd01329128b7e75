"""What all pictures share: colours, an empty canvas, and how it is saved.

Green is the edge, blue the cloud, orange what is certified, grey what it is compared with; what is
wrong is hatched, so that nothing is told by colour alone.
"""

from pathlib import Path
from typing import Final

from matplotlib.axes import Axes
from matplotlib.figure import Figure

EDGE: Final = "#0a7d5a"
EDGE_PALE: Final = "#8fd3bb"
CLOUD: Final = "#3b5bdb"
CLOUD_PALE: Final = "#aebcf5"
CERTIFIED_COLOUR: Final = "#d9480f"
QUIET: Final = "#868e96"


def canvas(x: str, y: str, height: float = 4.4) -> tuple[Figure, Axes]:
    """One empty plot of 912 pixels across, as wide as the page. Args: height: in inches of 120."""
    # No pyplot: it keeps figures in a global, and picks a screen where there is one.
    figure = Figure(figsize=(7.6, height), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    dress(axes, x, y)
    return figure, axes


def dress(axes: Axes, x: str, y: str) -> None:
    """Names the axes, and takes away what is not needed."""
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.25)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def save(figure: Figure, axes: Axes, path: Path, *, columns: int = 1) -> None:
    """With the legend below the picture, where it hides nothing."""
    handles, names = axes.get_legend_handles_labels()
    if names:
        figure.legend(
            handles, names, loc="outside lower center", ncols=columns, frameon=False,
            fontsize="small",
        )  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
