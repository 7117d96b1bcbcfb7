"""How all figures look, and how they become files.

Legible in print and without colour: panels as wide as a journal's column, text of 7 to 8 points, and every series has
its own marker and line style besides its colour.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from analysis.wording import clean

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
LINES: tuple[Any, ...] = (
    "-",
    (0, (5, 1.5)),
    (0, (1, 1)),
    (0, (6, 1, 1, 1)),
    (0, (3, 1)),
    (0, (8, 2)),
    (0, (3, 1, 1, 1, 1, 1)),
    (0, (1, 2)),
)
GREY = "0.45"
_DPI = 300
COLOURS = (
    *("#0173b2", "#de8f05", "#029e73", "#d55e00", "#cc78bc", "#ca9161"),
    *("#fbafe4", "#949494", "#ece133", "#56b4e9"),
)
"""seaborn's palette `colorblind`."""


def figure_files(drawings: Mapping[str, Callable[[], Figure]]) -> dict[str, bytes]:
    """Figures as files: name to content, PNG and SVG."""
    import matplotlib as mpl

    files: dict[str, bytes] = {}
    with warnings.catch_warnings(), mpl.rc_context():
        warnings.filterwarnings("ignore", message="Glyph")  # a name in a script that the font lacks is drawn as boxes
        _set_style()
        for name, draw in drawings.items():
            files |= _files(name, draw())
    return files


def import_drawing() -> None:
    """What figures need, ahead of them."""
    import seaborn  # noqa: F401


def _files(name: str, figure: Figure) -> dict[str, bytes]:
    """By the canvases themselves: `savefig` draws each file twice and lays the figure out anew for each."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    png, svg = io.BytesIO(), io.BytesIO()
    figure.set_dpi(_DPI)
    FigureCanvasAgg(figure).print_png(png)  # type: ignore[no-untyped-call]
    figure.set_layout_engine("none")
    FigureCanvasSVG(figure).print_svg(svg, metadata={"Date": None})  # type: ignore[no-untyped-call]
    return {f"{name}.png": png.getvalue(), f"{name}.svg": svg.getvalue()}


def _set_style() -> None:
    import matplotlib as mpl
    import seaborn as sns

    small = {"font.size": 8, "axes.labelsize": 8, "axes.titlesize": 8, "legend.fontsize": 7, "xtick.labelsize": 7}
    sns.set_theme(context="paper", style="ticks", palette="colorblind", rc=small | {"ytick.labelsize": 7})
    mpl.rcParams["svg.hashsalt"] = "scalebench"


def plain_text(value: str, longest: int) -> str:
    """A name as matplotlib must get it: no mathematics, no leading underscore (which would hide it), not too long."""
    text = clean(value)
    text = text if len(text) <= longest else text[: longest - 1] + "…"
    return text.replace("\\", "/").replace("$", r"\$").removeprefix("_") or " "
