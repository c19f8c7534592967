"""Training: fit a network to a Dataset, or to an endless twin."""

from __future__ import annotations

import inspect
import math
import multiprocessing
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import xarray as xr
from tqdm.dask import TqdmCallback

from ..core.checks import choice, integer, real, switch
from ..core.checks import shown as one_line
from ..core.derivatives import STATES, check_model, check_operator, climate_states
from ..core.dynamics import Dynamics
from ..core.learning.objectives import OBJECTIVES
from ..core.learning.trainer import Settings, Trainer
from ..core.networks import AnalysisNetwork, network_by_name, registered_name
from ..core.observing import Sites
from ..core.progress import shown
from ..core.random import Purpose, check_seed, uniform
from ..network import Network
from ..records.blocks import pick_device
from ..records.location import StoreLike, check_rewritable, locate, writing
from ..records.record import read
from ..records.runs import imitate
from ..records.schema import XdanWarning
from ..records.setting import disagreements
from ..records.windows import RecordWindows
from .data import TrainingData, data_from_dynamics, data_from_record, ensemble_method, taught
from .loop import Loop

_DEFAULT_STEPS = 6000
_LEAST_SHARE = 12  # trajectories of a batch that are worth a process of their own
_BUILDING = threading.Lock()


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
        from (it is not changed). That one is validated first: what is returned is never worse on the validation record.
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
    TypeError, ValueError
        For data or settings that cannot be trained on, before training starts: also where nothing, or hardly anything,
        is observed in what is held back for validation.
    RuntimeError
        If training diverges for good.
    KeyboardInterrupt
        At Ctrl-C before the first step, and at a second Ctrl-C.

    Warns
    -----
    XdanWarning
        At Ctrl-C: the best network until then is returned, a checkpoint is saved, and `description["training"]` says
        "interrupted". Where no validation was finite; where a network goes on in another setting than its own; where
        some trajectories have no observations.

    References
    ----------
    Bocquet et al., Sect. 2.2.1, Eq. 2 to 4 and 22, App. A; forecasts as the target: the same authors' slides, Eq. 13
    to 15; the correction: Mallia-Parfitt and Broecker (2016), doi:10.1063/1.4965029.
    """
    asked = check_arguments(**locals())
    net, interruption = fit(asked)
    if interruption is not None:
        warnings.warn(interruption, XdanWarning, stacklevel=2)
    return net


def fit(asked: Mapping[str, Any]) -> tuple[Network, str | None]:
    """Train as `train` does, and say whether Ctrl-C cut it short.

    Parameters
    ----------
    asked : mapping
        What `check_arguments` returned, with a source.

    Returns
    -------
    network : Network
    interruption : str or None
        The warning where Ctrl-C ended the training early.
    """
    device = pick_device(asked["device"])
    kind = torch.device(device).type
    # Training does not depend on the caller's modes of torch, which are restored afterwards.
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(kind, enabled=False):
        return _fit(SimpleNamespace(**{**asked, "device": device}))


def _fit(asked: SimpleNamespace) -> tuple[Network, str | None]:
    objective = OBJECTIVES[asked.objective]
    processes = _processes(asked.processes, asked.batch, asked.device)
    settings = Settings(
        learning_rate=asked.learning_rate,
        adam_learning_rate=asked.adam_learning_rate,
        weight_decay=asked.weight_decay,
        objective=asked.objective,
        clip=asked.clip,
    )
    plan = _plan(asked.network, asked.memory)
    _check_fits(plan, asked)
    bars = asked.progress is not False and not (isinstance(asked.progress, Mapping) and asked.progress.get("disable"))
    # Reading goes through dask's tasks, the rest through loops that are tracked.
    reading = TqdmCallback(desc="reading the record", delay=2.0, leave=False) if bars else nullcontext()
    with shown(bars), reading:
        data = _endless(asked) if isinstance(asked.source, Dynamics) else _of_record(asked)
    try:
        module = _architecture(asked.network, plan, asked.seed, data).to(asked.device)
        if bad := _not_finite(module):
            raise ValueError(
                f"network={one_line(asked.network)}: {bad} are not finite in single precision, expected numbers"
            )
        if objective.covariance:
            data = taught(data, ensemble_method(asked.teacher), anew=module.memory > 0)
        steps = asked.steps if asked.epochs is None else asked.epochs * data.windows.per_epoch
        limit = steps if steps is not None or asked.minutes is not None else _DEFAULT_STEPS
        trained = asked.network if isinstance(asked.network, Network) else None
        about = {
            "window": asked.window,
            "batch": asked.batch,
            "seed": asked.seed,
            **asdict(settings),
            "steps": limit,
            "minutes": asked.minutes,
            "validate_every": asked.validate_every,
            "data": data.about,
            "architecture": {"name": registered_name(module), **module.config()},
            "start": None if trained is None else trained.digest,
        }
        now = {"training": {"data": data.setting}}
        if trained is not None and (other := disagreements([trained.description, now])):
            warnings.warn(
                f"the network goes on in another setting than it was trained in ({'; '.join(other)}, before and now): "
                "what it knows of the errors may mislead it at first. Go on if that is meant, or train a network from "
                "the start",
                XdanWarning,
                stacklevel=4,
            )
        if not objective.covariance:
            _check_differentiable(data, asked.window > 1 and asked.teacher is None)
        trainer = Trainer(module, data.dynamics, data.observing, settings, processes)
        checkpoint = asked.checkpoint
        try:
            with nullcontext() if checkpoint is None else writing(checkpoint):
                loop = Loop(
                    trainer, data, limit, asked.minutes, asked.validate_every, checkpoint, about, trained is not None
                )
                seconds = loop.run(asked.progress)
        finally:
            trainer.close()
    finally:
        if isinstance(data.windows, RecordWindows):
            data.windows.close()
    module.load_state_dict(trainer.best)
    if bad := _not_finite(module):
        raise RuntimeError(f"{bad} of the best network are not finite, expected numbers: nothing is returned")
    if not math.isfinite(trainer.best_score):
        warnings.warn(
            f"no validation of these {trainer.step_count} steps was finite: the network diverges from the validation "
            "trajectories. Train longer, or at lower learning rates",
            XdanWarning,
            stacklevel=4,
        )
    training: dict[str, Any] = {
        **about,
        "data": {**data.about, **data.setting},
        "validation_rmse": trainer.best_score,
        "seconds": round(seconds, 1),
        "device": asked.device,
        "processes": processes,
        "torch": torch.__version__,
    }
    if not objective.covariance:
        training["validation_innovation"] = trainer.best_innovation
    if loop.interrupted:
        training |= {"interrupted": True, "interrupted_at_step": trainer.step_count}
    if trained is not None:
        training["before"] = trained.description["training"]
    network = Network.from_module(module.cpu(), data.dynamics.dims, training, loop.history())
    return network, _interruption_text(asked, limit, trainer, seconds) if loop.interrupted else None


def _interruption_text(asked: SimpleNamespace, limit: int | None, trainer: Trainer, seconds: float) -> str:
    """The warning about a training that Ctrl-C ended."""
    budget = f"of {limit}" if limit is not None else f"after {seconds / 60:.2g} of {asked.minutes:g} minutes"
    more = "" if asked.checkpoint is None else "; the same call goes on from checkpoint="
    return (
        f"training was interrupted at step {trainer.step_count} {budget}: the best network until then is returned, "
        f"validation RMSE {trainer.best_score:.4g}{more}"
    )


def _endless(asked: SimpleNamespace) -> TrainingData:
    """Data from a dynamics."""
    _check_state(asked.source)
    return data_from_dynamics(
        asked.source,
        interval=asked.interval,
        observe=Sites.all() if asked.observe is None else asked.observe,
        error_std=asked.error_std,
        operator=asked.operator,
        trajectories=4 * asked.batch if asked.trajectories is None else asked.trajectories,
        window=asked.window,
        batch=asked.batch,
        seed=asked.seed,
        device=asked.device,
        supervised=OBJECTIVES[asked.objective].truth,
    )


def _of_record(asked: SimpleNamespace) -> TrainingData:
    """Data from a Dataset."""
    supervised = OBJECTIVES[asked.objective].truth
    labelled = read(
        asked.source,
        dynamics=asked.dynamics,
        truth=asked.truth,
        observation=asked.observation,
        observation_error=asked.observation_error,
        operator=asked.operator,
        needs_truth=f"the supervised objective {asked.objective!r} ('forecast' does without)"
        if supervised and asked.teacher is None
        else None,
    )
    _check_state(labelled.setup.dynamics)
    if not supervised:
        labelled = replace(labelled, truth=None)
    if asked.teacher is not None:
        labelled = imitate(labelled, asked.teacher)
    return data_from_record(
        labelled,
        validation=asked.validation,
        window=asked.window,
        batch=asked.batch,
        seed=asked.seed,
        device=asked.device,
    )


def check_arguments(**given: Any) -> dict[str, Any]:
    """Refuse wrong arguments of `train`, and fill in the defaults of those that are left out.

    Parameters
    ----------
    **given
        Arguments of `train`; `source` may be left out.

    Returns
    -------
    dict
        All arguments of `train`; numbers and switches are Python's own.

    Raises
    ------
    TypeError
        For an argument of a wrong type.
    ValueError
        For a wrong value, or arguments that do not go together.
    """
    defaults = {name: parameter.default for name, parameter in inspect.signature(train).parameters.items()}
    asked = defaults | given
    _check_kinds(asked)
    asked["objective"] = choice("objective", asked["objective"], OBJECTIVES)
    for label in ("window", "batch", "validate_every"):
        asked[label] = integer(label, asked[label], least=1)
    asked["seed"] = check_seed(asked["seed"])
    for label, least in (("steps", 1), ("epochs", 1), ("processes", 1), ("trajectories", 1), ("memory", 0)):
        if asked[label] is not None:
            asked[label] = integer(label, asked[label], least=least)
    for label in ("learning_rate", "adam_learning_rate", "clip", "interval"):
        asked[label] = real(label, asked[label], above=0.0)
    if asked["minutes"] is not None:
        asked["minutes"] = real("minutes", asked["minutes"], above=0.0)
    asked["weight_decay"] = real("weight_decay", asked["weight_decay"], least=0.0)
    asked["validation"] = real("validation", asked["validation"], above=0.0, below=1.0)
    asked["error_std"] = _deviations(asked["error_std"])
    if not isinstance(asked["progress"], Mapping):
        asked["progress"] = switch("progress", asked["progress"])
    lengths = [label for label in ("steps", "epochs", "minutes") if asked[label] is not None]
    if len(lengths) > 1:
        raise ValueError(f"{lengths} each say how long to train: expected one of steps=, epochs= and minutes=")
    if asked["objective"] == "forecast" and asked["window"] < 2:
        raise ValueError(
            "window=1 with objective='forecast': a forecast follows from the cycle before, expected a window of at "
            "least 2"
        )
    if asked["memory"] is not None and not isinstance(asked["network"], str):
        raise ValueError(
            f"memory={asked['memory']} goes with a network given by name: expected None; set it in the architecture "
            "instead"
        )
    if asked["checkpoint"] is not None:
        asked["checkpoint"] = locate(asked["checkpoint"], "checkpoint")
        check_rewritable(asked["checkpoint"], "checkpoint")
    if "source" in given:
        _check_together(asked)
    return asked


def _check_kinds(asked: Mapping[str, Any]) -> None:
    """Refuse arguments of a wrong type, numbers apart."""
    kinds: dict[str, tuple[Any, str]] = {
        "network": (
            (str, AnalysisNetwork, Network),
            "a registered name, an architecture such as xdan.ResidualCNN(), or a trained Network",
        ),
        "device": (str, "'auto', 'cpu', 'cuda' or 'cuda:0' and so on"),
        "progress": ((bool, np.bool_, Mapping), "True, False or a mapping of tqdm's arguments"),
        "teacher": (
            (type(None), xr.Dataset, str, Mapping),
            "the Dataset that baseline() returned, or with objective='covariance' the name of an ensemble method",
        ),
        "dynamics": ((type(None), Dynamics), "an xdan Dynamics such as xdan.Lorenz96()"),
        "truth": ((type(None), str), "the name of a variable"),
        "observation": ((type(None), str), "the name of a variable"),
        "observe": ((type(None), Sites), "Sites, such as xdan.Sites.all() or xdan.Sites.every(2)"),
    }
    if asked["source"] is not inspect.Parameter.empty and not isinstance(asked["source"], (xr.Dataset, Dynamics)):
        raise TypeError(
            f"cannot train on source={one_line(asked['source'])}: expected an xarray Dataset or an xdan Dynamics"
        )
    for label, (kind, expected) in kinds.items():
        if not isinstance(asked[label], kind):
            raise TypeError(f"{label}={one_line(asked[label])}: expected {expected}")


def _deviations(error_std: Any) -> Any:
    """Take a standard deviation, or an array of them."""
    if not isinstance(error_std, (np.ndarray, torch.Tensor, xr.DataArray, list, tuple)):
        return real("error_std", error_std, above=0.0)
    try:
        values = np.asarray(error_std)
    except ValueError:
        raise ValueError(f"error_std={one_line(error_std)}: expected an array of positive numbers") from None
    if values.dtype.kind not in "fiu":
        raise TypeError(f"error_std={one_line(error_std)}: expected positive numbers")
    if not (np.isfinite(values) & (values > 0)).all():
        raise ValueError(f"error_std={one_line(error_std)}: expected positive numbers")
    return values.astype(np.float64)


def _check_together(asked: Mapping[str, Any]) -> None:
    """Refuse arguments that do not go with the source or the objective."""
    objective = OBJECTIVES[asked["objective"]]
    if isinstance(asked["source"], Dynamics):
        labels = ("dynamics", "truth", "observation", "observation_error")
        of_record = [label for label in labels if asked[label] is not None]
        if asked["teacher"] is not None and not objective.covariance:
            of_record = ["teacher", *of_record]
        if of_record:
            raise ValueError(
                f"{of_record} go with a Dataset: expected none of them, an endless twin has error_std= and operator=, "
                "and a teacher by name with objective='covariance'"
            )
        if objective.covariance:
            ensemble_method(asked["teacher"])
        return
    if objective.covariance:
        raise ValueError(
            "objective='covariance' needs an ensemble beside the record: expected to train on the dynamics, as an "
            "endless twin, with teacher='etkf'; or imitate a run's analyses with objective='mse' and teacher=run"
        )
    defaults = {"observe": None, "trajectories": None, "interval": 0.05, "error_std": 1.0}
    if of_twin := [label for label, value in defaults.items() if np.ndim(asked[label]) or asked[label] != value]:
        raise ValueError(f"{of_twin} describe an endless twin; a Dataset brings its own, expected none of them")
    if asked["teacher"] is not None:
        if not isinstance(asked["teacher"], xr.Dataset):
            raise TypeError(
                f"teacher={one_line(asked['teacher'])} on a record: expected the Dataset that baseline() returned"
            )
        if not objective.truth or objective.members:
            raise ValueError(
                f"objective={asked['objective']!r} has no use for a teacher's analyses: expected 'mse' or 'rmse'"
            )


def _check_state(dynamics: Dynamics) -> None:
    """Refuse states that no network takes."""
    if len(dynamics.dims) != 1:
        raise ValueError(f"the state has dims {dynamics.dims}: expected one, as the networks work on a ring")


def _check_fits(network: AnalysisNetwork, asked: SimpleNamespace) -> None:
    """Refuse a network that does not go with the objective or a teacher."""
    objective = OBJECTIVES[asked.objective]
    if objective.covariance and not network.forms_covariance:
        raise ValueError(
            f"objective='covariance': network {network.name!r} has no covariance of its own; expected "
            "xdan.LinearInZeta(form='hypernetwork'), whose P_a is one"
        )
    if asked.teacher is not None and network.ensemble:
        raise ValueError(
            "a teacher has one forecast and one analysis, and this network takes members: expected no teacher="
        )
    if objective.members and (not network.ensemble or network.members < 2):
        raise ValueError(
            f"objective={asked.objective!r} scores members, and the network has a single forecast: expected an "
            "ensemble network such as xdan.EnsembleCNN(members=10), or objective='rmse'"
        )


def _not_finite(module: AnalysisNetwork) -> list[str]:
    """Names of weights and buffers that hold values which are not finite."""
    return sorted(name for name, value in module.state_dict().items() if not bool(value.isfinite().all()))


def _check_differentiable(data: TrainingData, through_the_model: bool) -> None:
    """Refuse a model or an observation operator whose derivative is missing or wrong.

    Raises
    ------
    ValueError
    """
    record = data.validation
    if record.truth is not None:
        states = record.truth.flatten(0, 1)
        states = states[:: max(1, len(states) // STATES)][:STATES]
    elif through_the_model or not data.observing.sees_sites:
        states = climate_states(data.dynamics, record.seed, record.observation)
    else:
        return
    if through_the_model:
        check_model(data.dynamics, "backward", states, "windows of several cycles train through it: or pass window=1")
    check_operator(data.observing.operator, "backward", states, "each analysis has its adjoint in it: or pass a matrix")


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


@contextmanager
def building() -> Iterator[None]:
    """Make modules in single precision, and leave the process's random state and default type as they were.

    One thread at a time: both are the whole process's.
    """
    with _BUILDING, torch.random.fork_rng(devices=[]):
        default = torch.get_default_dtype()
        if default != torch.float32:
            torch.set_default_dtype(torch.float32)
        try:
            yield
        finally:
            if default != torch.float32:
                torch.set_default_dtype(default)


def _plan(network: str | AnalysisNetwork | Network, memory: int | None) -> AnalysisNetwork:
    """Module of the wanted architecture; of a trained network, with its weights."""
    if isinstance(network, AnalysisNetwork):
        return network
    with building():
        if isinstance(network, Network):
            return network.module()
        return network_by_name(network, {} if memory is None else {"memory": memory})


def _architecture(
    network: str | AnalysisNetwork | Network, plan: AnalysisNetwork, seed: int, data: TrainingData
) -> AnalysisNetwork:
    """Module to train: normalised to the data, its first weights drawn from the seed; or a trained one, thawed."""
    if isinstance(network, Network):
        if network.state_dims != data.dynamics.dims:
            raise ValueError(
                f"the network works on dims {network.state_dims}, the record has {data.dynamics.dims}: expected those"
            )
        return plan
    with building():  # a fresh module, so that the caller's is not changed and weights follow from the seed
        draw = uniform(seed, Purpose.NETWORK, torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64), 1)
        torch.manual_seed(int(draw * 2**31))
        module = type(plan)(**plan.config())
    module.normalise(*data.moments, data.observing.typical_error(data.climate()))
    return module
