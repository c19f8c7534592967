"""The explorer's page of marginal gains: Omega_r for a chosen observing system and a chosen site r."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import xarray as xr

from ..records.schema import reference_site
from .explorer_parts import WIDGETS, Address, csv, page, select
from .gain_plots import about_reference, gain_map, on_ring
from .libraries import panel

_LEAST_WITHIN, _MOST_WITHIN, _WITHIN = 2, 20, 10  # number of sites on each side of r: least, most, and at first


class GainPage:
    """Omega_r for each observing system.

    Parameters
    ----------
    systems : mapping of name to sequence of DataArray
        The averages of each observing system: several if there are several orbits of sites.

    Raises
    ------
    ValueError
        If a gain is no symmetry average, or a sequence is empty.
    """

    title = "Marginal gain"

    def __init__(self, systems: Mapping[str, Sequence[xr.DataArray]]) -> None:
        for name, averages in systems.items():
            if not averages:
                raise ValueError(f"gains[{name!r}] is empty: expected at least one gain")
            for omega in averages:
                reference_site(omega, f"gain {name!r}")
        self._systems = systems

    def _about(self, name: str, r: int) -> xr.DataArray | None:
        """The average whose reference site the group carries to r, moved there; None if there is none."""
        for omega in self._systems[name]:
            if (r - int(omega.attrs["reference"])) % _step(omega) == 0:
                return omega
        return None

    def view(self, address: Address) -> Any:
        """Make the widgets and pictures of one session."""
        pn = panel()

        names = list(self._systems)
        sites = {name: averages[0].sizes["i"] for name, averages in self._systems.items()}
        system = select("observing system", names, address.one("system", names, names[0]))
        reference = int(self._systems[system.value][0].attrs["reference"])
        end = sites[system.value] - 1
        site = pn.widgets.IntSlider(
            label="reference site r", value=address.number("site", 0, end, reference), end=end, width=WIDGETS
        )
        reach = address.number("within", _LEAST_WITHIN, _MOST_WITHIN, _WITHIN)
        within = pn.widgets.IntSlider(
            label="sites to each side", value=reach, start=_LEAST_WITHIN, end=_MOST_WITHIN, width=WIDGETS
        )

        def draw(name: str, r: int, reach: int) -> Any:
            site.end = sites[name] - 1
            r = min(r, sites[name] - 1)
            address.write(**({"system": name} if len(names) > 1 else {}), site=r, within=reach)
            omega = self._about(name, r)
            if omega is None:
                return pn.pane.Alert(
                    f"No average about site {r} was given: the group of this observing system does not carry "
                    f"{int(self._systems[name][0].attrs['reference'])} there. Compute it with gain(reference={r}).",
                    alert_type="warning",
                )
            picture = gain_map({f"{name}, r = {r}".strip(", "): omega}, within=reach)
            return pn.pane.HoloViews(picture, linked_axes=False)

        def table() -> io.StringIO:
            r = min(site.value, sites[system.value] - 1)
            omega = self._about(system.value, r)
            if omega is None:
                return csv(xr.Dataset().to_dataframe())
            if not on_ring(omega):
                return csv(omega.rename("gain").to_dataframe())
            drawn = about_reference(omega, within.value).rename("gain").rename(i="i_minus_r", j="j_minus_r")
            return csv(drawn.assign_coords(reference=r).to_dataframe())

        draws = pn.bind(draw, system, site.param.value_throttled, within)
        return page([system, site, within], draws, table, "gain.csv")


def _step(omega: xr.DataArray) -> int:
    """Number of sites by which an average may be moved: the step of the group's turns of the ring, else 0."""
    sites, group = omega.sizes["i"], str(omega.attrs.get("group", ""))
    if turns := re.search(r"turns of the ring by (\d+)", group):
        return int(turns[1])
    return sites if group or not on_ring(omega) else max(1, sites // int(omega.attrs.get("group_size", sites)))
