"""Surrogates: networks that learn a model from a truth or from the analyses of a run."""

from __future__ import annotations

from contextlib import nullcontext
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any, Unpack

import torch
import xarray as xr
from torch import Tensor

from ..core.checks import integer, real, shown, switch
from ..core.dynamics import SurrogateDynamics, dynamics_to_json
from ..core.keywords import checks_keywords
from ..core.learning.model_fit import ModelFit
from ..core.random import check_seed
from ..core.spaces import StateSpace
from ..core.tendencies import QuadraticCNN, TendencyNetwork
from ..records.blocks import pick_device
from ..records.location import StoreLike, locate, writing
from ..records.record import LabelledRecord, RecordWords, read
from ..records.runs import read_run
from ..records.schema import TIME
from ..records.wording import shares_words
from .learners import check_even, made_for, split
from .model_training import FitSettings, fit_model
from .stretches import Stretches

_MOMENT_STATES = 4096  # most states from which a climate is computed


@checks_keywords
@shares_words
def train_surrogate(
    ds: xr.Dataset,
    source: str | xr.Dataset = "truth",
    network: TendencyNetwork | None = None,
    *,
    timestep: float | None = None,
    rollouts: tuple[int, ...] = (1, 2, 4),
    steps: int = 3000,
    batch: int = 128,
    learning_rate: float = 5e-3,
    validation: float = 0.1,
    validate_every: int = 250,
    burn_in: int = 0,
    seed: int = 0,
    checkpoint: StoreLike | None = None,
    device: str = "auto",
    progress: bool = True,
    **words: Unpack[RecordWords],
) -> SurrogateDynamics:
    """Train a network to take the place of a model; not lazily.

    Forecasts of the network start from states of the source, and are fitted to the states that follow. They run over
    one interval at first, and over more intervals later (a curriculum).

    Parameters
    ----------
    ds : xarray.Dataset
        A record with even intervals. Its attributes name the model, or it is passed as `dynamics=`. Only the space of
        the model's states, its time step and its time unit are used.
    source : "truth" or xarray.Dataset
        The states to learn from: the record's truth, or the analyses of a run on this record. A surrogate also learns
        those errors of the analyses that depend on the state.
    network : TendencyNetwork, optional
        Architecture, by default `xdan.QuadraticCNN()`. This object is not changed; training starts with new weights.
    timestep : float, optional
        Time step of the surrogate, in model time; by default that of the model. The record's interval must be a
        multiple of it.
    rollouts : sequence of int
        Numbers of intervals that forecasts run over, one after another. Each takes an equal share of the steps.
    steps, batch : int
        Number of gradient steps, and number of stretches of states in each step.
    learning_rate : float
        Learning rate of Adam. It falls linearly to zero.
    validation : float
        Share of the trajectories that is held back for validation; a single trajectory holds back a share of its times.
        The result has the weights with the smallest error over the longest rollout.
    validate_every : int
        Number of steps between validations.
    burn_in : int
        Number of cycles to leave out at the beginning.
    seed : int
        Key of the first weights and of all draws.
    checkpoint : path or Zarr store, optional
        Store in which the training is saved every half minute, and at Ctrl-C. After a kill, the same call goes on from
        there, and ends with the weights of a training without interruption.
    {device}
    {progress}
    {words}

    Returns
    -------
    SurrogateDynamics
        The surrogate. Its `provenance` holds the record, source, settings and version that it was made from, and the
        `history` of the fit. `one_interval_error` is in standard deviations of the climate.

    Raises
    ------
    TypeError
        If an argument has another type.
    ValueError
        If the record has no truth, the run was made on another record, the network belongs to another space, intervals
        are uneven, the time step does not divide the interval, or rollouts are longer than the record. All of this is
        checked before the training.
    RuntimeError
        If forecasts of the network diverge for good.
    TrainingInterrupted
        At Ctrl-C, after the step at hand. It is a KeyboardInterrupt whose `network` is the network of the model with
        the best weights until then. The checkpoint is saved first.

    See Also
    --------
    xdan.forecast_skill, xdan.model_climate, xdan.lyapunov_spectrum : measure how good a surrogate is.

    References
    ----------
    Bocquet et al. (2019), doi:10.5194/npg-26-143-2019; Brajard et al. (2020), doi:10.1016/j.jocs.2020.101171.

    Examples
    --------
    >>> import xdan
    >>> ds = xdan.twin(xdan.Lorenz96(sites=8), cycles=40, trajectories=8, seed=0)
    >>> surrogate = ds.dan.train_surrogate(network=xdan.LocalPolynomial(degree=2), steps=20, progress=False)
    >>> surrogate.space == xdan.Lorenz96(sites=8).space
    True
    """
    of_truth = isinstance(source, str)
    if isinstance(source, str) and source != "truth":
        raise ValueError(f"source={source!r}: expected 'truth', or a run on this record whose analyses are learned")
    if not isinstance(source, (str, xr.Dataset)):
        raise TypeError(f"source={shown(source)}: expected 'truth', or the Dataset of a run on this record")
    labelled = read(ds, **words, needs_truth="a surrogate of source='truth'" if of_truth else None)
    model = labelled.setup.dynamics
    seed, progress, device = check_seed(seed), switch("progress", progress), pick_device(device)
    if network is not None and not isinstance(network, TendencyNetwork):
        raise TypeError(f"network={shown(network)}: expected a tendency network, such as xdan.QuadraticCNN()")
    architecture = QuadraticCNN() if network is None else network
    settings = FitSettings.checked(
        steps=steps,
        batch=batch,
        rollouts=rollouts,
        learning_rate=learning_rate,
        validate_every=validate_every,
        seed=seed,
    )
    share, burn_in = real("validation", validation, above=0.0, below=1.0), integer("burn_in", burn_in, least=0)
    timestep = model.timestep if timestep is None else real("timestep", timestep, above=0.0)
    interval = check_even(labelled) * model.timestep
    begin = made_for(architecture, model.space, seed).to(device)
    live = SurrogateDynamics.trained_with(begin, model.space, timestep)
    between = live.steps_in(interval)
    states = _states(labelled, source).isel({TIME: slice(burn_in, None)})
    training, held_back = split([states], share, seed, device)
    for part in (training, held_back):
        if part.longest < max(settings.rollouts):
            raise ValueError(
                f"rollouts={settings.rollouts} run over {max(settings.rollouts)} intervals, and a part of the record "
                f"has {part.longest}: expected shorter rollouts, or a longer record"
            )
    scale = _normalise(begin, training, interval, model.space)
    origin = {
        "verb": "train_surrogate",
        "source": source if isinstance(source, str) else _run_of(source),
        "record": {
            "title": ds.attrs.get("title"),
            "dynamics": dynamics_to_json(model),
            "trajectories": int(states.sizes["trajectory"]),
            "cycles": int(states.sizes[TIME]),
            "interval": interval,
        },
        "network": {"name": begin.name, "parameters": begin.config()},
        "settings": {"validation": share, "burn_in": burn_in, "timestep": timestep, **settings.to_json()},
        "xdan": version("xdan"),
    }
    fit = ModelFit(live, between, scale, settings.learning_rate)
    identity = {name: one for name, one in origin.items() if name != "xdan"}
    place = None if checkpoint is None else locate(checkpoint, "checkpoint")
    with nullcontext() if place is None else writing(place):
        history = fit_model(fit, training, held_back, settings, checkpoint=place, identity=identity, progress=progress)
    provenance = {**origin, "when": datetime.now(UTC).isoformat(timespec="seconds"), "history": history}
    return SurrogateDynamics(begin.cpu(), model.space, timestep, model.spin_up_time, model.time_unit, provenance)


def _run_of(run: xr.Dataset) -> dict[str, str]:
    """Entries of a run that describe its method, its model and its draws."""
    known = ("seed", "network_digest", "dynamics")
    return {
        str(name): str(value)
        for name, value in run.attrs.items()
        if str(name).startswith("method") or str(name) in known
    }


def _states(labelled: LabelledRecord, source: Any) -> xr.DataArray:
    """The states to learn from, dims (trajectory, time, *state)."""
    if isinstance(source, str):
        assert labelled.truth is not None
        return labelled.truth
    return read_run(labelled, source, ("analysis",), "source")["analysis"]


def _normalise(network: TendencyNetwork, training: Stretches, interval: float, space: StateSpace) -> Tensor:
    """Scale a network by the climate of some states and by their rate of change; return standard deviations, (N,)."""
    pairs = training.spaced(_MOMENT_STATES, 1).double().cpu()
    fields = [pairs[..., part] for part in space.slices.values()]
    mean, std = [float(one.mean()) for one in fields], [float(one.std()) for one in fields]
    rate = [float(((one[:, 1] - one[:, 0]) / interval).square().mean().sqrt()) for one in fields]
    if still := [name for name, one, other in zip(space.names, std, rate, strict=True) if not (one > 0 and other > 0)]:
        raise ValueError(f"the states of {still} do not change: expected a record of a model that moves")
    network.normalise(*(one if network.state_mean.ndim else one[0] for one in (mean, std, rate)))
    return network.per_component(network.state_std) * torch.ones((), device=network.state_std.device)
