"""Looking around in results with widgets, in a notebook or a browser; only what is shown is read."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any, Unpack

import xarray as xr

from ..records.record import RecordWords
from ..records.schema import TIME, TRAJECTORY, reference_site
from ..records.wording import shares_words
from .axes import dataset, mapping
from .gain_plots import about_reference, gain_map, on_ring
from .libraries import holoviews, panel
from .plotting import sweep_curves
from .state_plots import field_pairs, read_with_truth, state_pictures

_WIDGETS = 260  # pixels
_SHOWN = 100  # cycles at first
_SCHEME, _SEED = "scheme", "seed"


@shares_words
def explore(
    source: xr.Dataset,
    runs: xr.Dataset | Mapping[str, xr.Dataset] | None = None,
    gains: xr.DataArray | Mapping[str, xr.DataArray | Sequence[xr.DataArray]] | None = None,
    **words: Unpack[RecordWords],
) -> Any:
    """Look around in a record, runs on it and gains, or in a sweep's cube, with widgets.

    Parameters
    ----------
    source : xarray.Dataset
        A record with its truth; or the cube of a `sweep`, of any number of axes. Lazy ones stay lazy: a view reads what
        it shows.
    runs : Dataset or mapping of name to Dataset, optional
        Runs on the record, of `cycle` or `baseline`.
    gains : DataArray or mapping of name to one or several DataArrays, optional
        Symmetry averages, of `gain(kind="mean")`, by observing system; several where there are several orbits of sites.
    {words}

    Returns
    -------
    panel.viewable.Viewable
        Shown as it is by a notebook; `.show()` opens it in a browser, `.servable()` is for ``panel serve``.

    Raises
    ------
    TypeError, ValueError
        If an argument is wrong, there is nothing to show, a run is of another record, the record has no truth, or a
        field more than two dims.

    Examples
    --------
    >>> import xdan
    >>> ds = xdan.twin(xdan.Lorenz96(sites=8), cycles=10, trajectories=4, seed=0).compute()
    >>> run = ds.dan.baseline("enkf-n", members=5)
    >>> type(ds.dan.explore({"EnKF-N": run})).__name__  # `.show()` opens it in a browser
    'Tabs'
    """
    pn = panel()

    _extend()
    source = dataset("source", source)
    if _SCHEME in source.dims:
        if runs is not None or gains is not None or words:
            raise ValueError("source is a sweep's cube: expected no runs, gains or roles beside it")
        return _cube_view(source)
    pages = []
    if runs is not None:
        named = {"run": runs} if isinstance(runs, xr.Dataset) else runs
        named = mapping("runs", named, xr.Dataset, "a run, of cycle() or baseline()")
        pages.append(("States", _record_view(source, named, words)))
    if gains is not None:
        systems = {"": gains} if isinstance(gains, xr.DataArray) else gains
        systems = mapping("gains", systems, (xr.DataArray, list, tuple), "a gain, or several")
        each = {name: [g] if isinstance(g, xr.DataArray) else list(g) for name, g in systems.items()}
        for name, averages in each.items():
            if not averages:
                raise ValueError(f"gains[{name!r}] is empty: expected at least one gain")
        pages.append(("Marginal gain", _gain_view(each)))
    if not pages:
        raise ValueError(
            "nothing to show: expected runs=, such as ds.dan.cycle(net), or gains=; or a sweep's cube, which has a dim "
            f"{_SCHEME!r}, as the source"
        )
    return pn.Tabs(*pages, dynamic=True)


def _extend() -> None:
    hv, pn = holoviews(), panel()

    if hv.Store.current_backend != "bokeh" or "bokeh" not in hv.Store.registry:
        hv.extension("bokeh", logo=False)
    pn.extension(notifications=False)


def _record_view(ds: xr.Dataset, runs: Mapping[str, xr.Dataset], words: RecordWords) -> Any:
    """Truth, analysis and error of every field, of a chosen run, trajectory and stretch of time.

    Fields of one dim are drawn in space and time, components as lines, fields of two dims as maps at the first cycle.
    """
    pn = panel()

    labelled = read_with_truth(ds, words, "the explorer")
    cycles, trajectories = (labelled.observation.sizes[dim] for dim in (TIME, TRAJECTORY))
    for name, run in runs.items():
        field_pairs(labelled, run, 0, f"run {name!r}")  # refused now, not at the first view
    method = pn.widgets.Select(label="method", options=list(runs), width=_WIDGETS)
    trajectory = pn.widgets.IntInput(
        label="trajectory", value=0, start=0, end=trajectories - 1, width=_WIDGETS, disabled=trajectories == 1
    )
    shown = pn.widgets.IntInput(
        label="cycles shown", value=min(_SHOWN, cycles), start=min(2, cycles), end=min(2000, cycles), step=50,
        width=_WIDGETS,
    )  # fmt: skip
    first = pn.widgets.IntSlider(
        label="first cycle", value=0, start=0, end=max(cycles - 2, 1), step=1, width=_WIDGETS, disabled=cycles <= 2
    )

    def window(start: int, length: int) -> slice:
        start = min(start, max(cycles - length, 0))
        return slice(start, start + length)

    def draw(name: str, row: int, start: int, length: int) -> Any:
        pairs = field_pairs(labelled, runs[name], row)
        pictures = state_pictures(pairs, window(start, length), name)
        panes = [pn.pane.HoloViews(picture, linked_axes=False) for picture in pictures]
        return panes[0] if len(panes) == 1 else pn.Column(*panes)

    def table() -> io.StringIO:
        pairs = field_pairs(labelled, runs[method.value], trajectory.value)
        values = [pair.at(window(first.value, shown.value)) for pair in pairs]
        if len(pairs) == 1:
            return _csv(values[0].to_dataframe())
        # A block of lines for each field, as their dims differ.
        named = zip(pairs, values, strict=True)
        return io.StringIO(
            "\n".join(v.assign_coords(field=p.part.name("state")).to_dataframe().to_csv() for p, v in named)
        )

    chosen = (method, trajectory, first, shown)
    picture = pn.bind(draw, method, trajectory, first.param.value_throttled, shown)
    return pn.Row(pn.Column(*chosen, _download(table, "states.csv")), pn.panel(picture, linked_axes=False))


def _gain_view(systems: Mapping[str, Sequence[xr.DataArray]]) -> Any:
    """Omega_r of a chosen observing system about a chosen site."""
    pn = panel()

    for name, averages in systems.items():
        for omega in averages:
            reference_site(omega, f"gain {name!r}")
    names = list(systems)
    system = pn.widgets.Select(label="observing system", options=names, width=_WIDGETS, visible=len(names) > 1)
    sites = {name: averages[0].sizes["i"] for name, averages in systems.items()}
    reference = int(systems[names[0]][0].attrs["reference"])
    site = pn.widgets.IntSlider(label="reference site r", value=reference, end=sites[names[0]] - 1, width=_WIDGETS)
    within = pn.widgets.IntSlider(label="sites to each side", value=10, start=2, end=20, width=_WIDGETS)

    def about(name: str, r: int) -> xr.DataArray | None:
        """The average whose reference is carried to r."""
        for omega in systems[name]:
            if (r - int(omega.attrs["reference"])) % _step(omega) == 0:
                return omega
        return None

    def draw(name: str, r: int, reach: int) -> Any:
        site.end = sites[name] - 1
        omega = about(name, min(r, sites[name] - 1))
        if omega is None:
            return pn.pane.Alert(
                f"No average about site {r} was given: the group of this observing system does not carry "
                f"{int(systems[name][0].attrs['reference'])} there. Compute it with gain(reference={r}).",
                alert_type="warning",
            )
        return gain_map({f"{name}, r = {min(r, sites[name] - 1)}".strip(", "): omega}, within=reach)

    def table() -> io.StringIO:
        r = min(site.value, sites[system.value] - 1)
        omega = about(system.value, r)
        if omega is None:
            return _csv(xr.Dataset().to_dataframe())
        if not on_ring(omega):
            return _csv(omega.rename("gain").to_dataframe())
        drawn = about_reference(omega, within.value).rename("gain").rename(i="i_minus_r", j="j_minus_r")
        return _csv(drawn.assign_coords(reference=r).to_dataframe())

    picture = pn.bind(draw, system, site.param.value_throttled, within)
    return pn.Row(pn.Column(system, site, within, _download(table, "gain.csv")), pn.panel(picture, linked_axes=False))


def _step(omega: xr.DataArray) -> int:
    """By how many sites an average may be moved: as far as its group turns the ring, else not at all."""
    sites, group = omega.sizes["i"], str(omega.attrs.get("group", ""))
    if turns := re.search(r"turns of the ring by (\d+)", group):
        return int(turns[1])
    return sites if group or not on_ring(omega) else max(1, sites // int(omega.attrs.get("group_size", sites)))


def _cube_view(cube: xr.Dataset) -> Any:
    """Scores of a sweep against one axis, for some schemes, at labels of the other axes."""
    pn = panel()

    axes = [str(dim) for dim in cube.dims if dim not in (_SCHEME, _SEED)]
    scores = [str(name) for name, score in cube.data_vars.items() if {_SCHEME, *axes} <= set(map(str, score.dims))]
    scores.sort(key=lambda name: name != "rmse")
    if not axes or not scores:
        raise ValueError(f"the cube has dims {[str(d) for d in cube.dims]}: expected an axis beside scheme and seed")
    schemes = cube[_SCHEME].values.tolist()
    along = pn.widgets.Select(label="along", options=axes, width=_WIDGETS)
    value = pn.widgets.Select(label="score", options=scores, width=_WIDGETS)
    facet = pn.widgets.Select(label="a panel for each", options=["nothing", *axes], width=_WIDGETS)
    chosen = pn.widgets.MultiChoice(label="schemes", options=schemes, value=schemes, width=_WIDGETS)
    logarithmic = pn.widgets.CheckBoxGroup(options=["logx", "logy"], value=[], inline=True, width=_WIDGETS)
    at = {
        axis: pn.widgets.DiscreteSlider(
            label=axis, options={str(v): k for k, v in enumerate(cube[axis].values.tolist())}, value=0, width=_WIDGETS,
            disabled=cube.sizes[axis] < 2,
        )
        for axis in axes
    }  # fmt: skip

    def cut(axis: str, panels: str, kept: list[str], places: Mapping[str, int]) -> xr.Dataset:
        others = {name: [k] for name, k in places.items() if name not in (axis, panels)}
        return cube.sel({_SCHEME: kept}).isel(others)

    def draw(axis: str, score: str, panels: str, kept: list[str], logs: list[str], **places: int) -> Any:
        for name, slider in at.items():
            slider.visible = name not in (axis, panels)
        if not kept:
            return pn.pane.Alert("Choose at least one scheme.", alert_type="warning")
        if panels == axis:
            panels = "nothing"
        part = cut(axis, panels, kept, places)
        options: dict[str, Any] = {"value": score, "logx": "logx" in logs, "logy": "logy" in logs}
        if panels == "nothing":
            return sweep_curves(part, axis, **options)
        column = pn.Column()
        for k, label in enumerate(cube[panels].values.tolist()):
            picture = sweep_curves(part.isel({panels: [k]}), axis, **options)
            column.append(pn.pane.HoloViews(picture.opts(title=f"{panels} {label}"), linked_axes=False))
        return column

    def table() -> io.StringIO:
        places = {name: slider.value for name, slider in at.items()}
        return _csv(cut(along.value, facet.value, chosen.value, places)[scores].load().to_dataframe())

    picture = pn.bind(draw, along, value, facet, chosen, logarithmic, **at)
    widgets = pn.Column(along, value, facet, chosen, logarithmic, *at.values(), _download(table, "sweep.csv"))
    return pn.Row(widgets, pn.panel(picture, linked_axes=False))


def _csv(frame: Any) -> io.StringIO:
    return io.StringIO(frame.to_csv())


def _download(table: Any, filename: str) -> Any:
    """A button that gives what is seen."""
    pn = panel()

    return pn.widgets.FileDownload(callback=table, filename=filename, label="download what is shown", width=_WIDGETS)
