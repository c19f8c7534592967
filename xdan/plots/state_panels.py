"""Parts of pictures of states: truth and analysis of a field, their colours, and a panel of each kind."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from ..records.fields import Part, coordinates_of, parts_of, split
from ..records.record import LabelledRecord, RecordWords, read
from ..records.runs import read_run
from ..records.schema import TIME, TRAJECTORY
from .axes import axis_label, dataset, in_units, placed
from .libraries import holoviews

WITHOUT_TRUTH = (  # in words for a message
    "draw the analysis with xdan.hovmoller, xdan.field_maps or xdan.component_curves, and the scores of forecasts "
    'against="observations" with xdan.lead_time_curves'
)
MOST_LINES = 12  # most components that are drawn
_ERROR_SHARE = 0.995  # share of the errors that lie within the colour scale


@dataclass(frozen=True)
class FieldPair:
    """Truth and analysis, or analysis alone, of one field along a trajectory; lazy if record and run are lazy.

    Attributes
    ----------
    part : Part
    analysis : xarray.DataArray, dims (time, *dims of the field)
    truth : xarray.DataArray or None, dims (time, *dims of the field)
        None if the record has no truth.
    """

    part: Part
    truth: xr.DataArray | None
    analysis: xr.DataArray

    @property
    def kind(self) -> str:
        """The kind of picture: one of the keys of `KINDS`."""
        if len(self.part.dims) == 2:
            return "map"
        geometry = self.part.geometry
        return "lines" if geometry is not None and geometry.drawn_as == "lines" else "hovmoller"

    def at(self, times: slice) -> xr.Dataset:
        """Load truth, analysis and error at some cycles, with the truth's labels; without a truth the analysis."""
        if self.truth is None:
            return xr.Dataset({"analysis": self.analysis.isel({TIME: times}).load()})
        truth = self.truth.isel({TIME: times}).load()
        analysis = self.analysis.isel({TIME: times}).load().assign_coords(truth.coords)
        return xr.Dataset({"truth": truth, "analysis": analysis, "error": analysis - truth})

    def heading(self, label: str, title: str) -> str:
        """The title of a panel."""
        of_method = f" of {title}" if title and label != "truth" else ""
        return f"{label}{of_method}" if self.part.field is None else f"{self.part.field.title}: {label}{of_method}"


def read_states(ds: xr.Dataset, words: RecordWords, purpose: str | None = None) -> LabelledRecord:
    """Read a record whose fields have one or two dims.

    `purpose` says what needs the truth, as the subject of an error's sentence; None if the truth may be missing.

    Raises
    ------
    TypeError, ValueError
        If the record cannot be read, lacks a truth that is needed, or a field has more than two dims.
    """
    labelled = read(dataset("ds", ds), needs_truth=purpose, instead=WITHOUT_TRUTH, **words)
    for part in parts_of(labelled.setup.dynamics):
        if not 1 <= len(part.dims) <= 2:
            raise ValueError(f"{part.label} has dims {part.dims}: expected one or two, as pictures have")
    return labelled


def field_pairs(labelled: LabelledRecord, run: xr.Dataset, row: int, what: str = "run") -> list[FieldPair]:
    """The fields of a truth, if there is one, and of a run, along one trajectory; no data are read.

    Raises
    ------
    ValueError
        If the run was made on another record.
    """
    model = labelled.setup.dynamics
    cut = {TRAJECTORY: row}
    truth = None if labelled.truth is None else split(labelled.truth.isel(cut, drop=True), model, "truth")
    analysis = split(read_run(labelled, run, ("analysis",), what)["analysis"].isel(cut, drop=True), model, "analysis")
    pairs = []
    for part in parts_of(model):
        x_a = analysis[part.name("analysis")]
        if truth is None:
            labelled_by = x_a.assign_coords({TIME: labelled.observation[TIME]})
        else:
            labelled_by = truth[part.name("truth")]
        missing = {dim: labels for dim, labels in coordinates_of(part).items() if dim not in labelled_by.coords}
        labelled_by = labelled_by.assign_coords(missing)
        for dim in part.dims:  # labels without attributes get those of the geometry
            labelled_by[dim].attrs = {**part.coordinates[dim].attributes, **labelled_by[dim].attrs}
        pairs.append(FieldPair(part, None, labelled_by) if truth is None else FieldPair(part, labelled_by, x_a))
    return pairs


def colours_of(*values: xr.Dataset) -> dict[str, dict[str, Any]]:
    """Colours of each kind of panel. All Datasets, which have one truth, share a scale.

    Without a truth there is the panel of the analysis alone, and its values make the scale.

    The scale is symmetric about zero. If all values of the truth have one sign, it goes from the least to the largest.
    """
    shown = "truth" if "truth" in values[0] else "analysis"
    numbers = values[0][shown].values
    finite = numbers[np.isfinite(numbers)]
    state = _about_zero([values[0][shown]], 1.0)
    if finite.size and np.ptp(finite) > 0 and (finite.min() > 0 or finite.max() < 0):
        state = {"cmap": "viridis", "clim": (float(finite.min()), float(finite.max()))}
    if shown == "analysis":
        return {"analysis": state}
    return {"truth": state, "analysis": state, "error": _about_zero([one["error"] for one in values], _ERROR_SHARE)}


def _about_zero(values: list[xr.DataArray], quantile: float) -> dict[str, Any]:
    """Colours from minus to plus a quantile of the finite absolute values, or 1 if there are none or all are zero."""
    sizes = np.concatenate([np.abs(one.values[np.isfinite(one.values)]) for one in values])
    bound = (float(np.quantile(sizes, quantile)) if sizes.size else 0.0) or 1.0
    return {"cmap": "RdBu_r", "clim": (-bound, bound)}


def space_and_time(pair: FieldPair, values: xr.Dataset, label: str, **options: Any) -> Any:
    """Draw a field of one dim: space goes upwards, and time to the right.

    Parameters
    ----------
    pair : FieldPair
    values : xarray.Dataset
        Result of `pair.at`.
    label : {"truth", "analysis", "error"}
    **options
        Title, colours and sizes.
    """
    (dim,) = pair.part.dims
    heights, yticks = placed(values[dim], "y")
    when, xticks = placed(values[TIME], "x")
    labels = {"xlabel": axis_label(values[TIME]), "ylabel": axis_label(values[dim])}
    field = values[label].assign_coords({dim: heights, TIME: when}).drop_attrs()
    options = {**labels, **xticks, **yticks, **options}
    return field.rename(in_units(label, pair.part.units)).hvplot.quadmesh(x=TIME, y=dim, rasterize=False, **options)


def map_panel(
    pair: FieldPair, values: xr.Dataset, label: str, *, title: str, most: tuple[int, int], **options: Any
) -> Any:
    """Draw a field of two dims at one time, with equal units along both axes.

    Parameters
    ----------
    pair, values, label
        As for `space_and_time`; the first time is drawn.
    title : str
        The time is added.
    most : tuple of two int
        The map's longest width and height, in pixels.
    **options
        Colours.
    """
    (rows, columns), values = pair.part.dims, values.isel({TIME: 0})
    time = values[TIME].values
    when = f"time {time:g}" if time.dtype.kind in "iuf" else str(time)[:16]
    heights, yticks = placed(values[rows], "y")
    widths, xticks = placed(values[columns], "x")
    reach = float(np.ptp(widths)), float(np.ptp(heights))
    scale = min(side / max(one, 1e-300) for side, one in zip(most, reach, strict=True))
    # Both axes have equal units. A narrow strip stays wide enough to be visible.
    width, height = (max(side // 4, min(side, round(scale * one))) for side, one in zip(most, reach, strict=True))
    field = values[label].drop_vars(TIME).assign_coords({rows: heights, columns: widths}).drop_attrs()
    options = {"xlabel": axis_label(values[columns]), "ylabel": axis_label(values[rows]), **options, **xticks, **yticks}
    return field.rename(in_units(label, pair.part.units)).hvplot.quadmesh(
        x=columns,
        y=rows,
        title=f"{title} at {when}",
        frame_width=width,
        frame_height=height,
        rasterize=False,
        **options,
    )


def component_panels(
    pair: FieldPair, values: Mapping[str, xr.Dataset], colours: Mapping[str, str], *, title: str = "", **options: Any
) -> list[Any]:
    """Draw lines of analyses, and of the truth if there is one: a panel for each component, at most 12.

    Parameters
    ----------
    pair : FieldPair
    values : mapping of label to Dataset
        Results of `pair.at`, by the label of the analysis.
    colours : mapping of label to str
        Colours of the analyses.
    title : str
        Text after the name of the component.
    **options
        Sizes.
    """
    hv = holoviews()

    (dim,), first = pair.part.dims, next(iter(values.values()))
    when, xticks = placed(first[TIME], "x")
    labels = first[dim].values.tolist()
    shown = np.unique(np.linspace(0, len(labels) - 1, min(len(labels), MOST_LINES)).round().astype(int))
    panels = []
    for k in shown:
        name = f"{labels[k]:g}" if isinstance(labels[k], float) else str(labels[k])
        name = f"{'' if pair.part.field is None else f'{pair.part.field.title} '}{name}"
        drawn = [("truth", first["truth"], "#000000", "solid")] if "truth" in first else []
        drawn += [(label, one["analysis"], colours[label], "dashed") for label, one in values.items()]
        # Panels share an axis if they share the name of a dimension: here only the axis of time.
        lines = [
            hv.Curve((when, variable.isel({dim: k}).values), TIME, name, label=label).opts(color=colour, line_dash=dash)
            for label, variable, colour, dash in drawn
        ]
        panel = hv.Overlay(lines).opts(
            title=f"{name}{title}",
            xlabel=axis_label(first[TIME]),
            ylabel=in_units(name, pair.part.units),
            legend_position="right",
            **{**xticks, **options},
        )
        panels.append(panel)
    return panels
