"""Figures as files for a paper: PNG, SVG and PDF. Matplotlib draws the elements of a picture; no browser is needed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..core.checks import integer, real, shown
from ..core.extras import optional
from ..core.keywords import checks_keywords
from .axes import HEIGHT, WIDTH, log_ticks
from .libraries import holoviews

_FORMATS = {".png": {}, ".svg": {"Date": None}, ".pdf": {"CreationDate": None}}  # without the day: the same bytes again
_INCH = 2.54  # cm
_NARROWEST, _WIDEST = 3.0, 200.0  # bounds of a figure's width, in cm: below, labels leave no room; above is a poster
_LINE = 1.2  # points
_MOST_PLAIN = 4  # most powers of ten that are written as 0.01; otherwise as 10^-2
_POINTS_A_PIXEL = 0.4  # points for each pixel of a mark, as a page is narrower than a screen
_DASHES = {"solid": "-", "dashed": "--", "dotted": ":", "dotdash": "-.", "dashdot": "-."}
_MARKS = {
    "circle": "o",
    "square": "s",
    "diamond": "D",
    "triangle": "^",
    "inverted_triangle": "v",
    "x": "x",
    "cross": "+",
}
_SHADES = 256  # number of shades from a list of colours
_COLOUR_BAR = (1.02, 0.0, 0.03, 1.0)  # place of the colour bar, in shares of the panel
_DECORATION = 90  # pixels that axes take beside a frame


@checks_keywords
def save_figure(path: str | Path, figure: Any, *, width: float = 17.0, dpi: int = 300, font_size: float = 8.0) -> None:
    """Save a figure for a paper as PNG, SVG or PDF; the ending of the path tells which. No browser is needed.

    Titles, labels, ticks, legends, colours and the shape are those on the screen.

    Parameters
    ----------
    path : path
        Path of the file, such as ``rmse.pdf``, in a folder that exists.
    figure : holoviews.Layout, holoviews.Overlay or element
        A figure that a function of xdan or hvPlot returned.
    width : float
        Width of the figure on the page, in centimetres, from 3 to 200. The height follows from the figure's shape.
    dpi : int
        Dots per inch of a PNG, and of maps inside SVG and PDF.
    font_size : float
        Size of labels, in points.

    Raises
    ------
    FileNotFoundError
        If the folder does not exist.
    ImportError
        If Matplotlib is not installed.
    TypeError, ValueError
        If an argument is wrong, the path has another ending, or the figure holds an element that cannot be drawn.

    Examples
    --------
    >>> import pathlib, tempfile, xdan
    >>> ds = xdan.twin(xdan.Lorenz96(sites=8), cycles=10, trajectories=4, seed=0).compute()
    >>> run = ds.dan.baseline("enkf-n", members=5)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder) / "rmse.pdf"
    ...     xdan.save_figure(path, ds.dan.rmse_in_time({"EnKF-N": run}), width=8.5)
    ...     path.read_bytes()[:5]
    b'%PDF-'
    """
    holoviews()
    matplotlib = optional("matplotlib", "plots", "figures in files")
    figures = optional("matplotlib.figure", "plots", "figures in files")

    if not isinstance(path, (str, Path)):
        raise TypeError(f"path={shown(path)}: expected a path")
    path = Path(path)
    if path.suffix.lower() not in _FORMATS:
        raise ValueError(f"{path.name} ends with {path.suffix!r}: expected one of {list(_FORMATS)}")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {path.parent} to save {path.name} in: expected one, make it first")
    width, font_size = real("width", width), real("font_size", font_size, above=0.0)
    if not _NARROWEST <= width <= _WIDEST:
        raise ValueError(
            f"width={width:g}: expected centimetres from {_NARROWEST:g} to {_WIDEST:g}, such as 8.5 for one column of "
            "a page and 17 for two"
        )
    dpi = integer("dpi", dpi, least=1)
    rows = _rows(figure)
    panels = [[_Panel(one) for one in row] for row in rows]
    columns = max(map(len, panels))
    heights = [max(panel.size[1] for panel in row) for row in panels]
    widths = [max(row[k].size[0] for row in panels if k < len(row)) for k in range(columns)]
    style = {"font.size": font_size, "axes.titlesize": font_size, "pdf.fonttype": 42, "svg.hashsalt": "xdan"}
    style |= {"axes.linewidth": 0.6, "xtick.major.width": 0.6, "ytick.major.width": 0.6, "legend.frameon": False}
    with matplotlib.rc_context(style):
        size = width / _INCH, width / _INCH * sum(heights) / sum(widths)
        drawn = figures.Figure(size, layout="constrained")
        grid = drawn.add_gridspec(len(panels), columns, width_ratios=widths, height_ratios=heights)
        for row, some in enumerate(panels):
            for column, panel in enumerate(some):
                panel.draw(drawn, drawn.add_subplot(grid[row, column]))
        drawn.savefig(path, dpi=dpi, metadata=_FORMATS[path.suffix.lower()])


def _rows(figure: Any) -> list[list[Any]]:
    """The panels of a figure, row by row.

    Raises
    ------
    TypeError
        If the value is no figure.
    """
    hv = holoviews()

    if isinstance(figure, hv.Layout):
        panels, columns = list(figure), max(1, min(figure._max_cols, len(figure)))
        return [panels[k : k + columns] for k in range(0, len(panels), columns)]
    if isinstance(figure, (hv.Overlay, hv.NdOverlay, hv.Element)):
        return [[figure]]
    raise TypeError(f"figure is a {type(figure).__name__}: expected a picture of xdan, a HoloViews figure")


def _options(element: Any, group: str) -> dict[str, Any]:
    """The options that were set for the library of the screen."""
    hv = holoviews()

    return dict(hv.Store.lookup_options("bokeh", element, group).kwargs)


def _elements(figure: Any) -> Iterator[tuple[Any, str]]:
    """The elements of a panel, with their labels."""
    hv = holoviews()

    if isinstance(figure, hv.NdOverlay):
        for key, one in figure.data.items():
            yield one, ", ".join(map(str, key))
    elif isinstance(figure, hv.Overlay):
        for one in figure:
            yield from _elements(one)
    else:
        yield figure, figure.label


class _Panel:
    """One panel, and its drawing.

    Raises
    ------
    TypeError
        If an element cannot be drawn.
    """

    def __init__(self, figure: Any) -> None:
        self._elements = list(_elements(figure))
        for element, _ in self._elements:
            if type(element).__name__ not in _DRAW:
                raise TypeError(
                    f"the figure holds a {type(element).__name__}: expected some of {sorted(_DRAW)}; save it as a page "
                    "with xdan.save_page"
                )
        self._said: dict[str, Any] = {}
        for element, _ in reversed(self._elements):
            self._said |= _options(element, "plot")
        self._said |= _options(figure, "plot")
        first = self._elements[0][0]
        self._names = [dimension.pprint_label for dimension in first.dimensions()]

    @property
    def size(self) -> tuple[float, float]:
        """Width and height, in the pixels of a screen."""
        said = self._said
        widths = said.get("frame_width"), said.get("width")
        heights = said.get("frame_height"), said.get("height")
        width = widths[0] + _DECORATION if widths[0] else widths[1] or WIDTH
        height = heights[0] + _DECORATION if heights[0] else heights[1] or HEIGHT
        return float(width), float(height)

    def draw(self, figure: Any, axis: Any) -> None:
        """Draw elements, axes and legend."""
        said = self._said
        labels: set[str] = set()
        for which in ("x", "y"):
            if said.get(f"log{which}"):
                getattr(axis, f"set_{which}scale")("log")
        for number, (element, label) in enumerate(self._elements):
            look = _options(element, "style")
            shown_label = label if label not in labels else ""
            _DRAW[type(element).__name__](figure, axis, element, _Look(look, shown_label, number), said)
            labels.add(label)
        axis.set_title(said.get("title", ""))
        for place, which in enumerate(("x", "y")):
            name = said.get(f"{which}label")
            default = self._names[place] if place < len(self._names) else ""
            getattr(axis, f"set_{which}label")(default if name is None else name)
            self._ticks(axis, which)
            if limits := said.get(f"{which}lim"):
                ends = [None if end is None or end != end else end for end in limits]
                getattr(axis, f"set_{which}lim")(*ends)
            if said.get(f"invert_{which}axis"):
                getattr(axis, f"invert_{which}axis")()
        if said.get("frame_width") and said.get("frame_height"):
            axis.set_box_aspect(said["frame_height"] / said["frame_width"])
        handles, names = axis.get_legend_handles_labels()
        if len(names) > (0 if said.get("legend_position") == "right" else 1) and said.get("show_legend", True):
            # The legend has as many rows as fit beside the panel.
            axis.legend(handles, names, loc="center left", bbox_to_anchor=(1.01, 0.5), borderaxespad=0.0)

    def _ticks(self, axis: Any, which: str) -> None:
        """The ticks that were set; on a logarithmic axis without ticks, round numbers in the visible range."""
        ticker = optional("matplotlib.ticker", "plots", "figures in files")
        of_axis, ticks = getattr(axis, f"{which}axis"), self._said.get(f"{which}ticks")
        low, high = sorted(getattr(axis, f"get_{which}lim")())
        logarithmic = bool(self._said.get(f"log{which}"))
        if ticks is None and logarithmic:
            ticks = log_ticks(np.array([low, high]))
        if isinstance(ticks, (int, np.integer)):
            of_axis.set_major_locator(ticker.MaxNLocator(int(ticks)))
        elif ticks is not None:
            plain = [tick for tick in ticks if not isinstance(tick, tuple)]
            powers = logarithmic and len(plain) > _MOST_PLAIN and all(map(_is_power, plain))
            pairs = [tick if isinstance(tick, tuple) else (tick, _number(tick, powers)) for tick in ticks]
            # A tick outside of the range would widen the axis.
            pairs = [(place, name) for place, name in pairs if low <= place <= high]
            of_axis.set_major_locator(ticker.FixedLocator([place for place, _ in pairs]))
            of_axis.set_major_formatter(ticker.FixedFormatter([str(name) for _, name in pairs]))
        if logarithmic:
            of_axis.set_minor_formatter(ticker.NullFormatter())
        elif ticks is None and of_axis.get_converter() is not None and "Date" in type(of_axis.get_converter()).__name__:
            dates = optional("matplotlib.dates", "plots", "figures in files")
            locator = dates.AutoDateLocator()
            of_axis.set_major_locator(locator)
            of_axis.set_major_formatter(dates.ConciseDateFormatter(locator))


def _is_power(tick: float) -> bool:
    """Whether a tick is a power of ten."""
    return tick > 0 and math.isclose(math.log10(tick), round(math.log10(tick)), abs_tol=1e-9)


def _number(tick: float, power: bool) -> str:
    """The text of a tick."""
    return f"$10^{{{round(math.log10(tick))}}}$" if power else f"{tick:g}"


class _Look:
    """Colours, dashes and marks of an element, in Matplotlib's words."""

    def __init__(self, style: dict[str, Any], label: str, number: int) -> None:
        self._style, self.label = style, label or None
        colour = style.get("color", style.get("line_color", style.get("fill_color")))
        plain = isinstance(colour, (str, tuple))
        self.colour: Any = colour if plain else f"C{number % 10}"
        self.alpha = style.get("alpha", style.get("fill_alpha"))

    @property
    def line(self) -> dict[str, Any]:
        """Options of a line."""
        dash = self._style.get("line_dash", "solid")
        width = _LINE * float(self._style.get("line_width", 2)) / 2
        return self.plain | {"linestyle": _DASHES.get(dash, "-"), "linewidth": width}

    @property
    def marks(self) -> dict[str, Any]:
        """Options of points."""
        size = _POINTS_A_PIXEL * float(np.mean(self._style.get("size", 5)))
        return self.plain | {"linestyle": "none", "marker": self._mark, "markersize": max(size, 1.5)}

    @property
    def _mark(self) -> str:
        return _MARKS.get(str(self._style.get("marker", "circle")), "o")

    @property
    def plain(self) -> dict[str, Any]:
        """Options of an element with one colour."""
        return {"color": self.colour, "alpha": self.alpha, "label": self.label}

    @property
    def filled(self) -> dict[str, Any]:
        """Options of an area."""
        return self.plain | {"linewidth": 0}

    def values(self, clim: tuple[float, float]) -> dict[str, Any]:
        """Options of values that are drawn as colours, between two ends."""
        colours = optional("matplotlib.colors", "plots", "figures in files")
        process_cmap = optional("holoviews.plotting.util", "plots", "pictures").process_cmap
        cmap = self._style.get("cmap", "viridis")
        if not isinstance(cmap, str):
            cmap = colours.ListedColormap(list(cmap))
        elif cmap not in optional("matplotlib", "plots", "figures in files").colormaps:  # a name of another library
            cmap = colours.ListedColormap(process_cmap(cmap, _SHADES))
        return {"cmap": cmap, "vmin": clim[0], "vmax": clim[1], "rasterized": True}


def _curve(figure: Any, axis: Any, element: Any, look: _Look, said: dict[str, Any]) -> None:
    axis.plot(element.dimension_values(0), element.dimension_values(1), **look.line)


def _points(figure: Any, axis: Any, element: Any, look: _Look, said: dict[str, Any]) -> None:
    axis.plot(element.dimension_values(0), element.dimension_values(1), **look.marks)


def _error_bars(figure: Any, axis: Any, element: Any, look: _Look, said: dict[str, Any]) -> None:
    x, y, below = (element.dimension_values(k) for k in range(3))
    above = element.dimension_values(3) if len(element.vdims) > 2 else below
    axis.errorbar(x, y, [below, above], fmt="none", ecolor=look.colour, elinewidth=0.8, capsize=1.5)


def _spread(figure: Any, axis: Any, element: Any, look: _Look, said: dict[str, Any]) -> None:
    x, y, below = (element.dimension_values(k) for k in range(3))
    above = element.dimension_values(3) if len(element.vdims) > 2 else below
    axis.fill_between(x, y - below, y + above, **look.filled)


def _area(figure: Any, axis: Any, element: Any, look: _Look, said: dict[str, Any]) -> None:
    x, y = (element.dimension_values(k) for k in range(2))
    other = element.dimension_values(2) if len(element.vdims) > 1 else np.zeros(len(y))
    axis.fill_between(x, y, other, **look.filled)


def _mesh(figure: Any, axis: Any, element: Any, look: _Look, said: dict[str, Any]) -> None:
    x, y = (element.interface.coords(element, element.kdims[k], ordered=True, edges=True) for k in range(2))
    _colours(figure, axis, (x, y), element.dimension_values(2, flat=False), element, look, said)


def _heat_map(figure: Any, axis: Any, element: Any, look: _Look, said: dict[str, Any]) -> None:
    table = element.gridded
    sides = []
    for k, which in enumerate(("x", "y")):
        labels = np.asarray(table.dimension_values(k, expanded=False))
        numbers = labels.dtype.kind in "iuf"
        places = labels.astype(float) if numbers else np.arange(len(labels))
        step = np.diff(places).mean() if len(places) > 1 else 1.0
        sides.append(np.append(places - step / 2, places[-1] + step / 2))
        if not numbers:
            getattr(axis, f"set_{which}ticks")(places, [str(label) for label in labels])
    _colours(figure, axis, (sides[0], sides[1]), table.dimension_values(2, flat=False), element, look, said)


def _colours(
    figure: Any, axis: Any, edges: tuple[Any, Any], values: Any, element: Any, look: _Look, said: dict[str, Any]
) -> None:
    clim = said.get("clim") or element.range(2)  # hvPlot sets the range of the dimension
    mesh = axis.pcolormesh(*edges, np.ma.masked_invalid(values), **look.values(clim))
    if said.get("colorbar"):
        label = said.get("clabel") or element.vdims[0].pprint_label
        # Inside the frame of the panel, so that the colour bar is as high as the panel.
        figure.colorbar(mesh, cax=axis.inset_axes(_COLOUR_BAR), label=label)


def _bars(figure: Any, axis: Any, element: Any, look: _Look, said: dict[str, Any]) -> None:
    labels = element.dimension_values(0)
    numbers = labels.dtype.kind in "iuf"
    places = labels if numbers else np.arange(len(labels))
    width = 0.8 * (np.diff(np.sort(places)).min() if len(places) > 1 else 1.0)
    axis.bar(places, element.dimension_values(1), width, **look.plain)
    if not numbers:
        axis.set_xticks(places, [str(label) for label in labels])


def _histogram(figure: Any, axis: Any, element: Any, look: _Look, said: dict[str, Any]) -> None:
    edges = element.edges
    axis.bar(edges[:-1], element.dimension_values(1), np.diff(edges), align="edge", edgecolor="white", **look.plain)


def _horizontal(figure: Any, axis: Any, element: Any, look: _Look, said: dict[str, Any]) -> None:
    axis.axhline(element.data, **look.line)


def _vertical(figure: Any, axis: Any, element: Any, look: _Look, said: dict[str, Any]) -> None:
    axis.axvline(element.data, **look.line)


def _horizontal_band(figure: Any, axis: Any, element: Any, look: _Look, said: dict[str, Any]) -> None:
    axis.axhspan(*element.data, **look.filled)


def _vertical_band(figure: Any, axis: Any, element: Any, look: _Look, said: dict[str, Any]) -> None:
    axis.axvspan(*element.data, **look.filled)


def _words(figure: Any, axis: Any, element: Any, look: _Look, said: dict[str, Any]) -> None:
    x, y, words = element.data[:3]
    axis.text(x, y, words)


_DRAW: dict[str, Callable[[Any, Any, Any, _Look, dict[str, Any]], None]] = {
    "Area": _area,
    "Bars": _bars,
    "Curve": _curve,
    "ErrorBars": _error_bars,
    "HLine": _horizontal,
    "HSpan": _horizontal_band,
    "HeatMap": _heat_map,
    "Histogram": _histogram,
    "Image": _mesh,
    "Points": _points,
    "QuadMesh": _mesh,
    "Scatter": _points,
    "Spread": _spread,
    "Text": _words,
    "VLine": _vertical,
    "VSpan": _vertical_band,
}
