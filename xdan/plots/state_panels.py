"""What pictures of states are made of: truth and analysis of a field, their colours, and one panel of each kind."""

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

MOST_LINES = 12  # components that are drawn
_ERROR_SHARE = 0.995  # of the sizes of errors lie on the colour scale


@dataclass(frozen=True)
class FieldPair:
    """Truth and analysis of one field along a trajectory, lazy where record and run are.

    Attributes
    ----------
    part : Part
    truth, analysis : xarray.DataArray, dims (time, *dims of the field)
    """

    part: Part
    truth: xr.DataArray
    analysis: xr.DataArray

    @property
    def kind(self) -> str:
        """What draws it: one of the keys of `KINDS`."""
        if len(self.part.dims) == 2:
            return "map"
        geometry = self.part.geometry
        return "lines" if geometry is not None and geometry.drawn_as == "lines" else "hovmoller"

    def at(self, times: slice) -> xr.Dataset:
        """Truth, analysis and error at some cycles, loaded, under the truth's labels."""
        truth = self.truth.isel({TIME: times}).load()
        analysis = self.analysis.isel({TIME: times}).load().assign_coords(truth.coords)
        return xr.Dataset({"truth": truth, "analysis": analysis, "error": analysis - truth})

    def heading(self, label: str, title: str) -> str:
        """Title of a panel."""
        of_method = f" of {title}" if title and label != "truth" else ""
        return f"{label}{of_method}" if self.part.field is None else f"{self.part.field.title}: {label}{of_method}"


def read_with_truth(ds: xr.Dataset, words: RecordWords, purpose: str) -> LabelledRecord:
    """Understand a record with a truth, whose fields have one or two dims.

    `purpose` says what the truth is needed for, as the subject of an error's sentence.

    Raises
    ------
    TypeError, ValueError
        For another record.
    """
    labelled = read(dataset("ds", ds), needs_truth=purpose, **words)
    for part in parts_of(labelled.setup.dynamics):
        if not 1 <= len(part.dims) <= 2:
            raise ValueError(f"{part.label} has dims {part.dims}: expected one or two, as pictures have")
    return labelled


def field_pairs(labelled: LabelledRecord, run: xr.Dataset, row: int, what: str = "run") -> list[FieldPair]:
    """The fields of the truth and of a run on it, along one trajectory; nothing is read.

    Raises
    ------
    ValueError
        If the run is of another record.
    """
    assert labelled.truth is not None
    model = labelled.setup.dynamics
    cut = {TRAJECTORY: row}
    truth = split(labelled.truth.isel(cut, drop=True), model, "truth")
    analysis = split(read_run(labelled, run, ("analysis",), what)["analysis"].isel(cut, drop=True), model, "analysis")
    pairs = []
    for part in parts_of(model):
        x = truth[part.name("truth")]
        own = {dim: labels for dim, labels in coordinates_of(part).items() if dim not in x.coords}
        x = x.assign_coords(own)
        for dim in part.dims:  # labels without attributes have the geometry's
            x[dim].attrs = {**part.coordinates[dim].attributes, **x[dim].attrs}
        pairs.append(FieldPair(part, x, analysis[part.name("analysis")]))
    return pairs


def colours_of(*values: xr.Dataset) -> dict[str, dict[str, Any]]:
    """Colours of each kind of panel, one scale for all of the Datasets, which share a truth.

    About zero; for a truth of one sign, from its least to its largest value.
    """
    truth = values[0]["truth"].values
    finite = truth[np.isfinite(truth)]
    state = _about_zero([values[0]["truth"]], 1.0)
    if finite.size and np.ptp(finite) > 0 and (finite.min() > 0 or finite.max() < 0):
        state = {"cmap": "viridis", "clim": (float(finite.min()), float(finite.max()))}
    return {"truth": state, "analysis": state, "error": _about_zero([one["error"] for one in values], _ERROR_SHARE)}


def _about_zero(values: list[xr.DataArray], quantile: float) -> dict[str, Any]:
    """Colours from minus to plus a quantile of the finite sizes: 1 where there are none, or all are zero."""
    sizes = np.concatenate([np.abs(one.values[np.isfinite(one.values)]) for one in values])
    bound = (float(np.quantile(sizes, quantile)) if sizes.size else 0.0) or 1.0
    return {"cmap": "RdBu_r", "clim": (-bound, bound)}


def space_and_time(pair: FieldPair, values: xr.Dataset, label: str, **options: Any) -> Any:
    """A field of one dim, upwards, in time, to the right.

    Parameters
    ----------
    pair : FieldPair
    values : xarray.Dataset
        Of `pair.at`.
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
    """A field of two dims at one time, with equal units along both axes.

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
    # Equal units along both axes; a strip stays wide enough to be seen.
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
    """Lines of the truth and of analyses, a panel for each component, or for 12 spread over more.

    Parameters
    ----------
    pair : FieldPair
    values : mapping of label to Dataset
        Of `pair.at`, by the label of the analysis.
    colours : mapping of label to str
        Colours of the analyses.
    title : str
        What is added to the name of the component.
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
        drawn = [("truth", first["truth"], "#000000", "solid")]
        drawn += [(label, one["analysis"], colours[label], "dashed") for label, one in values.items()]
        # Panels share an axis where they share a dimension's name: that of time alone.
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
