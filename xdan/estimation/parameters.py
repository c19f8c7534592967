"""Parameters of a model, estimated from a record of observations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import xarray as xr

from ..core.checks import choice, integer, real, shown, switch
from ..core.dynamics import Dynamics
from ..core.estimation.likelihood import Descent, FilterLikelihood
from ..core.estimation.parameter_em import ExpectationMaximisation
from ..core.estimation.priors import Priors, check_parameter_derivatives, read_priors, read_walk
from ..core.keywords import check_keywords
from ..core.methods import EnsembleMethod, FiniteSizeEnKF, Record, method_by_name
from ..core.methods.base import METHODS
from ..core.methods.finite_size import InflatedEnsemble
from ..core.methods.registry import accepted_parameters
from ..core.random import check_seed
from ..records.blocks import pick_device
from ..records.location import StoreLike
from ..records.record import LabelledRecord, RecordWords, read
from ..records.store import check_mode
from ..records.wording import shares_words
from .augmentation import estimate_by_augmentation
from .iterations import Begin, estimate_by_iterations
from .parameter_labels import check_parameter_names

_OPTIONS: dict[str, dict[str, Any]] = {  # options of each method, with defaults
    "augmented": {"walk": 0.0},
    "likelihood": {"iterations": 20, "window": 20, "rate": 0.2},
    "em": {"iterations": 20, "burn_in": None},
}
_MEMBERS = 40
_COST = (
    "negative_log_likelihood",
    "mean of the negative log-likelihood of a cycle, without R's part",
)
_ERROR = ("model_error_std", "standard deviation of the model's errors in one interval")


@shares_words
def estimate_parameters(
    ds: xr.Dataset,
    dynamics: Dynamics | None,
    parameters: Mapping[str, tuple[Any, Any]],
    method: str = "augmented",
    *,
    ensemble: str | EnsembleMethod = "etkf",
    members: int | None = None,
    walk: float | Mapping[str, Any] | None = None,
    iterations: int | None = None,
    window: int | None = None,
    rate: float | None = None,
    burn_in: int | None = None,
    seed: int = 0,
    store: StoreLike | None = None,
    mode: str = "w-",
    device: str = "auto",
    progress: bool = True,
    **words: Any,
) -> xr.Dataset:
    """Estimate real parameters of a model from a record of observations; the truth is not needed.

    - "augmented": an ensemble filter carries the parameters in its state, beside the components of the model. Each
      trajectory has an estimate for every time. Chunked input gives lazy output.
    - "likelihood": the parameters for which an ensemble filter gives the observations the largest likelihood, for all
      trajectories together. Gradients go back through filter and model over a window of cycles. Adam takes one step for
      each window, and the last step is Newton's. The estimate is computed at once, with the record in memory.
    - "em": expectation maximisation. An ensemble smoother estimates states, and least squares then estimates the
      parameters that fit its increments best; the two take turns. The estimate is for all trajectories together. It
      needs no derivatives, and is computed at once, with all members in memory.

    Parameters
    ----------
    {ds}
    dynamics : Dynamics or None
        The model with unknown parameters. None takes the model that the attributes name. The values of the unknown
        parameters in this model do not matter. It may have model errors, `with_model_error`, which all three methods
        take into account.
    parameters : mapping of str to (mean, deviation)
        Prior mean and standard deviation of each unknown parameter. `dynamics.parameter_values()` lists the real
        parameters of the model. Arrays have the parameter's shape. "augmented" is Bayesian. "likelihood" and "em" begin
        at the mean and measure steps in deviations; their prior does not pull the estimate to the mean.
    method : {"augmented", "likelihood", "em"}
        The method, as above.
    ensemble : str or EnsembleMethod
        The filter, by name or as an object. "augmented" takes any ensemble method. "likelihood" and "em" take "etkf",
        "enkf", "enkf-n", "letkf", or any other method or class that analyses the members of one time. If the filter is
        a name, "em" uses inflation in the first `burn_in` cycles only, as Q stands for unknown errors.
    members : int, optional
        Number of members of a filter that is a name; by default 40.
    walk : float or mapping of str to float, optional
        For "augmented": standard deviation of the parameters' random walk in one interval, in the parameter's units.
        By default 0. The filter's inflation acts on parameters too, so that old observations lose weight even without
        a walk.
    iterations : int, optional
        For "likelihood" and "em": number of passes over the record, by default 20.
    window : int, optional
        For "likelihood": number of cycles through which gradients go back, by default 20. It should be longer than the
        time in which the filter forgets.
    rate : float, optional
        For "likelihood": Adam's first step, in standard deviations of the prior, by default 0.2. Steps fall to zero.
    burn_in : int, optional
        For "em": number of cycles at the beginning that least squares leaves out. By default a quarter of the record,
        at most 50.
    seed : int
        Key of the draws of the ensemble.
    {store}
        A resumed call begins after the last iteration or block that was written.
    {mode}
    {device}
    {progress}
    {words}

        Here `dynamics` is an argument before these words.

    Returns
    -------
    xarray.Dataset
        For a parameter `forcing`: `forcing` is its history, (trajectory, time, ...) or (iteration, ...), where
        iteration 0 is the prior's mean. `forcing_estimate` is the final value, and `forcing_standard_error` is its
        standard error.

        - "augmented": also `forcing_spread`, the members' standard deviation, and `diverged` and `innovation_ratio` of
          the run. The estimate is the mean over trajectories at the last time. Its uncertainty is the standard error of
          this mean, or the spread if there is a single trajectory.
        - "likelihood": also `negative_log_likelihood` (iteration). The uncertainty follows from the curvature of the
          likelihood at the estimate, the observed Fisher information.
        - "em": also `model_error_std` (iteration), the estimate of Q = q I if the model has no Q. The uncertainty
          follows from the estimates that each trajectory would give by itself, or each block of time of a single one.
        - "likelihood" and "em": also `lost` (iteration), the number of trajectories that the filter lost; `diverged`
          (iteration); and `converged`. "em" has converged if its limit is at most half a standard error away.
          "likelihood" has converged if Newton's last step is shorter than a standard deviation of the prior.

        `dynamics.with_parameters(**xdan.estimate_of(result))` is the model with the estimate.

    Raises
    ------
    TypeError
        If an argument has another type.
    ValueError
        If the model lacks a parameter, the parameter is an integer, or the model's step does not depend on it; if a
        standard deviation is not positive; if the model has no derivatives, for "likelihood"; if there are fewer cycles
        than parameters, for "em"; if the prior is so wide that states become infinite in their spin-up, for
        "augmented"; if an option belongs to another method; and whenever `cycle` raises this error.
    FileExistsError
        If the store exists and does not hold an unfinished estimate of the same call.

    Warns
    -----
    XdanWarning
        If the estimate diverges (its history is kept), has not converged, or the filter loses trajectories.

    References
    ----------
    Anderson (2001), doi:10.1175/1520-0493(2001)129<2884:AEAKFF>2.0.CO;2, for state augmentation; Chen, Sanz-Alonso and
    Willett (2022), doi:10.1137/21M1434477, for the likelihood; Shumway and Stoffer (1982),
    doi:10.1111/j.1467-9892.1982.tb00349.x, for expectation maximisation.

    Examples
    --------
    >>> import xdan
    >>> ds = xdan.twin(xdan.Lorenz96(sites=8), cycles=60, trajectories=4, seed=1)
    >>> wrong = xdan.Lorenz96(sites=8, forcing=7.0)
    >>> result = xdan.estimate_parameters(ds.compute(), wrong, {"forcing": (7.0, 1.0)}, progress=False)
    >>> abs(float(result.forcing_estimate) - 8.0) < 0.2
    True
    """
    check_keywords(estimate_parameters, words, RecordWords.__annotations__)
    choice("method", method, _OPTIONS)
    asked = {"walk": walk, "iterations": iterations, "window": window, "rate": rate, "burn_in": burn_in}
    options = _options(method, asked)
    filter_method = _ensemble(ensemble, members, method)
    check_mode(mode)
    settings: dict[str, Any] = {"seed": check_seed(seed), "store": store, "mode": mode}
    settings |= {"device": pick_device(device), "progress": switch("progress", progress)}
    labelled = read(ds, dynamics=dynamics, **words)
    model = labelled.setup.dynamics
    filter_method.check_dynamics(model)
    priors = read_priors(model, parameters)
    check_parameter_names(priors)
    if method == "augmented":
        return estimate_by_augmentation(
            ds, labelled, priors, filter_method, read_walk(options["walk"], priors), **settings
        )
    cycles, told = labelled.observation.shape[1], _COST if method == "likelihood" else _ERROR
    if method == "likelihood":
        begin = _likelihood(model, priors, options, cycles)
    else:
        begin = _em(labelled, priors, options)
        filter_method = _ensemble(ensemble, members, method, inflation=1.0, spin_up=options["burn_in"])
    count = integer("iterations", options.pop("iterations"), least=1)
    return estimate_by_iterations(
        *(ds, labelled, priors, filter_method, begin),
        kind=method,
        told=told,
        iterations=count,
        options=options,
        **settings,
    )


def _options(method: str, asked: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a method, with its defaults."""
    options = dict(_OPTIONS[method])
    for name, value in asked.items():
        if value is None:
            continue
        if name not in options:
            others = [other for other, names in _OPTIONS.items() if name in names]
            raise ValueError(f"{name}={shown(value)} is an option of method={others}: expected none with {method!r}")
        options[name] = value
    return options


def _ensemble(ensemble: Any, members: Any, method: str, **settings: Any) -> EnsembleMethod:
    """The filter: made from its name and the settings that it takes, or the object as it is."""
    if isinstance(ensemble, str):
        choice("ensemble", ensemble, METHODS)
        more = {name: value for name, value in settings.items() if name in accepted_parameters(ensemble)}
        if not issubclass(METHODS[ensemble], EnsembleMethod):
            raise ValueError(f"ensemble={ensemble!r} has no members: expected an ensemble method such as 'etkf'")
        made = method_by_name(ensemble, members=_MEMBERS if members is None else members, **more)
    elif members is not None:
        raise ValueError(f"members={shown(members)}: expected none where ensemble= is an object, which has its own")
    else:
        made = ensemble
    if not isinstance(made, EnsembleMethod):
        raise TypeError(f"ensemble={shown(ensemble)}: expected the name of an ensemble method, or an object of one")
    ours = type(made).__module__.startswith("xdan.")
    if method != "augmented" and (made.windowed or (ours and not isinstance(made, (InflatedEnsemble, FiniteSizeEnKF)))):
        raise ValueError(
            f"method={method!r} needs a filter whose members stay the same from an analysis to the next forecast, and "
            f"that can be differentiated: expected ensemble= of 'etkf', 'enkf', 'enkf-n' and 'letkf', not {made.name!r}"
        )
    return made


def _likelihood(model: Dynamics, priors: Priors, options: dict[str, Any], cycles: int) -> Begin:
    """Return the function that begins a descent on the likelihood of a filter."""
    window = options["window"] = integer("window", options["window"], least=1)
    rate = options["rate"] = real("rate", options["rate"], above=0.0)
    iterations = integer("iterations", options["iterations"], least=1)
    if cycles < 2:
        raise ValueError(f"the record has {cycles} cycle: expected at least 2, as the first gives no forecast")
    check_parameter_derivatives(model, priors, "method='likelihood'")

    def begin(method: EnsembleMethod, record: Record, dynamics: Dynamics, known: Priors) -> Descent:
        return Descent(FilterLikelihood.of(method, record, dynamics, known, window), iterations, rate)

    return begin


def _em(labelled: LabelledRecord, priors: Priors, options: dict[str, Any]) -> Begin:
    """Return the function that begins an expectation maximisation."""
    cycles, error = labelled.observation.shape[1], labelled.setup.dynamics.model_error
    default = min(50, cycles // 4)
    asked = options["burn_in"]
    first = options["burn_in"] = integer("burn_in", default if asked is None else asked, least=0)
    count = len(priors.mean)
    if cycles - max(1, first) < count:
        raise ValueError(
            f"the record has {cycles} cycles, of which the first {max(1, first)} are left out, and there are {count} "
            f"numbers to estimate: expected at least {count + max(1, first)} cycles"
        )
    if error is not None and not bool((torch.linalg.eigvalsh(error.matrix(error.std)) > 0).all()):
        raise ValueError(
            "the model error Q has directions without an error, and method='em' weighs errors by the inverse of Q: "
            "expected a positive definite Q; or model_error=0, so that Q = q I is estimated too"
        )

    def begin(method: EnsembleMethod, record: Record, dynamics: Dynamics, known: Priors) -> ExpectationMaximisation:
        return ExpectationMaximisation.of(method, record, dynamics, known, first)

    return begin
