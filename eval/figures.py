"""How heads are shown: the marks behind their names, and the report's charts, as SVG text.

Comes in: numbers and the heads' names. Goes out: one `<svg>` element per chart, without fonts,
dates or outside references, equal bytes for equal input. Lettering and axes are `currentColor`, so
a chart takes on the light or dark ink of the page around it; the data colours (Okabe and Ito) keep
their distance on both grounds and for every kind of colour vision, and each head that has one also
has its own marker and dash. Six can be told apart: the other heads are grey.
"""

import io
import math
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:  # matplotlib takes a second to import: only a drawing waits for it
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK = "#010203"  # stands for currentColor until the drawing is text
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
MARKERS = ("o", "s", "^", "D", "v", "P")
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1.5, 1)), (0, (5, 1, 1, 1)), (0, (3, 2)), "--")
GREY = "#8a919a"
COIN = 0.5
MARKS = {
    "†": "frozen-backbone variant: the published method trains the backbone, this one a head on"
    " frozen embeddings; not the published row",
    "‡": "its neighbours, and so hits, R@1, R-AUROC and AURC, are those of its own linear map, not"
    " of the frozen embedding",
}


@dataclass(frozen=True)
class Style:
    """How a head looks in every chart."""

    color: str
    marker: str
    dash: Any  # a matplotlib line style
    width: float


class Dot(NamedTuple):
    """A head's value on a data set, with its interval (NaN: none)."""

    group: str
    head: str
    value: float
    lower: float
    upper: float


def marked(head: Mapping[str, Any]) -> str:
    """Return the name of a head of run.json with its marks, as it is shown wherever numbers are."""
    marks = (mark for mark, on in zip(MARKS, ("of_backbone", "mapped"), strict=True) if head[on])
    return f"{head['name']} {''.join(marks)}".rstrip()


def styles(heads: Sequence[str], reference: Sequence[str] = ()) -> dict[str, Style]:
    """Give the first six heads a colour, marker and dash each; the first has the strongest line.

    The others are grey. A reference, which is not a head, is drawn in the ink of the text.
    """
    looks = dict.fromkeys(heads, Style(GREY, "o", "-", 0.7))
    for i, head in enumerate(heads[: len(COLORS)]):
        looks[head] = Style(COLORS[i], MARKERS[i], DASHES[i], 1.4 if i else 2.0)
    return looks | dict.fromkeys(reference, Style(INK, "x", (0, (1, 2)), 1.4))


def swatch(style: Style) -> str:
    """Draw a head's line and marker, for a legend or beside its name in a table."""

    def draw(figure: "Figure") -> None:
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_axis_off()
        axes.set(xlim=(0, 1), ylim=(0, 1))
        axes.plot([0.04, 0.96], [0.5, 0.5], color=style.color, ls=style.dash, lw=style.width)
        axes.plot([0.5], [0.5], style.marker, color=style.color, ms=5, clip_on=False)

    return _svg((0.36, 0.16), "", draw)


def dots(estimates: Sequence[Dot], looks: Mapping[str, Style], group: str) -> str:
    """Draw one data set's estimates: a line per head with a dot and a whisker, and one at a half.

    Undefined (NaN) estimates leave their line empty. All data sets have the same range.
    """

    def draw(figure: "Figure") -> None:
        axes = figure.add_subplot()
        axes.axvline(COIN, color=INK, lw=1)
        for estimate in estimates:
            if estimate.group == group:
                _dot(axes, list(looks).index(estimate.head), estimate, looks[estimate.head])
        axes.set_yticks(range(len(looks)), looks, parse_math=False)
        axes.set_ylim(len(looks) - 0.4, -0.6)
        axes.set_xlim(*_range(estimates))
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x")
        axes.spines["left"].set_visible(False)
        axes.set_xlabel("R-AUROC (0.5: a coin)")
        axes.set_title(group, parse_math=False)

    return _svg((3.2, 0.165 * len(looks) + 0.75), f"R-AUROC on {group}", draw)


def against(
    places: Mapping[str, tuple[float, float]], looks: Mapping[str, Style], x: str, y: str
) -> str:
    """Draw a dot for each head at two of its numbers; heads that lack one are left out."""

    def draw(figure: "Figure") -> None:
        axes = figure.add_subplot()
        for head, look in looks.items():
            if head in places:  # NaN has no place: nothing is drawn
                axes.plot(*places[head], look.marker, color=look.color, ms=6, zorder=2 + look.width)
        axes.set(xlabel=x, ylabel=y)
        axes.grid()

    return _svg((2.6, 2.3), f"{y} against {x}", draw)


def _dot(axes: "Axes", y: int, estimate: Dot, look: Style) -> None:
    if math.isfinite(estimate.lower) and math.isfinite(estimate.upper):
        axes.hlines(y, estimate.lower, estimate.upper, color=look.color, lw=1.6)
    if math.isfinite(estimate.value):
        axes.plot([estimate.value], [y], look.marker, color=look.color, ms=5)


def _range(estimates: Sequence[Dot]) -> tuple[float, float]:
    numbers = [number for estimate in estimates for number in estimate[2:]]
    finite = [number for number in numbers if math.isfinite(number)]
    return min([0.4, *finite]) - 0.015, max([0.6, *finite]) + 0.015


@contextmanager
def _look() -> Iterator[None]:
    """Set matplotlib's own defaults, then ours, for the time of one drawing."""
    import matplotlib as mpl

    with mpl.rc_context(), warnings.catch_warnings():
        # A name in a script matplotlib has no letters for: the browser has.
        warnings.filterwarnings("ignore", "Glyph .* missing")
        mpl.rcdefaults()
        mpl.rcParams.update(
            {
                "svg.fonttype": "none",
                "svg.hashsalt": "askance",
                "text.color": INK,
                "axes.edgecolor": INK,
                "axes.labelcolor": INK,
                "xtick.color": INK,
                "ytick.color": INK,
                "grid.color": INK,
                "grid.alpha": 0.12,
                "grid.linewidth": 0.8,
                "axes.axisbelow": True,
                "axes.spines.top": False,
                "axes.spines.right": False,
                "axes.linewidth": 0.8,
                "axes.titlesize": 10,
                "axes.titleweight": "bold",
                "font.size": 9,
                "lines.markeredgewidth": 1.4,
            }
        )
        yield


def _svg(size: tuple[float, float], title: str, draw: Callable[["Figure"], None]) -> str:
    with _look():
        from matplotlib.figure import Figure

        figure = Figure(figsize=size, layout=None if title == "" else "constrained")
        draw(figure)
        sink = io.StringIO()
        dateless = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(sink, format="svg", transparent=True, metadata=dateless)
    return _embeddable(sink.getvalue(), title)


def _embeddable(svg: str, title: str) -> str:
    """Cut a drawing down to its element, in the page's ink and font, with only the ids it uses."""
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor").strip()
    svg = re.sub(r"font-family: [^;\"]+", "font-family: inherit", svg)
    used = set(re.findall(r'(?:href="|url\()#([\w-]+)', svg))
    svg = re.sub(r' id="([\w.-]+)"', lambda i: i[0] if i[1] in used else "", svg)
    name = f' role="img" aria-label="{_attribute(title)}"' if title else ' aria-hidden="true"'
    return svg.replace("<svg", f"<svg{name}", 1)


def _attribute(text: str) -> str:
    for mark, entity in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ('"', "&quot;")):
        text = text.replace(mark, entity)
    return text
