"""A reanalysis: states of a whole record that know later observations too, by whatever way a method has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from ..core.checks import integer, shown, switch
from ..core.methods import Method, accepted_parameters, method_by_name
from ..core.methods.base import METHODS
from ..network import Network
from ..records.location import StoreLike
from ..records.wording import shares_words
from .baselines import baseline
from .cycling import cycle
from .schemes import scheme_of

# What an ensemble filter becomes where a lag is asked for: the smoother whose filter it is.
_WITH_LAG: Mapping[str, Mapping[str, Any]] = {"etkf": {}, "enkf-n": {"finite_size": True}}


@shares_words
def reanalysis(
    ds: xr.Dataset,
    method: str | Network | Method,
    *,
    lag: int | None = None,
    keep_members: bool = False,
    store: StoreLike | None = None,
    **parameters: Any,
) -> xr.Dataset:
    """Make a reanalysis of a record: `smoothed`, the state at each time given later observations too.

    A method with a lag, such as "ienks-n" or a network with one, smooths by it. Any other goes back over its run, so
    that each state knows the observations of all times. With `lag=` an ETKF or an EnKF-N corrects the times before as
    it goes ("enks"), in one pass.

    Parameters
    ----------
    {ds}
    method : str, Network or Method
        The name of a classical method, all of which `xdan.baselines()` lists; a trained network; or a method object.
    lag : int, optional
        How many later times each state is to know, at least 1. By default the method's own lag, or all times.
    keep_members : bool
        Keep the members of an ensemble, or the covariances of a Kalman filter, of analyses and of smoothed states.
    {store}
        A killed call goes on in the pass in which it was, forward or backward.
    **parameters
        Of the method, where it is a name, such as members=40, each a value or "tune"; restart_after, seed, mode,
        device and progress, which `cycle` takes too; and what the Dataset does not say of itself:

        {record_words}

    Returns
    -------
    xarray.Dataset
        What `cycle` gives, with `smoothed` (trajectory, time, *state), and `smoothed_spread` where the method has one.
        The attribute `smoothed_by` says by what. With a lag L the last L times have none.

    Raises
    ------
    TypeError
        For arguments of another type.
    ValueError
        For a method that cannot smooth, or not with a lag, and as `cycle`.

    See Also
    --------
    cycle, baseline

    Examples
    --------
    >>> import xdan
    >>> record = xdan.twin(xdan.Lorenz96(sites=8), cycles=12, trajectories=2, seed=1).compute()
    >>> xdan.reanalysis(record, "enkf-n", members=6).attrs["smoothed_by"]
    'a backward pass: observations of all times'
    """
    keep = switch("keep_members", keep_members)
    if lag is not None:
        lag = integer("lag", lag, least=1)
    if not isinstance(method, str):
        scheme = scheme_of(method)
        own = scheme.method_on(np.dtype(np.float64), "cpu").smoothing_lag
        if lag not in (None, own):
            raise ValueError(
                f"lag={lag}: {shown(getattr(method, 'name', type(method).__name__))} has "
                + (f"a lag of {own}; expected that, or none" if own else "none; expected no lag, to go back over all")
            )
        return cycle(ds, method, members=keep, smooth=not own, store=store, **parameters)
    name, parameters = _named(method, lag, parameters)
    smooth = not method_by_name(name, **_of_method(name, parameters)).smoothing_lag
    return baseline(ds, name, keep_members=keep, smooth=smooth, store=store, **parameters)


def _of_method(name: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Those parameters that are the method's."""
    accepted = accepted_parameters(name)
    return {key: value for key, value in parameters.items() if key in accepted}


def _named(name: str, lag: int | None, parameters: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The name and the parameters of the method that smooths by a lag.

    Raises
    ------
    ValueError
        If there is none.
    """
    accepted = accepted_parameters(name)
    if lag is None or METHODS[name].fixed.get("lag") == lag:
        return name, parameters
    for word in ("lag", "window"):
        if word in accepted:
            return name, {**parameters, word: lag}
    if name in _WITH_LAG:
        return "enks", {**_WITH_LAG[name], **parameters, "lag": lag}
    others = sorted(one for one in METHODS if "lag" in accepted_parameters(one))
    raise ValueError(
        f"lag={lag}: the method {name!r} has no such lag; expected none, to go back over all times, or one of "
        f"{[*others, *_WITH_LAG]}"
    )
