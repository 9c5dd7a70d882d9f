"""How all pictures look, and how a matplotlib figure becomes an element of a page, with no state of pyplot's."""

import html
import io
import re
import textwrap
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from graft.results.tables import LOWER_IS_BETTER

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc6fa5", "#d55e00", "#4fb3e8", "#9a4a9e", "#8f8f26", "#c2476a", "#808080")
"""Told apart with the common colour deficiencies, readable on white and on near-black."""

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p", "h", "<", ">")
"""Eleven shapes against ten colours, so that a pair repeats after 110 arms only."""

INK = "#010203"
"""Stands for the text's colour while matplotlib draws; `currentColor` in the SVG, which follows the page."""

GREY = "#808080"
"""Of lines that help the eye, on white and on near-black."""

VERDICTS = {
    "better": ("#0072b2", "^", True),
    "worse": ("#d55e00", "v", True),
    "equivalent": (GREY, "s", True),
    "undecided": (GREY, "o", False),
}
"""Colour, marker, and whether the marker is filled, of each verdict."""

WIDTH = 10.0
"""Inches of a picture that fills the page's width."""

TITLE_CHARACTERS = 56
"""Longest line of a title; it begins where the axes do, to the right of names."""

NAME_CHARACTERS = 44
"""Longest line of an arm's name."""


def colour(place: int) -> str:
    """The colour of the arm at this place of a sorted list."""
    return COLOURS[place % len(COLOURS)]


def look(place: int) -> dict[str, Any]:
    """Colour and marker of the arm at this place of a sorted list."""
    return {"color": colour(place), "marker": MARKERS[place % len(MARKERS)]}


def wrapped(name: str) -> str:
    """A name over as many lines as it needs."""
    return "\n".join(textwrap.wrap(name, NAME_CHARACTERS, break_on_hyphens=False))


def lines_of(names: Sequence[str]) -> int:
    """Lines that these names need, one below the other."""
    return sum(wrapped(name).count("\n") + 1 for name in names)


def metric_label(metric: str) -> str:
    """A metric on an axis, and which way is better."""
    return f"{metric.replace('_', ' ')} ({'lower' if metric in LOWER_IS_BETTER else 'higher'} is better)"


def as_svg(title: str, draw: Callable[[], "Figure"], salt: str = "") -> str:
    """An `<svg>` element without a background; text and axes take the page's colour.

    Args:
        title: the picture's accessible name.
        draw: makes the figure.
        salt: with the title, what no other picture of a page has: ids inside are made from both.
    """
    from matplotlib import rc_context, rcdefaults

    stream = io.StringIO()
    with rc_context(), warnings.catch_warnings():
        rcdefaults()  # a user's matplotlibrc changes nothing
        # Letters that matplotlib's own font lacks: it only measures them, the page's fonts draw them.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        with rc_context({"svg.hashsalt": f"{title} {salt}", "svg.fonttype": "none", "text.parse_math": False}):
            nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
            draw().savefig(stream, format="svg", transparent=True, metadata=nothing)
    return _inline(stream.getvalue(), title)


def dress(axes: Any, title: str, x: str, y: str = "", grid: str = "both") -> None:
    """Title, labels, and as few lines as will do."""
    axes.set_xlabel(x, fontsize=11, color=INK)
    axes.set_ylabel(y, fontsize=11, color=INK)
    axes.set_title(
        "\n".join(textwrap.wrap(title, TITLE_CHARACTERS)),
        loc="left",
        fontsize=12.5,
        fontweight="bold",
        color=INK,
        pad=12,
    )
    axes.tick_params(colors=INK, labelsize=10.5, length=0)
    axes.grid(color=GREY, alpha=0.25, linewidth=0.8, axis=grid)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(GREY)


def rows_of_names(axes: Any, names: Sequence[str]) -> None:
    """Names down the left side, the first on top; their places are 0, 1, 2, ..."""
    axes.set_yticks(range(len(names)), [wrapped(name) for name in names])
    axes.set_ylim(len(names) - 0.4, -0.6)


def legend(axes: Any) -> None:
    """Names to the right of the picture."""
    made = axes.legend(
        loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=10.5, labelcolor=INK, handlelength=1.8
    )
    made.set_in_layout(True)


def examples_axis(axes: Any, sizes: Sequence[int]) -> None:
    """A logarithmic axis with a tick at each number of examples."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(sizes))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda size, _: f"{size:,.0f}"))
    axes.margins(x=0.04)


def _inline(svg: str, title: str) -> str:
    """An SVG document made into an element that several times fits into one page."""
    svg = svg[svg.index("<svg") :].rstrip()
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)  # it would hold for the whole page
    svg = re.sub(r' id="[A-Za-z0-9.]+_\d+"', "", svg)  # numbers that repeat in the next picture, referred to by nothing
    svg = re.sub(r"<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = svg.replace(INK, "currentColor")
    name = html.escape(title, quote=True)
    head = f'<svg class="curve" role="img" aria-label="{name}" style="stroke-linejoin: round" '
    return head + svg.removeprefix("<svg ").replace(">", f"><title>{name}</title>", 1)
