"""The explorer's page of a sweep: scores along one axis, for chosen schemes and chosen labels of the other axes."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import xarray as xr

from .explorer_parts import WIDGETS, Address, csv, page
from .libraries import panel
from .sweep_plots import sweep_curves

SCHEME, _SEED = "scheme", "seed"
_NOTHING = "nothing"


class SweepPage:
    """Scores of a sweep's cube.

    Parameters
    ----------
    cube : xarray.Dataset

    Raises
    ------
    ValueError
        If the cube has no axis beside scheme and seed, or no score along its axes.
    """

    title = "Sweep"

    def __init__(self, cube: xr.Dataset) -> None:
        axes = [str(dim) for dim in cube.dims if dim not in (SCHEME, _SEED)]
        scores = [str(name) for name, score in cube.data_vars.items() if {SCHEME, *axes} <= set(map(str, score.dims))]
        scores.sort(key=lambda name: name != "rmse")
        if not axes or not scores:
            raise ValueError(
                f"the cube has dims {[str(d) for d in cube.dims]}: expected an axis beside scheme and seed"
            )
        self._cube, self._axes, self._scores = cube, axes, scores

    def view(self, address: Address) -> Any:
        """Widgets and pictures of one session."""
        pn = panel()

        cube, axes = self._cube, self._axes
        schemes = cube[SCHEME].values.tolist()
        facets = [_NOTHING, *axes]
        along = _select("along", axes, address.one("along", axes, axes[0]))
        value = _select("score", self._scores, address.one("score", self._scores, self._scores[0]))
        facet = _select("a panel for each", facets, address.one("panels", facets, _NOTHING))
        chosen = pn.widgets.MultiChoice(
            label="schemes", options=schemes, value=address.some("scheme", schemes, schemes), width=WIDGETS
        )
        logs = ["logx", "logy"]
        logarithmic = pn.widgets.CheckBoxGroup(
            options=logs, value=address.some("log", logs, []), inline=True, width=WIDGETS
        )
        at = {
            axis: pn.widgets.DiscreteSlider(
                label=axis, options={str(v): k for k, v in enumerate(cube[axis].values.tolist())},
                value=address.number(f"at_{axis}", 0, cube.sizes[axis] - 1, 0), width=WIDGETS,
                disabled=cube.sizes[axis] < 2,
            )
            for axis in axes
        }  # fmt: skip

        def cut(axis: str, panels: str, kept: list[str], places: Mapping[str, int]) -> xr.Dataset:
            others = {name: [k] for name, k in places.items() if name not in (axis, panels)}
            return cube.sel({SCHEME: kept}).isel(others)

        def draw(axis: str, score: str, panels: str, kept: list[str], logs: list[str], **places: int) -> Any:
            for name, slider in at.items():
                slider.visible = name not in (axis, panels)
            if not kept:
                return pn.pane.Alert("Choose at least one scheme.", alert_type="warning")
            address.write(
                along=axis,
                score=score,
                panels=panels,
                scheme=kept,
                log=logs,
                **{f"at_{k}": v for k, v in places.items()},
            )
            if panels == axis:
                panels = _NOTHING
            part = cut(axis, panels, kept, places)
            options: dict[str, Any] = {"value": score, "logx": "logx" in logs, "logy": "logy" in logs}
            if panels == _NOTHING:
                return pn.pane.HoloViews(sweep_curves(part, axis, **options), linked_axes=False)
            column = pn.Column()
            for k, label in enumerate(cube[panels].values.tolist()):
                picture = sweep_curves(part.isel({panels: [k]}), axis, **options)
                column.append(pn.pane.HoloViews(picture.opts(title=f"{panels} {label}"), linked_axes=False))
            return column

        def table() -> io.StringIO:
            places = {name: slider.value for name, slider in at.items()}
            return csv(cut(along.value, facet.value, chosen.value, places)[self._scores].load().to_dataframe())

        draws = pn.bind(draw, along, value, facet, chosen, logarithmic, **at)
        return page([along, value, facet, chosen, logarithmic, *at.values()], draws, table, "sweep.csv")


def _select(label: str, options: list[str], value: str) -> Any:
    return panel().widgets.Select(label=label, options=options, value=value, width=WIDGETS)
