"""Corrections of a model, learned from the increments of runs with it."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import xarray as xr

from ..assimilation.cycling import cycle
from ..core.checks import integer, real, shown, switch
from ..core.dynamics import CorrectedDynamics, Dynamics, dynamics_to_json
from ..core.keywords import checks_keywords
from ..core.methods import Method, method_by_name
from ..core.random import check_seed
from ..core.tendencies import LocalPolynomial, QuadraticCNN, TendencyNetwork
from ..network import Network
from ..records.blocks import pick_device
from ..records.location import StoreLike
from ..records.record import LabelledRecord, RecordWords, read
from ..records.schema import TIME, TRAJECTORY
from ..records.store import STATUS, digest
from ..records.values import LEADING_CYCLES, LEADING_TRAJECTORIES
from ..records.watch import warn_of
from ..records.wording import shares_words
from .control import control_record
from .increments import Increments, check_model
from .learners import Rules, check_gradient, learner_of, made_for
from .model_training import FitSettings
from .pass_folder import claim, folder_of, identity_of

KINDS: dict[str, Callable[[], TendencyNetwork]] = {
    "constant": partial(LocalPolynomial, kernel=1, degree=0),
    "linear": partial(LocalPolynomial, kernel=5, degree=1),
    "quadratic": partial(LocalPolynomial, kernel=5, degree=2),
    "cnn": QuadraticCNN,
}
_WORSE = 1.05  # ratio of a pass's increments to those of the pass before, above which the pass made no progress


@checks_keywords
@shares_words
def learn_correction(
    ds: xr.Dataset,
    run: xr.Dataset,
    kind: str | TendencyNetwork = "linear",
    *,
    passes: int = 1,
    control: bool = True,
    method: Network | Method | None = None,
    burn_in: int = 50,
    penalty: float | None = None,
    relaxation: float | str = "secant",
    steps: int = 1000,
    batch: int = 256,
    learning_rate: float = 3e-3,
    validation: float = 0.2,
    seed: int = 0,
    store: StoreLike | None = None,
    device: str = "auto",
    progress: bool = True,
    **words: Unpack[RecordWords],
) -> CorrectedDynamics:
    """Learn a correction of a model from the increments x_a - x_f of a run with this model; not lazily.

    If a model has a systematic error, analyses pull the state back at every cycle: the mean increment at a state is not
    zero. The increment divided by the interval is regressed on the state, and the result is added to the model's
    tendency. Only a part of the error shows in the increments (docs/corrections.md derives this part). So with
    `passes` > 1, the corrected model assimilates again, and the rest of the error is learned.

    Parameters
    ----------
    ds : xarray.Dataset
        The record.
    run : xarray.Dataset
        Run of `cycle` or `baseline` on this record, with the model to correct. Pass this model as `dynamics=` if the
        record's attributes name another. The model may have a correction already, by a network of the same kind. Take
        the run from a store or from memory: a lazy run is computed again whenever it is read.
    kind : {"linear", "quadratic", "constant", "cnn"} or TendencyNetwork
        Form of the correction. A `LocalPolynomial`, such as "constant", "linear" and "quadratic", is fitted by least
        squares, summed block by block. Another network is fitted by gradient steps on forecasts of one interval.
    passes : int
        Number of times to assimilate and learn. `run` is the first pass.
    control : bool
        Whether to subtract the result of a control, in which the model is perfect. In every pass, a truth that the
        model makes is observed as the record is, and assimilated. If the method's gain is not the best one, increments
        depend on the state even there, and a regression would take this for an error of the model. For gradient steps,
        the control is subtracted as a linear form of five points.
    method : Network or Method, optional
        The method that cycles the control and the further passes. By default the method of `run`, if the attributes of
        `run` tell it.
    burn_in : int
        Number of cycles to leave out at the beginning of each run.
    penalty : float, optional
        For least squares: the weight of a coefficient's square, relative to the weight of a sample. By default the
        weight that best predicts parts of the data that were left out.
    relaxation : float or "secant"
        Factor of each pass's result when it is added. "secant" takes the factor 1 in the first pass. From then on it
        takes the factor that the earlier passes ask for, at most 4. For gradient steps "secant" always means 1.
    steps, batch, learning_rate, validation : optional
        For gradient steps: their number, the number of intervals in each, Adam's rate, and the share of the
        trajectories that is held back to choose the best weights. A single trajectory holds back a share of its time.
    seed : int
        Key of the first weights and of all draws.
    store : path, optional
        Folder that keeps the runs and models of all passes. After a kill, the same call goes on from there.
    {device}
    {progress}
    {words}

    Returns
    -------
    CorrectedDynamics
        The corrected model. Its `provenance` holds the record, run, method, settings and version that it was made
        from. For every pass, the entry "passes" holds the root mean square `increment` before the correction; the root
        mean square correction `learned`, in units of the state for one interval; the `factor` with which it was added;
        and the `penalty` or the history of the fit.

    Raises
    ------
    TypeError
        If an argument has another type.
    ValueError
        If the kind is unknown, the network belongs to another space, the run was made on another record or with another
        model, there are too few cycles, or the run's attributes do not tell its method. All of this is checked before
        the computation.
    FileExistsError
        If the store holds passes of another call.
    TrainingInterrupted
        At Ctrl-C during gradient steps. It is a KeyboardInterrupt whose `network` has the best weights of this pass
        until then. With `store` the same call goes on.

    Warns
    -----
    XdanWarning
        If a pass makes the increments larger: the passes then end, and `provenance["converged"]` is False. Also if
        nothing was learned.

    References
    ----------
    Danforth et al. (2007), doi:10.1175/MWR3266.1; Farchi et al. (2021), doi:10.1016/j.jocs.2021.101468; Brajard et al.
    (2020), doi:10.1016/j.jocs.2020.101171: assimilation and learning in turn.

    Examples
    --------
    >>> import torch, xdan
    >>> ds = xdan.twin(xdan.Lorenz96(sites=12), cycles=120, trajectories=8, seed=0).drop_vars("truth").compute()
    >>> wrong = xdan.Lorenz96(sites=12, forcing=9.0)
    >>> run = ds.dan.baseline("etkf", members=14, inflation=1.4, rotate=True, dynamics=wrong)
    >>> better = ds.dan.learn_correction(run, "constant", dynamics=wrong, progress=False)
    >>> bool(better.correction(torch.zeros(12)).mean() < 0)
    True
    """
    labelled = read(ds, **words)
    model = labelled.setup.dynamics
    seed, progress, device = check_seed(seed), switch("progress", progress), pick_device(device)
    passes, burn_in = integer("passes", passes, least=1, most=1000), integer("burn_in", burn_in, least=0)
    network = _network_for(kind, model, seed)
    fitting = FitSettings.checked(
        steps=steps, batch=batch, rollouts=(1,), learning_rate=learning_rate, validate_every=100, seed=seed
    )
    rules = Rules(
        None if penalty is None else real("penalty", penalty, least=0.0),
        _relaxation(relaxation),
        real("validation", validation, above=0.0, below=1.0),
        fitting,
    )
    increments = Increments.of(labelled, run, burn_in)
    if not isinstance(network, LocalPolynomial):
        check_gradient(labelled)
    control = switch("control", control)
    again = _method_of(run, method, passes, control) if passes > 1 or control else None
    folder = None if store is None else folder_of(store)
    base = model.model if isinstance(model, CorrectedDynamics) else model
    learner = learner_of(network, base, rules, fresh=base is model, device=device, progress=progress)
    origin = {
        "verb": "learn_correction",
        "network": {"name": network.name, "parameters": network.config()},
        "settings": {
            "kind": kind if isinstance(kind, str) else "network",
            "burn_in": burn_in,
            "control": control,
            **rules.to_json(),
        },
        **_source(ds, labelled, run),
    }
    if folder is not None:
        claim(folder, {**origin, "model": dynamics_to_json(model), **identity_of(labelled, increments, again)})
    rows: list[dict[str, Any]] = []
    corrected, converged = model, True
    for number in range(1, passes + 1):
        place = partial(_place, folder, number)
        if again is not None and number > 1:
            latest = _cycled(ds, again, corrected, {**words}, run, place("run"), device, progress)
            increments = Increments.of(read(ds, **_with(words, corrected)), latest, burn_in)
        moments = increments.moments()
        if rows and moments.size > _WORSE * rows[-1]["increment"]:
            converged = False
            warn_of(
                [
                    f"the increments of pass {number} are {moments.size:.4g}, those of the pass before were "
                    f"{rows[-1]['increment']:.4g}: the correction makes the assimilation worse, and the passes end "
                    "here, with the correction of the pass before. Take fewer passes=, a smaller relaxation=, a "
                    "simpler kind, or a longer record"
                ]
            )
            learner.undo()
            break
        perfect = None
        if again is not None and control:
            twin = control_record(ds, increments.labelled, number, seed)
            free: dict[str, Any] = {name: one for name, one in words.items() if name not in ("truth", "climatology")}
            of_twin = _cycled(twin, again, corrected, free, run, place("control"), device, progress)
            perfect = Increments.of(read(twin, **_with(free, corrected)), of_twin, burn_in)
        learned = learner.learn(increments, perfect, moments, place("fit"))
        rows.append({"increment": moments.size, "lost": moments.lost, **learned})
        corrected = CorrectedDynamics(_dressed(base, model), learner.network)
    if rows and all(row["factor"] == 0.0 for row in rows):
        warn_of(
            [
                "nothing was learned: every coefficient is smaller than its standard error, and the corrected model is "
                "the model. Increments of a filter that does not follow the truth show no error: give the run more "
                "inflation, or a model_error=; or take a longer record"
            ]
        )
    provenance = {**origin, "passes": rows, "converged": converged}
    return CorrectedDynamics(_dressed(base, model), learner.network, provenance)


def _dressed(base: Dynamics, model: Dynamics) -> Dynamics:
    """The model to correct, with the climatology and the model error of the record's model."""
    if base is model:
        return base
    return base._copied(
        given_climate=model.given_climate,
        model_error=model.model_error,
        _first=model._first,
        _model_step=model._model_step,
    )


def _network_for(kind: Any, model: Dynamics, seed: int) -> TendencyNetwork:
    """The network to fit: a new one for the model's space, or the network that corrects the model already."""
    if not isinstance(kind, (str, TendencyNetwork)):
        raise TypeError(
            f"kind={shown(kind)}: expected one of {sorted(KINDS)}, or a network such as xdan.QuadraticCNN()"
        )
    if isinstance(kind, str) and kind not in KINDS:
        raise ValueError(f"kind={kind!r}: expected one of {sorted(KINDS)}, or a network such as xdan.QuadraticCNN()")
    network = made_for(KINDS[kind]() if isinstance(kind, str) else kind, model.space, seed)
    network.check_space(model.space)
    if isinstance(model, CorrectedDynamics):
        known, wanted = ((one.name, one.config()) for one in (model.network, network))
        if known != wanted:
            raise ValueError(
                f"the model is corrected by {shown(known)} already, and kind= asks for {shown(wanted)}: expected one "
                "form; go on with kind=model.network, or begin anew with the run of model.model"
            )
        return copy.deepcopy(model.network).requires_grad_(True)
    return network


def _relaxation(value: Any) -> float | None:
    """The factor of each pass's result; None for the secant."""
    if isinstance(value, str):
        if value != "secant":
            raise ValueError(f"relaxation={value!r}: expected 'secant' or a positive number")
        return None
    return real("relaxation", value, above=0.0, most=10.0)


def _method_of(run: xr.Dataset, method: Any, passes: int, control: bool) -> Network | Method:
    """The method that cycles the control and further passes: the caller's, or the method in the run's attributes."""
    if isinstance(method, (Network, Method)):
        return method
    if method is not None:
        raise TypeError(f"method={shown(method)}: expected a trained network or a method, as for cycle()")
    reasons = {f"passes={passes}": passes > 1, "control=True": control}
    why = " and ".join(reason for reason, holds in reasons.items() if holds)
    other = " and ".join(way for way, needed in (("passes=1", passes > 1), ("control=False", control)) if needed)
    remedy = f"pass method= with what made the run, as for cycle(); or {other}"
    name, parameters = run.attrs.get("method"), run.attrs.get("method_parameters")
    if not isinstance(name, str) or "network_digest" in run.attrs:
        raise ValueError(f"{why} cycles the run's method again, and the run does not tell all of it: {remedy}")
    try:
        known = json.loads(parameters) if isinstance(parameters, str) else {}
        return method_by_name(name, **known)
    except (TypeError, ValueError, RecursionError) as reason:
        raise ValueError(f"the run's method {name!r} cannot be made from its attributes ({reason}): {remedy}") from None


def _with(words: Any, dynamics: Dynamics) -> Any:
    """The words of a record, with another dynamics."""
    return {**words, "dynamics": dynamics}


def _place(folder: Path | None, number: int, what: str) -> Path | None:
    """The path at which a pass keeps a run or a model."""
    return None if folder is None else folder / f"{what}-{number}.zarr"


def _cycled(
    ds: xr.Dataset,
    method: Network | Method,
    corrected: Dynamics,
    words: dict[str, Any],
    run: xr.Dataset,
    store: Path | None,
    device: str,
    progress: bool,
) -> xr.Dataset:
    """A run with the corrected model. If the store holds it already, it is read from there."""
    if store is not None and (store / "zarr.json").exists():
        there: xr.Dataset = xr.open_zarr(store, consolidated=False)
        if STATUS not in there.attrs:
            try:
                check_model(there, corrected)
            except ValueError:
                raise FileExistsError(
                    f"{store} holds the run of another correction, of another record or other settings: expected a "
                    "folder of this call; choose another store="
                ) from None
            return there
    words = {**words, "dynamics": corrected}
    seed = int(run.attrs.get("seed", 0))
    return cycle(ds, method, seed=seed, store=store, device=device, progress=progress, **words)


def _source(ds: xr.Dataset, labelled: LabelledRecord, run: xr.Dataset) -> dict[str, Any]:
    """The origin of a correction, as JSON."""
    observation = labelled.observation
    leading = observation.isel({TRAJECTORY: slice(0, LEADING_TRAJECTORIES), TIME: slice(0, LEADING_CYCLES)})
    known = ("method", "method_parameters", "seed", "network_digest", "dynamics")
    return {
        "record": {
            "title": ds.attrs.get("title"),
            "trajectories": int(observation.sizes[TRAJECTORY]),
            "cycles": int(observation.sizes[TIME]),
            "observing": ds.attrs.get("observing"),
            "observations": digest(np.asarray(leading.values)),
        },
        "run": {name: _plain(run.attrs[name]) for name in known if name in run.attrs},
        "xdan": version("xdan"),
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value
