"""Classical methods by name, tuned and cycled like a network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import xarray as xr

from ..core.checks import switch
from ..core.keywords import keywords_of
from ..core.methods import method_by_name
from ..records.location import StoreLike
from ..records.record import RecordWords
from ..records.wording import shares_words
from .cycling import cycle


@shares_words
def baseline(
    ds: xr.Dataset,
    name: str,
    *,
    keep_members: bool = False,
    smooth: bool = False,
    tune_on: str = "innovation",
    candidates: Mapping[str, Sequence[float]] | None = None,
    restart_after: Any = None,
    seed: int = 0,
    store: StoreLike | None = None,
    mode: str = "w-",
    device: str = "auto",
    progress: bool = True,
    **parameters: Any,
) -> xr.Dataset:
    """Tune and run a classical method over a record.

    Parameters
    ----------
    {ds}
    name : str
        The method; all are in the table of docs/methods.md.

        - static: "climatology", "optimal-interpolation", "3d-var";
        - variational: "4d-var", "weak-4d-var" (`window=`), "eda";
        - Kalman: "kalman" (linear dynamics), "extended-kalman", "second-order-kalman", "iterated-kalman-smoother"
          (`lag=`), "state-covariance" (Sakov's A1 and A2);
        - ensemble: "enkf", "etkf", "letkf" (`radius=`), "denkf", "enkf-n" (finite-size, nothing to tune), "enks"
          (`lag=`);
        - ensemble, one observation after another: "eakf", "ensrf", "rank-histogram";
        - ensemble with a static covariance: "hybrid-envar";
        - iterative ensemble: "ienkf", "ienkf-n", "ienks", "ienks-n" (`lag=`), "es-mda" (`lag=`, `steps=`);
        - several models: "multi-model-enkf", "multifidelity-enkf" (`models=`);
        - particle: "particle", "optimal-particle".
    keep_members : bool
        Whether to keep the members of an ensemble method, or the analysis error covariance of a Kalman filter as
        `analysis_covariance`.
    tune_on : {"innovation", "truth"}
        The score by which parameters that are "tune" are chosen, on the leading part of the record: the likelihood of
        the innovations, which needs no truth, or the analysis RMSE.
    candidates : mapping of str to sequence of float, optional
        Values to try for parameters that are "tune", such as `{"radius": [2.0, 4.0, 6.0]}`. By default the method's
        candidates. If the best value is the first or the last candidate, a warning says so.
    smooth : bool
        Whether to add a backward pass, so that every state knows the observations of all times. The run then holds
        `smoothed` and `smoothed_spread`, too.
    {restart_after}
    seed : int
        Key of the random draws of ensembles.
    {store}
    {mode}
    {device}
    {progress}
    **parameters
        The method's parameters, such as `members=` and `inflation="tune"`; and words for what the Dataset's attributes
        and names do not say:

        {record_words}

    Returns
    -------
    xarray.Dataset
        The run, with the variables of `cycle`. After tuning it also holds the chosen values (such as
        `tuned_inflation`), the candidates (`candidate_inflation`) and their scores (`innovation_score` or
        `truth_rmse`).

    Raises
    ------
    TypeError
        If an argument has another type.
    ValueError
        If a name or a parameter is unknown, or a parameter is out of range; if a window or lag is longer than the
        record; if localisation has no distances; if "kalman" meets nonlinear dynamics; if the method needs a derivative
        of model or operator that is missing or wrong; if `keep_members` meets a method without members; and whenever
        `cycle` raises this error.

    Warns
    -----
    XdanWarning
        If the best candidate is the first or the last one, and for the reasons of `cycle`.

    See Also
    --------
    xdan.baselines : table of the methods by name, with their parameters.
    xdan.core.methods : the methods themselves, with their sources.

    Examples
    --------
    >>> import xdan
    >>> ds = xdan.twin(xdan.Lorenz96(sites=8), cycles=20, trajectories=4, seed=0).compute()
    >>> run = ds.dan.baseline("etkf", members=10, inflation=1.05)
    >>> bool(ds.dan.score(run, burn_in=10).rmse < 1.0)  # observations alone have errors of 1
    True
    """
    words: Any = {name: parameters.pop(name) for name in RecordWords.__annotations__ if name in parameters}
    keep = switch("keep_members", keep_members)
    beside = [*keywords_of(baseline), *RecordWords.__annotations__]
    method = method_by_name(name, tune_on=tune_on, candidates=candidates, beside=beside, **parameters)
    if keep and not (method.ensemble or method.keeps_covariance):
        raise ValueError(
            f"keep_members=True: the method {name!r} carries a single state, neither an ensemble nor a covariance; "
            "expected an ensemble method such as 'etkf', or a Kalman filter such as 'second-order-kalman'"
        )
    return cycle(
        ds,
        method,
        members=keep,
        smooth=smooth,
        restart_after=restart_after,
        seed=seed,
        store=store,
        mode=mode,
        device=device,
        progress=progress,
        **words,
    )
