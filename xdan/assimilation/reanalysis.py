"""A reanalysis: states of a whole record that know later observations too, by a lag or by a backward pass."""

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

# The smoother that takes the place of an ensemble filter if the caller passes a lag.
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
    """Make a reanalysis of a record: `smoothed`, the estimate at each time that knows later observations too.

    A method with a lag, such as "ienks-n" or a network with a lag, smooths by its lag. Any other method goes back over
    its run, so that each state knows the observations of all times. With `lag=`, an ETKF or an EnKF-N becomes the
    method "enks": it corrects earlier times as it goes, in one pass.

    Parameters
    ----------
    {ds}
    method : str, Network or Method
        The name of a classical method, which `xdan.baselines()` lists; a trained network; or a method object.
    lag : int, optional
        Number of later times whose observations each state knows, at least 1. By default the lag of the method, or all
        times for a method without a lag.
    keep_members : bool
        Whether to keep the members of an ensemble, or the covariances of a Kalman filter, for analyses and for smoothed
        states.
    {store}
        After a kill, the call goes on in the pass that it was in, forward or backward.
    **parameters
        Parameters of the method if `method` is a name, such as members=40, each a value or "tune"; restart_after, seed,
        mode, device and progress, which `cycle` takes too; and what the Dataset's attributes and names do not say:

        {record_words}

    Returns
    -------
    xarray.Dataset
        The result of `cycle` with `smoothed` (trajectory, time, *state), in the state's units, and `smoothed_spread` if
        the method has a spread. The attribute `smoothed_by` says how it was smoothed. With a lag L, the last L times
        have no smoothed state.

    Raises
    ------
    TypeError
        If an argument has another type.
    ValueError
        If the method cannot smooth, or cannot smooth with a lag; and whenever `cycle` raises this error.

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
        method_lag = scheme.method_on(np.dtype(np.float64), "cpu").smoothing_lag
        if lag not in (None, method_lag):
            raise ValueError(
                f"lag={lag}: {shown(getattr(method, 'name', type(method).__name__))} has "
                + (
                    f"a lag of {method_lag}; expected that, or none"
                    if method_lag
                    else "none; expected no lag, to go back over all"
                )
            )
        return cycle(ds, method, members=keep, smooth=not method_lag, store=store, **parameters)
    name, parameters = _named(method, lag, parameters)
    smooth = not method_by_name(name, **_of_method(name, parameters)).smoothing_lag
    return baseline(ds, name, keep_members=keep, smooth=smooth, store=store, **parameters)


def _of_method(name: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters that belong to the method."""
    accepted = accepted_parameters(name)
    return {key: value for key, value in parameters.items() if key in accepted}


def _named(name: str, lag: int | None, parameters: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The name and the parameters of the method that smooths with this lag.

    Raises
    ------
    ValueError
        If no such method exists.
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
