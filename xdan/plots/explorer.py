"""Explore results with widgets, in a notebook or a browser. Only the data that are shown are read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Unpack

import xarray as xr

from ..core.keywords import checks_keywords
from ..records.record import RecordWords
from ..records.wording import shares_words
from .axes import dataset, mapping
from .explorer_gains import GainPage
from .explorer_parts import Address, Page
from .explorer_states import StatesPage
from .explorer_sweeps import SCHEME, SweepPage
from .libraries import holoviews, panel


@checks_keywords
@shares_words
def explore(
    source: xr.Dataset,
    runs: xr.Dataset | Mapping[str, xr.Dataset] | None = None,
    gains: xr.DataArray | Mapping[str, xr.DataArray | Sequence[xr.DataArray]] | None = None,
    **words: Unpack[RecordWords],
) -> Explorer:
    """Explore a record with its runs and gains, or a sweep's cube, with widgets.

    Parameters
    ----------
    source : xarray.Dataset
        A record with its truth, or the cube of a `sweep` with any number of axes. Lazy data stay lazy: a view reads
        only the data that it shows.
    runs : Dataset or mapping of name to Dataset, optional
        Runs of `cycle` or `baseline` on the record.
    gains : DataArray or mapping of name to one or several DataArrays, optional
        Symmetry averages of `gain(kind="mean")`, by the name of the observing system. If there are several orbits of
        sites, several averages for a name.
    {words}

    Returns
    -------
    Explorer
        A notebook shows this object. `.show()` opens it in a browser, and `.servable()` is for ``panel serve``. Each
        browser has a separate session.

    Raises
    ------
    TypeError, ValueError
        If an argument is wrong, there is nothing to show, a run was made on another record, the record has no truth,
        or a field has more than two dims.

    Examples
    --------
    >>> import xdan
    >>> ds = xdan.twin(xdan.Lorenz96(sites=8), cycles=10, trajectories=4, seed=0).compute()
    >>> run = ds.dan.baseline("enkf-n", members=5)
    >>> type(ds.dan.explore({"EnKF-N": run})).__name__  # `.show()` opens it in a browser
    'Explorer'
    """
    _extend()
    source = dataset("source", source)
    if SCHEME in source.dims:
        if runs is not None or gains is not None or words:
            raise ValueError("source is a sweep's cube: expected no runs, gains or roles beside it")
        return Explorer([SweepPage(source)])
    pages: list[Page] = []
    if runs is not None:
        named = {"run": runs} if isinstance(runs, xr.Dataset) else runs
        named = mapping("runs", named, xr.Dataset, "a run, of cycle() or baseline()")
        pages.append(StatesPage(source, named, words))
    if gains is not None:
        systems = {"": gains} if isinstance(gains, xr.DataArray) else gains
        systems = mapping("gains", systems, (xr.DataArray, list, tuple), "a gain, or several")
        pages.append(GainPage({name: [g] if isinstance(g, xr.DataArray) else list(g) for name, g in systems.items()}))
    if not pages:
        raise ValueError(
            "nothing to show: expected runs=, such as ds.dan.cycle(net), or gains=; or a sweep's cube, which has a dim "
            f"{SCHEME!r}, as the source"
        )
    return Explorer(pages)


class Explorer:
    """Pages of pictures with widgets, which `explore` makes.

    Each session has separate widgets: two browsers at one server do not change each other's pictures. The address of
    the page follows the choices: whoever opens the address sees the same pictures.

    Parameters
    ----------
    pages : sequence of Page
    """

    def __init__(self, pages: Sequence[Page]) -> None:
        self._pages = pages

    def view(self) -> Any:
        """Make the widgets and pictures of a new session.

        Returns
        -------
        panel.viewable.Viewable
        """
        pn = panel()

        address = Address()
        titles = [page.title for page in self._pages]
        tab = address.one("page", titles, titles[0])
        views = [(page.title, page.view(address)) for page in self._pages]
        if len(views) == 1:
            shown = views[0][1]
        else:
            shown = pn.Tabs(*views, active=titles.index(tab))
            shown.param.watch(lambda event: address.write(page=titles[event.new]), "active")
        return pn.Column(address.message(), shown) if address.refused else shown

    def show(self, **options: Any) -> Any:
        """Serve the pages, and open a browser.

        Parameters
        ----------
        **options
            Options of ``panel.serve``: port, title, threaded, ...

        Returns
        -------
        panel.io.server.Server or threading.Thread
        """
        return panel().serve(self.view, **{"title": "xdan", **options})

    def servable(self, **options: Any) -> Any:
        """Make the pages a part of ``panel serve``.

        Parameters
        ----------
        **options
            Options of ``panel.viewable.Viewable.servable``: title, target, ...

        Returns
        -------
        panel.viewable.Viewable
        """
        return self.view().servable(**options)

    def __panel__(self) -> Any:
        return self.view()

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> Any:
        return self.view()._repr_mimebundle_(include, exclude)


def _extend() -> None:
    hv, pn = holoviews(), panel()

    if hv.Store.current_backend != "bokeh" or "bokeh" not in hv.Store.registry:
        hv.extension("bokeh", logo=False)
    pn.extension(notifications=False)
