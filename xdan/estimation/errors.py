"""Estimates of Q and R, the covariances of the errors of the model and of the observations, from a record."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Unpack

import xarray as xr

from ..core.checks import switch
from ..core.keywords import checks_keywords
from ..core.methods import Method
from ..core.random import check_seed
from ..network import Network
from ..records.blocks import pick_device
from ..records.checkpoint import Checkpoint
from ..records.location import StoreLike, check_rewritable, exists, is_local, locate, replacing, writing
from ..records.model_errors import says_perfect
from ..records.record import RecordWords, read
from ..records.store import check_apart, check_mode, check_writable, consolidate, write_labelled
from ..records.values import check_observed
from ..records.wording import shares_words
from .error_estimation import Estimation
from .error_request import Request


@checks_keywords
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
    """Estimate Q and R, the covariances of the model's and the observations' errors, from a record's innovations.

    The estimate is computed at once, not lazily. Observations are kept in the memory of this process or of dask's
    workers, and blocks of trajectories are tasks. The truth is not needed. The estimate starts at the Q and R of the
    record, or at `model_error=` and `observation_error=`. If nothing names a Q, it starts at a hundredth of the
    climate's variance; a "fixed" Q is then zero.

    Parameters
    ----------
    {ds}
        For "em" and "lag-innovations" all intervals must have one length, as Q belongs to one interval. Use NaN at
        times without observations.
    method : {"em", "desroziers", "lag-innovations"}
        - "em": expectation maximisation, for Q and R. An extended Kalman filter and a smoother with the newest Q and R
          estimate the errors. The mean squares of the errors are the next Q and R. This leads to the maximum of the
          likelihood.
        - "desroziers": for R alone. A scheme passes over the record with the newest R. The mean product of residuals
          and innovations is the next R. docs/model-error.md says what the result tells about Q.
        - "lag-innovations": for Q and R in time. One pass of an extended Kalman filter adapts Q and R in every cycle,
          for each trajectory by itself, to the products of innovations at one time and at two times.
    structure : {"scalar", "diagonal", "full", "fixed"}, or mapping of "model_error" and "observation_error" to these
        "scalar" estimates one variance, or one for each field if there are several; "diagonal" one variance for each
        component; "full" a covariance, for observations one for each field. "fixed" does not estimate.
    scheme : str, Method or Network, optional
        For "desroziers": the name of a method, a method object or a network; by default "enkf-n".
    iterations : int, optional
        Largest number of passes over the record; by default 100 for "em" and 5 for "desroziers".
    tolerance : float, optional
        When to stop. For "em": the relative distance of all variances from their limits, which their last changes
        tell; by default 0.001. "em" also stops if the log-likelihood can rise by less than 5 times the tolerance, which
        is a tenth of a standard error from its maximum. For "desroziers": the last relative change of R, by default
        0.01.
    smoothing : float, optional
        For "lag-innovations": number of cycles that the moving averages look back. By default a tenth of the record, at
        least 10. In so many cycles the weight of the start falls by a factor e. A small number makes Q and R noisier,
        and the filter worse.
    burn_in : int, optional
        Number of cycles at the beginning that are in no sum. By default a tenth of the record, at most 20, or at most
        100 for "desroziers".
    accelerate : bool, optional
        For "em": whether every other pass starts from an extrapolation of the last three estimates, if the likelihood
        is not smaller there. By default True. False is plain expectation maximisation.
    seed : int
        Key of the climatology that filters start from, and of the draws of ensembles.
    store : path or Zarr store, optional
        Write the estimate into this store, and return the opened store. Each pass is saved beside a local store: after
        a kill, the same call goes on from the last pass. By default the result is in memory.
    {mode}
    {device}
    {progress}
    {words}

        The estimate starts at `model_error` and `observation_error`.

    Returns
    -------
    xarray.Dataset
        The estimates and their history; several fields have one variable each:

        - `model_error` and `observation_error`: standard deviations in the units of state and observations; or
          `..._covariance` for the structure "full". They have these roles in a record, so that
          `cycle(..., model_error=estimate.model_error)` and `ds.assign` take them;
        - `..._standard_error`: standard errors over trajectories and groups of times;
        - `..._history`: along `iteration`, or along `time` for "lag-innovations". The first entry is the start, and the
          last is the estimate;
        - `log_likelihood` or `innovation_ratio`, and `lost`, the number of trajectories that are left out because the
          filter lost them: along the dim of the history;
        - `converged`; and `diverged`: the estimate is then NaN, and its history shows why;
        - `forecast_error` for "desroziers": the standard deviation of the forecast's errors, in the space of
          observations.

    Raises
    ------
    TypeError
        If an argument has another type, or the method does not take an argument.
    ValueError
        If a name is unknown or a number out of range; if Q is zero and not fixed; if intervals differ or R changes in
        time; if the record has fewer cycles than there are numbers to estimate; if the state is too large for a
        covariance; if a derivative of model or operator is wrong; and whenever `cycle` raises this error.
    FileExistsError
        If the store exists, and mode is not "w".

    Warns
    -----
    XdanWarning
        If the estimate diverges or has not converged, or trajectories are lost.

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
            write_labelled(result, place, mode="w")
            consolidate(place)
        unfinished.remove()
    opened: xr.Dataset = xr.open_zarr(store, consolidated=False)
    return opened


class _Unfinished:
    """The place beside a local store that keeps an unfinished estimate. Other stores have none.

    Parameters
    ----------
    store : path or Zarr store
    """

    def __init__(self, store: StoreLike) -> None:
        self.path = Path(store).with_name(f".{Path(store).name}.passes") if is_local(store) else None

    def checkpoint(self, identity: Mapping[str, Any], mode: str) -> Checkpoint | None:
        """The checkpoint. With mode "w", the checkpoint of another estimate is removed.

        Raises
        ------
        FileExistsError
            If the checkpoint belongs to an estimate with other settings, and mode is not "w".
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
        """Remove the checkpoint."""
        if self.path is not None and exists(self.path):
            shutil.rmtree(self.path)
