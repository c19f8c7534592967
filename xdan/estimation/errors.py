"""Estimates of Q and R, the covariances of the errors of the model and of the observations, from a record."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Unpack

import xarray as xr

from ..core.checks import switch
from ..core.methods import Method
from ..core.random import check_seed
from ..network import Network
from ..records.blocks import pick_device
from ..records.checkpoint import Checkpoint
from ..records.location import StoreLike, check_rewritable, exists, is_local, locate, replacing, writing
from ..records.model_errors import says_perfect
from ..records.record import RecordWords, read
from ..records.store import check_apart, check_mode, check_writable, consolidate
from ..records.values import check_observed
from ..records.wording import shares_words
from .error_estimation import Estimation
from .error_request import Request


@shares_words
def estimate_errors(
    ds: xr.Dataset,
    method: str = "em",
    *,
    structure: str | Mapping[str, str] = "scalar",
    scheme: str | Method | Network | None = None,
    iterations: int | None = None,
    tolerance: float | None = None,
    smoothing: float | None = None,
    burn_in: int | None = None,
    accelerate: bool | None = None,
    seed: int = 0,
    store: StoreLike | None = None,
    mode: str = "w-",
    device: str = "auto",
    progress: bool = True,
    **words: Unpack[RecordWords],
) -> xr.Dataset:
    """Estimate Q and R, the covariances of errors of the model and of the observations, from a record's innovations.

    It computes at once, and keeps the observations in memory, of this process or of dask's workers. Blocks of
    trajectories are tasks. The truth is not needed. The estimate starts from the Q and R that the record has, or from
    `model_error=` and `observation_error=`. A Q that nothing names starts at a hundredth of the climate's variance; one
    that is "fixed" is zero then.

    Parameters
    ----------
    {ds}
        For "em" and "lag-innovations" all intervals are of one length, as Q is that of an interval;
        times at which nothing is observed hold NaN.
    method : {"em", "desroziers", "lag-innovations"}
        - "em": expectation maximisation. An extended Kalman filter and a smoother with the newest Q and R give what the
          errors were, and their mean squares are the next Q and R: the maximum of the likelihood. Q and R.
        - "desroziers": passes of any scheme with the newest R, which is then the mean product of residuals and
          innovations. R alone: docs/model-error.md says what it tells of Q.
        - "lag-innovations": one pass of an extended Kalman filter that adapts Q and R in every cycle, each trajectory
          by itself, to the products of innovations of one and of two times. Q and R in time.
    structure : {"scalar", "diagonal", "full", "fixed"}, or mapping of "model_error" and "observation_error" to these
        One variance (for each field of the state, where it has several), one for each component, a covariance (of
        observations: of each field), or nothing: it stays as it is.
    scheme : str, Method or Network, optional
        Of "desroziers": a method's name or object, or a network; by default "enkf-n".
    iterations : int, optional
        Passes over the record at most: by default 100 of "em", 5 of "desroziers".
    tolerance : float, optional
        Of "em" the relative distance of all variances from where they go, by their last changes, 0.001 by default. It
        ends there, or where the log-likelihood can rise by less than 5 times the tolerance: a tenth of a standard error
        from its maximum. Of "desroziers" the last relative change of R, 0.01 by default.
    smoothing : float, optional
        Of "lag-innovations": cycles that the moving averages look back. By default a tenth of the record, at least
        10. The start is forgotten by a factor e in so many cycles, and a filter with noisier Q and R is a worse one.
    burn_in : int, optional
        First cycles that no sum counts. By default a tenth of the record, at most 20, or 100 of "desroziers".
    accelerate : bool, optional
        Of "em": every other pass starts where the last three estimates lead, if the likelihood is no smaller there. By
        default True. False is plain expectation maximisation.
    seed : int
        Of the climatology that filters start from, and of an ensemble's draws.
    store : path or Zarr store, optional
        Write the estimate there and return it opened. Beside a local store each pass is kept as soon as it is made, and
        a killed call goes on there when it is made again.
    {mode}
    {device}
    {progress}
    {words}

        `model_error` and `observation_error` are where the estimate starts.

    Returns
    -------
    xarray.Dataset
        `model_error` and `observation_error`, standard deviations in the units of state and observations, or
        `..._covariance` of the structure "full"; of several fields one for each. They play these roles in a record:
        `cycle(..., model_error=estimate.model_error)` takes them, and so does `ds.assign`. With `..._standard_error`,
        over trajectories and groups of times, and `..._history` along `iteration`, or along `time` of
        "lag-innovations", where the start is the first and the estimate the last. `log_likelihood` or
        `innovation_ratio`, and `lost`, trajectories that do not count, along the same dim. `converged`; `diverged`,
        where the estimate is NaN and its history tells why. `forecast_error` of "desroziers", the deviation of the
        forecast's errors as observed.

    Raises
    ------
    TypeError
        For arguments of another type, and for words that the method does not take.
    ValueError
        For unknown names, numbers out of range, a Q of zero that is not fixed, intervals of several lengths, an R that
        changes in time, a record with fewer cycles than numbers to estimate, states too large for a covariance, a model
        or an operator whose derivative is wrong, and as `cycle`.
    FileExistsError
        If the store exists, and mode is not "w".

    Warns
    -----
    XdanWarning
        Where the estimate diverges or has not converged, and where trajectories are lost.

    References
    ----------
    Desroziers et al. (2005), doi:10.1256/qj.05.108; Berry and Sauer (2013), doi:10.3402/tellusa.v65i0.20331; Shumway
    and Stoffer (1982), doi:10.1111/j.1467-9892.1982.tb00349.x; Dreano et al. (2017), doi:10.1002/qj.3048; Tandeo et al.
    (2020), doi:10.1175/MWR-D-19-0240.1.

    Examples
    --------
    >>> import xdan
    >>> ds = xdan.twin(xdan.Lorenz96(sites=8), cycles=40, trajectories=8, model_error_std=0.5, error_std=1.0)
    >>> estimate = ds.dan.estimate_errors(model_error=1.0, observation_error=2.0, progress=False)
    >>> bool(abs(estimate.model_error - 0.5) < 0.1), bool(abs(estimate.observation_error - 1.0) < 0.1)
    (True, True)
    """
    request = Request.of(method, structure, scheme, iterations, tolerance, smoothing, burn_in, accelerate)
    seed, progress, device = check_seed(seed), switch("progress", progress), pick_device(device)
    check_mode(mode)
    labelled = read(ds, **words)
    request.check(labelled, perfect=says_perfect(labelled.setup.dynamics, ds, words.get("model_error")))
    if store is not None:
        store = locate(store)
        check_rewritable(store)
        check_apart(ds, store, labelled.observed)
        check_writable(store, mode)
    check_observed(labelled)
    estimation = Estimation(labelled, request, seed, device, progress)
    if store is None:
        return estimation.result(None)
    with writing(store):
        unfinished = _Unfinished(store)
        result = estimation.result(unfinished.checkpoint(estimation.identity(), mode))
        with replacing(store) as place:
            result.to_zarr(place, mode="w", consolidated=False, zarr_format=3)
            consolidate(place)
        unfinished.remove()
    opened: xr.Dataset = xr.open_zarr(store, consolidated=False)
    return opened


class _Unfinished:
    """Where an unfinished estimate is kept beside a local store; nowhere for others.

    Parameters
    ----------
    store : path or Zarr store
    """

    def __init__(self, store: StoreLike) -> None:
        self.path = Path(store).with_name(f".{Path(store).name}.passes") if is_local(store) else None

    def checkpoint(self, identity: Mapping[str, Any], mode: str) -> Checkpoint | None:
        """The checkpoint; with mode "w" that of another estimate is removed.

        Raises
        ------
        FileExistsError
            If an unfinished estimate of other settings is there, and mode is not "w".
        """
        if self.path is None:
            return None
        checkpoint = Checkpoint(self.path, identity)
        try:
            checkpoint.load()
        except ValueError as reason:
            if mode != "w":
                raise FileExistsError(
                    f"{self.path} holds an unfinished estimate of another record or other settings ({reason}); pass "
                    "mode='w' to begin anew, or another path"
                ) from None
            self.remove()
        return Checkpoint(self.path, identity)

    def remove(self) -> None:
        """Remove what is kept."""
        if self.path is not None and exists(self.path):
            shutil.rmtree(self.path)
