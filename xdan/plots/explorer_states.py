"""The explorer's page of states: truth, analyses and errors of two methods, and their RMSE in time."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from ..assimilation.score_fields import FieldMeans
from ..records.record import RecordWords
from ..records.schema import TIME, TRAJECTORY
from .axes import COLOURS, PADDING, axis_label, in_units, placed
from .explorer_parts import PICTURES, WIDGETS, Address, WholeNumber, csv, drawn, page, select
from .libraries import holoviews, panel
from .state_panels import (
    MOST_LINES,
    FieldPair,
    colours_of,
    component_panels,
    field_pairs,
    map_panel,
    read_states,
    space_and_time,
)

_SHOWN = 100  # number of cycles at first
_MOST_SHOWN = 2000  # most cycles: a screen has fewer pixels than more cycles need
_NOTHING = "nothing"
# Heights in pixels. The whole page fits on a screen of 1366 x 768.
_ROW, _RMSE, _STATES = 172, 160, 525
_TOOLS = 30  # pixels of the column of tools
_PER_COLUMN, _LEAST_LINE = 4, 125  # most panels of components in a column, and their least height in pixels


class StatesPage:
    """Truth, analysis and error of a field, for one or two runs, a chosen trajectory and a range of times.

    Parameters
    ----------
    ds : xarray.Dataset
        A record with its truth.
    runs : mapping of name to Dataset
    words : RecordWords

    Raises
    ------
    TypeError, ValueError
        If the record has no truth, a field has more than two dims, or a run was made on another record.
    """

    title = "States"

    def __init__(self, ds: xr.Dataset, runs: Mapping[str, xr.Dataset], words: RecordWords) -> None:
        self._labelled = read_states(ds, words, "the explorer")
        self._runs = runs
        for name, run in runs.items():
            # A wrong run is refused here, not at the first view.
            pairs = field_pairs(self._labelled, run, 0, f"run {name!r}")
        self._fields = ["" if pair.part.field is None else pair.part.field.name for pair in pairs]
        self._means = FieldMeans(self._labelled.setup.dynamics)
        # A colour belongs to a run, not to a place on the page.
        self._colours = {name: COLOURS[1:-1][k % (len(COLOURS) - 2)] for k, name in enumerate(runs)}

    def view(self, address: Address) -> Any:
        """Widgets and pictures of one session."""
        pn = panel()

        cycles, trajectories = (self._labelled.observation.sizes[dim] for dim in (TIME, TRAJECTORY))
        names = list(self._runs)
        others = [_NOTHING, *names]
        method = select("method", names, address.one("method", names, names[0]))
        beside = select("beside it", others, address.one("beside", others, names[1] if len(names) > 1 else _NOTHING))
        beside.visible = len(names) > 1
        field = select("field", self._fields, address.one("field", self._fields, self._fields[0]))
        trajectory = WholeNumber(
            "trajectory", address.number("trajectory", 0, trajectories - 1, 0), 0, trajectories - 1
        )
        least, most = min(2, cycles), min(_MOST_SHOWN, cycles)
        shown = WholeNumber(
            "cycles shown", address.number("cycles", least, most, min(_SHOWN, cycles)), least, most, step=50
        )
        last = max(cycles - 2, 0)
        first = pn.widgets.IntSlider(
            label="first cycle", value=address.number("first", 0, last, 0), start=0, end=max(last, 1), step=1,
            width=WIDGETS, disabled=cycles <= 2, margin=(2, 5),
        )  # fmt: skip

        def read(
            name: str, other: str, of: str, row: int, start: int, length: int
        ) -> tuple[FieldPair, dict[str, xr.Dataset]]:
            """Read the field of one or two runs at the cycles that are shown."""
            start = min(start, max(cycles - length, 0))
            some = list(dict.fromkeys([name] if other == _NOTHING else [name, other]))
            place = self._fields.index(of)
            pairs = {one: field_pairs(self._labelled, self._runs[one], row)[place] for one in some}
            return pairs[name], {one: pair.at(slice(start, start + length)) for one, pair in pairs.items()}

        def draw(name: str, other: str, of: str, row: int, start: int, length: int) -> list[list[Any]]:
            pair, values = read(name, other, of, row, start, length)
            said = {"method": name, "beside": other} if len(names) > 1 else {}
            said |= {"field": of} if len(self._fields) > 1 else {}
            address.write(**said, trajectory=row, first=start, cycles=length)
            return [*_KINDS[pair.kind](pair, values, self._colours), [self._rmse(pair, values)]]

        def table() -> io.StringIO:
            chosen = method.value, beside.value, field.value, trajectory.value
            pair, values = read(*chosen, first.value_throttled, shown.value)
            if pair.part.field is not None:
                values = {name: one.assign_coords(field=pair.part.field.name) for name, one in values.items()}
            if len(values) == 1:
                return csv(values[method.value].to_dataframe())
            labels = xr.DataArray(list(values), dims="method", name="method")
            return csv(xr.concat(list(values.values()), labels).to_dataframe())

        seen = [method, beside, field, trajectory.accepted, first.param.value_throttled, shown.accepted]
        pictures = drawn(draw, seen)
        widgets = [method, beside, field, *trajectory.parts, first, *shown.parts]
        return page(widgets, pictures, table, "states.csv")

    def _rmse(self, pair: FieldPair, values: Mapping[str, xr.Dataset]) -> Any:
        """The RMSE of this trajectory at the cycles that are shown."""
        hv = holoviews()

        part = self._means.parts[max(self._place(pair), 0)]
        curves = []
        for name, one in values.items():
            mean = self._mean(one["error"] ** 2, part, pair.part.dims)
            when, xticks = placed(one[TIME], "x")
            rmse = np.sqrt(mean.values)
            curves.append(hv.Curve((when, rmse), TIME, "RMSE", label=name).opts(color=self._colours[name]))
            if len(rmse) == 1:
                curves.append(hv.Scatter((when, rmse), TIME, "RMSE").opts(color=self._colours[name]))
        return hv.Overlay(curves).opts(
            title="analysis RMSE of this trajectory", xlabel=axis_label(one[TIME]),
            ylabel=in_units("RMSE", pair.part.units), legend_position="right", toolbar=None, width=PICTURES,
            height=_RMSE, padding=(0, PADDING), ylim=(0, None), **xticks,
        )  # fmt: skip

    def _place(self, pair: FieldPair) -> int:
        return self._fields.index("" if pair.part.field is None else pair.part.field.name)

    @staticmethod
    def _mean(squares: xr.DataArray, part: Any, dims: tuple[str, ...]) -> xr.DataArray:
        """Mean over the field, weighted by area."""
        if part.weights is None:
            return squares.mean(dims, skipna=False)
        share = xr.DataArray(part.weights.reshape([squares.sizes[dim] for dim in dims]), dims=dims)
        total: xr.DataArray = (squares * share).sum(dims, skipna=False)
        return total


def _rows_of_panels(pair: FieldPair, values: Mapping[str, xr.Dataset], colours: Mapping[str, str]) -> list[list[Any]]:
    """Space and time: a column for each method, the truth above. States share a colour scale, and so do errors."""
    scales, width = colours_of(*values.values()), PICTURES // len(values)
    # A row has its tools beside its last panel.
    widths = {name: width + (_TOOLS if name == list(values)[-1] else 0) for name in values}
    sizes: dict[str, Any] = {"height": _ROW, "xlabel": ""}
    rows = [
        [space_and_time(pair, one, label, title=pair.heading(label, name), width=widths[name], **sizes, **scales[label])
         for name, one in values.items()]
        for label in scales
    ]  # fmt: skip
    return _zoomed_together(rows)


def _maps(pair: FieldPair, values: Mapping[str, xr.Dataset], colours: Mapping[str, str]) -> list[list[Any]]:
    """Maps at the first cycle: a row for each method, which begins with the truth."""
    scales = colours_of(*values.values())
    most = (PICTURES // 3 - 130, _STATES // len(values) - 90)  # the rest is for axes and colour bars
    rows = [
        [map_panel(pair, one, label, title=pair.heading(label, name), most=most, **scales[label]) for label in scales]
        for name, one in values.items()
    ]
    return _zoomed_together(rows)


def _lines(pair: FieldPair, values: Mapping[str, xr.Dataset], colours: Mapping[str, str]) -> list[list[Any]]:
    """Components: a panel has the truth and every method."""
    some = {name: colours[name] for name in values}
    count = min(pair.part.shape[0], MOST_LINES)
    columns = -(-count // _PER_COLUMN)
    rows = -(-count // columns)
    sizes: dict[str, Any] = {"width": PICTURES // columns, "height": max(_STATES // rows, _LEAST_LINE)}
    # With several columns, the legend of the RMSE below explains the colours.
    panels = [one.opts(show_legend=columns == 1, toolbar=None) for one in component_panels(pair, values, some, **sizes)]
    return [panels[k : k + columns] for k in range(0, len(panels), columns)]


def _zoomed_together(rows: list[list[Any]]) -> list[list[Any]]:
    """Panels that share the range of each axis and the tools of the first panel."""
    ranges: dict[Any, dict[str, Any]] = {}

    def share(plot: Any, element: Any) -> None:
        figure = plot.state
        common = ranges.setdefault(plot.document, {})
        for which in ("x_range", "y_range"):
            setattr(figure, which, common.setdefault(which, getattr(figure, which)))

    for row in rows:
        for one in row:
            one.opts(hooks=[share], toolbar="right" if one is row[-1] else None)
    return rows


_KINDS = {"hovmoller": _rows_of_panels, "map": _maps, "lines": _lines}
