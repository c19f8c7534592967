"""Training: fit a network to a Dataset, or to an endless twin."""

from __future__ import annotations

import inspect
import math
import multiprocessing
import warnings
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import torch
import xarray as xr

from .blocks import RecordWindows, pick_device
from .core.dynamics import Dynamics
from .core.methods import EnsembleMethod
from .core.networks import AnalysisNetwork, network_by_name, registered_name
from .core.objectives import OBJECTIVES
from .core.observing import Sites
from .core.random import Purpose, check_seed, uniform
from .core.training import Settings, Trainer
from .experiment import imitate, read
from .network import Network
from .schema import XdanWarning, check_counts, check_numbers
from .store import StoreLike, check_whole
from .training_data import TrainingData, data_from_dynamics, data_from_record, ensemble_method, taught
from .training_loop import Loop

_DEFAULT_STEPS = 6000
_LEAST_SHARE = 12  # trajectories of a batch that are worth a process of their own


def train(
    source: xr.Dataset | Dynamics,
    network: str | AnalysisNetwork | Network = "residual-cnn",
    *,
    memory: int | None = None,
    objective: str = "rmse",
    window: int = 12,
    batch: int = 24,
    steps: int | None = None,
    epochs: int | None = None,
    minutes: float | None = None,
    learning_rate: float = 0.01,
    adam_learning_rate: float = 2e-3,
    weight_decay: float = 0.0,
    clip: float = 2.0,
    validation: float = 0.1,
    validate_every: int = 250,
    seed: int = 0,
    device: str = "auto",
    processes: int | None = None,
    checkpoint: StoreLike | None = None,
    progress: bool | Mapping[str, Any] = True,
    teacher: xr.Dataset | str | Mapping[str, Any] | None = None,
    dynamics: Dynamics | None = None,
    truth: str | None = None,
    observation: str | None = None,
    observation_error: Any = None,
    operator: Any = None,
    interval: float = 0.05,
    observe: Sites | None = None,
    error_std: float = 1.0,
    trajectories: int | None = None,
) -> Network:
    """Train a data assimilation network through the cycles, in single precision.

    Parameters
    ----------
    source : xarray.Dataset or Dynamics
        A twin or a record with truth, of any size: a few blocks are in memory at a time. Or a dynamics, for an
        endless twin generated while training (`interval`, `observe`, `error_std`, `trajectories` describe it).
    network : str, AnalysisNetwork or Network
        A registered name; an architecture such as `xdan.ResidualCNN(filters=40)`; or a trained network to carry on
        from (it is not changed).
    memory : int, optional
        Latent channels per site carried from cycle to cycle, where `network` is a name; 0 is the paper's network.
    objective : {"rmse", "mse", "crps", "energy", "forecast", "analysis", "covariance"}
        Supervised: "mse" is Eq. 4; "rmse" takes the root over the state first, as the score does; "crps" and "energy"
        score the members of an ensemble network. From observations only, the truth is not read even where there is
        one: "forecast" is the misfit of the forecast to the next observations; "analysis" that of the analysis to its
        own, corrected for having seen them. Validation is then by the innovations. "covariance", on an endless twin, is
        the distance of P_a from the teacher's: a start for `LinearInZeta`.
    window : int
        N_iter, cycles that the gradient goes back through.
    batch : int
        S_b, trajectories in a step.
    steps, epochs, minutes : optional
        When to stop; the learning rate falls linearly to zero until then. An epoch is a pass over a record; of an
        endless twin, a window of every trajectory: N_r / S_b steps. With `steps` or `epochs` a run is reproducible
        (on one machine, with one number of processes); with `minutes` it depends on the machine's speed. 6000
        steps by default.
    learning_rate, adam_learning_rate : float
        Of Muon on the hidden convolutions, and of Adam on the rest.
    weight_decay : float
        Of the hidden convolutions: with every step they shrink by the learning rate times this.
    clip : float
        Gradients are shortened to this many times the running median of their norm.
    validation : float
        Share of the trajectories kept for validation; the network with the best RMSE on them is returned.
    validate_every : int
        Steps between validations. One whose RMSE is 1.3 times the best sends training back to the best weights, at 0.7
        of the rates.
    seed : int
        Of the initial weights, of the order of the trajectories and of an endless twin.
    device : str
        "auto" takes the GPU where there is one.
    processes : int, optional
        How many share the trajectories of a batch, on the CPU. By default as many as torch has threads
        (`torch.set_num_threads`), where that leaves each at least 12 trajectories.
    checkpoint : path or Zarr store, optional
        Save here about every half minute. A killed run is resumed by the same call, and ends with the same weights.
    progress : bool or mapping
        Show a progress bar with validation RMSE and time left; a mapping gives tqdm's own arguments.
    teacher : xarray.Dataset, str or mapping, optional
        A run of `baseline` on this record to imitate, as a start: every analysis is made from the teacher's forecast
        and compared with its analysis, so that no model is run and no gradient goes through it. Take it from a store:
        a lazy one runs anew for every block that is read. Carry on from the network without a teacher. With
        objective="covariance", an ensemble method that runs beside an endless twin: a name such as "etkf", or
        {"method": "etkf", "members": 80, "inflation": 1.02}.
    dynamics, truth, observation, observation_error, operator
        As for `cycle`; an operator goes with an endless twin too.
    interval, observe, error_std, trajectories
        Of an endless twin; `trajectories` is N_r, by default four batches.

    Returns
    -------
    Network
        With `history`: loss, RMSE (of innovations, without the truth), validation RMSE, learning rate, restarted
        trajectories, returns to the best weights and seconds along `step`. `description["training"]` has the settings,
        and as "before" those of the training of a network that was carried on.

    Raises
    ------
    ValueError
        For data or settings that cannot be trained on, before training starts.
    RuntimeError
        If training diverges for good.

    References
    ----------
    Bocquet et al., Sect. 2.2.1, Eq. 2 to 4 and 22, App. A; forecasts as the target: the same authors' slides, Eq. 13
    to 15; the correction: Mallia-Parfitt and Broecker (2016), doi:10.1063/1.4965029.
    """
    check_arguments(
        objective=objective,
        window=window,
        batch=batch,
        steps=steps,
        epochs=epochs,
        minutes=minutes,
        learning_rate=learning_rate,
        adam_learning_rate=adam_learning_rate,
        weight_decay=weight_decay,
        clip=clip,
        validation=validation,
        validate_every=validate_every,
        memory=memory,
        processes=processes,
    )
    supervised = OBJECTIVES[objective].truth
    device = pick_device(device)
    processes = _processes(processes, batch, device)
    settings = Settings(
        learning_rate=learning_rate,
        adam_learning_rate=adam_learning_rate,
        weight_decay=weight_decay,
        objective=objective,
        clip=clip,
    )
    seed = check_seed(seed)
    sizes = {"window": window, "batch": batch, "seed": seed}
    method: EnsembleMethod | None = None
    if isinstance(source, Dynamics):
        own = {
            "teacher": None if objective == "covariance" else teacher,
            "dynamics": dynamics,
            "truth": truth,
            "observation": observation,
            "observation_error": observation_error,
        }
        if asked := [label for label, value in own.items() if value is not None]:
            raise ValueError(
                f"{asked} go with a Dataset; an endless twin has error_std= and operator=, and a teacher by name with "
                "objective='covariance'"
            )
        if objective == "covariance":
            method = ensemble_method(teacher)
        data = data_from_dynamics(
            source,
            interval=interval,
            observe=Sites.all() if observe is None else observe,
            error_std=error_std,
            operator=operator,
            trajectories=4 * batch if trajectories is None else trajectories,
            device=device,
            supervised=supervised,
            **sizes,
        )
    elif isinstance(source, xr.Dataset):
        if objective == "covariance":
            raise ValueError(
                "objective='covariance' needs an ensemble beside the record: train on the dynamics, as an endless "
                "twin, with teacher='etkf'; or imitate a run's analyses with objective='mse' and teacher=run"
            )
        endless: dict[str, tuple[Any, Any]] = {
            "observe": (observe, None),
            "trajectories": (trajectories, None),
            "interval": (interval, 0.05),
            "error_std": (error_std, 1.0),
        }
        if asked := [label for label, (value, default) in endless.items() if value != default]:
            raise ValueError(f"{asked} describe an endless twin; a Dataset brings its own, expected none of them")
        experiment = read(
            source,
            dynamics=dynamics,
            truth=truth,
            observation=observation,
            observation_error=observation_error,
            operator=operator,
            needs_truth=f"the supervised objective {objective!r} ('forecast' does without)"
            if supervised and teacher is None
            else None,
        )
        if not supervised:
            experiment = replace(experiment, truth=None)
        if teacher is not None:
            if not supervised or OBJECTIVES[objective].members:
                raise ValueError(f"objective={objective!r} has no use for a teacher's analyses: take 'mse' or 'rmse'")
            experiment = imitate(experiment, teacher)
        check_whole(source, experiment.truth)
        data = data_from_record(experiment, validation=validation, device=device, **sizes)
    else:
        raise TypeError(f"cannot train on {type(source).__name__}: expected an xarray Dataset or an xdan Dynamics")
    module = _architecture(network, memory, seed, data).to(device)
    if teacher is not None and module.ensemble:
        raise ValueError("a teacher has one forecast and one analysis; this network takes members: train it without")
    if OBJECTIVES[objective].covariance and not module.forms_covariance:
        raise ValueError(
            f"objective='covariance': network {module.name!r} has no covariance of its own; take "
            "xdan.LinearInZeta(form='hypernetwork'), whose P_a is one"
        )
    if method is not None:
        data = taught(data, method, anew=module.memory > 0)
    if OBJECTIVES[objective].members and (not module.ensemble or module.members < 2):
        raise ValueError(
            f"objective={objective!r} scores members, and the network has a single forecast: take an ensemble network "
            "such as xdan.EnsembleCNN(members=10), or objective='rmse'"
        )
    if epochs is not None:
        steps = epochs * data.windows.per_epoch
    limit = steps if steps is not None or minutes is not None else _DEFAULT_STEPS
    about = {
        **sizes,
        **asdict(settings),
        "steps": limit,
        "minutes": minutes,
        "validate_every": validate_every,
        "data": data.about,
        "architecture": {"name": registered_name(module), **module.parameters_json()},
        "start": network.digest if isinstance(network, Network) else None,
    }
    if window > 1 and teacher is None and not OBJECTIVES[objective].covariance:
        _check_differentiable(data)
    trainer = Trainer(module, data.dynamics, data.error, settings, processes)
    try:
        loop = Loop(trainer, data, limit, minutes, validate_every, checkpoint, about)
        seconds = loop.run(progress)
    finally:
        trainer.close()
        if isinstance(data.windows, RecordWindows):
            data.windows.close()
    module.load_state_dict(trainer.best)
    if not math.isfinite(trainer.best_score):
        warnings.warn(
            f"no validation of these {trainer.step_count} steps was finite: the network diverges from the validation "
            "trajectories. Train longer, or at lower learning rates",
            XdanWarning,
            stacklevel=2,
        )
    training = {
        **about,
        "validation_rmse": trainer.best_score,
        "seconds": round(seconds, 1),
        "device": device,
        "processes": processes,
        "torch": torch.__version__,
    }
    if isinstance(network, Network):
        training["before"] = network.description["training"]
    return Network.from_module(module.cpu(), data.dynamics.dims, training, loop.history())


def check_arguments(**given: Any) -> None:
    """Refuse what no training can be asked for; arguments that are not given are those by default.

    Raises
    ------
    ValueError
    """
    asked = {name: parameter.default for name, parameter in inspect.signature(train).parameters.items()} | given

    def take(*names: str) -> dict[str, Any]:
        return {name: asked[name] for name in names}

    objective, weight_decay, validation = asked["objective"], asked["weight_decay"], asked["validation"]
    if objective not in OBJECTIVES:
        raise ValueError(f"objective={objective!r} is unknown; known are {sorted(OBJECTIVES)}")
    lengths, rates = take("steps", "epochs", "minutes"), take("learning_rate", "adam_learning_rate", "clip")
    counts = take("window", "batch", "validate_every", "processes")
    if sum(length is not None for length in lengths.values()) > 1:
        raise ValueError("expected one of steps=, epochs= and minutes=, not several")
    check_counts(**counts, **take("steps", "epochs", "memory"))
    check_numbers(**rates, **take("minutes", "validation", "weight_decay"))
    for label, value in counts.items():
        if value is not None and value < 1:
            raise ValueError(f"{label}={value}: expected at least 1")
    for label, number in {**lengths, **rates}.items():
        if number is not None and not number > 0:
            raise ValueError(f"{label}={number}: expected a positive number")
    if not 0 <= weight_decay < math.inf:
        raise ValueError(f"weight_decay={weight_decay}: expected zero or a positive number")
    if not 0 < validation < 1:
        raise ValueError(f"validation={validation}: expected a share between 0 and 1")
    if objective == "forecast" and asked["window"] < 2:
        raise ValueError(
            "window=1 with objective='forecast': a forecast follows from the cycle before, expected a window of at "
            "least 2"
        )


def _check_differentiable(data: TrainingData) -> None:
    """Refuse a model that torch cannot go back through."""
    x = data.validation.observation.new_zeros(1, math.prod(data.dynamics.shape), requires_grad=True)
    with torch.enable_grad():
        after = data.dynamics.advance(x.unflatten(1, data.dynamics.shape), 1)
    if not after.requires_grad:
        raise ValueError(
            f"no gradient passes through a step of {data.dynamics.name!r}, so windows of several cycles cannot be "
            "trained through: write the model in torch operations, without detach() or NumPy; or pass window=1"
        )


def _processes(asked: int | None, batch: int, device: str) -> int:
    """How many processes share a batch."""
    if device != "cpu" or multiprocessing.current_process().daemon:
        if asked not in (None, 1):
            raise ValueError(
                f"processes={asked}: a batch is shared between processes on the CPU, and not within a daemonic process "
                f"such as a dask worker under a nanny; here the device is {device!r}, expected processes=1"
            )
        return 1
    return max(1, min(torch.get_num_threads(), batch // _LEAST_SHARE)) if asked is None else min(asked, batch)


def _architecture(
    network: str | AnalysisNetwork | Network, memory: int | None, seed: int, data: TrainingData
) -> AnalysisNetwork:
    """Module to train: normalised to the data, its first weights drawn from the seed; or a trained one, thawed."""
    if memory is not None and not isinstance(network, str):
        raise ValueError("memory= goes with a network given by name; set it in the architecture instead")
    if len(data.dynamics.dims) != 1:
        raise ValueError(f"the state has dims {data.dynamics.dims}: the residual CNN works on a ring, one state dim")
    if not isinstance(network, (str, AnalysisNetwork, Network)):
        raise TypeError(
            f"network={network!r}: expected a registered name, an architecture such as xdan.ResidualCNN(), or a "
            "trained Network"
        )
    if isinstance(network, Network):
        if network.state_dims != data.dynamics.dims:
            raise ValueError(f"the network works on dims {network.state_dims}, the record has {data.dynamics.dims}")
        return network.module()
    if isinstance(network, str):
        network = network_by_name(network, {} if memory is None else {"memory": memory})
    # A fresh module, so that the caller's is not changed and weights follow from the seed.
    with torch.random.fork_rng(devices=[]):
        draw = uniform(seed, Purpose.NETWORK, torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64), 1)
        torch.manual_seed(int(draw * 2**31))
        module = type(network)(**network.parameters_json())
    module.normalise(*data.moments, data.error.scale(data.climate()))
    return module
