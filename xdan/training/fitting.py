"""Training: fit a network to a Dataset, or to an endless twin."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from contextlib import closing, nullcontext, suppress
from dataclasses import asdict, replace
from typing import Any, Unpack

import torch
import xarray as xr
from torch import nn
from tqdm.dask import TqdmCallback

from ..core.dynamics import Dynamics
from ..core.interruption import KEPT_TEXT, TrainingInterrupted
from ..core.learning import Objective, Optimiser
from ..core.learning.ahead import ReadAhead
from ..core.learning.schedules import SCHEDULES
from ..core.learning.trainer import Trainer
from ..core.networks import AnalysisNetwork, registered_name
from ..core.progress import showing_bars
from ..core.twin import TwinExperiment
from ..network import Network
from ..records.blocks import pick_device
from ..records.location import StoreLike, writing
from ..records.record import RecordWords
from ..records.schema import XdanWarning
from ..records.setting import disagreements
from ..records.store import digest
from ..records.wording import shares_words
from .arguments import TrainingArguments
from .data import TrainingData
from .loop import Budget, Course, Loop
from .plan import TrainingPlan, not_finite, plan

_DEFAULT_STEPS = 6000


@shares_words
def train(
    source: xr.Dataset | TwinExperiment | Dynamics,
    network: str | AnalysisNetwork | Network | nn.Module = "residual-cnn",
    *,
    memory: int | None = None,
    objective: str | Objective = "rmse",
    teacher: xr.Dataset | str | Mapping[str, Any] | None = None,
    window: int = 12,
    batch: int = 24,
    trajectories: int | None = None,
    steps: int | None = None,
    epochs: int | None = None,
    minutes: float | None = None,
    patience: int | None = None,
    optimiser: Optimiser | None = None,
    validation: float = 0.1,
    validate_every: int = 250,
    on_validation: Callable[[dict[str, Any]], Any] | None = None,
    seed: int = 0,
    device: str = "auto",
    processes: int | None = None,
    checkpoint: StoreLike | None = None,
    progress: bool | Mapping[str, Any] = True,
    **words: Unpack[RecordWords],
) -> Network:
    """Train a data assimilation network through the cycles, in single precision.

    Parameters
    ----------
    source : xarray.Dataset, TwinExperiment or Dynamics
        A twin or a record with truth, of any size: a few blocks are in memory at a time. Or a twin experiment, which is
        generated while training and never ends; a dynamics makes the one with the usual settings.
    network : str, AnalysisNetwork, Network or torch.nn.Module
        A registered name; an architecture such as `xdan.ResidualCNN(filters=40)`; or a trained network to carry on
        from (it is not changed). That one is validated first: what is returned is never worse on the validation record.
        Or any torch module of yours: `module(x, zeta)` gives the analysis, x, zeta and the analysis of shape (B, N).
        It stands for `xdan.ModuleNetwork(module)`, which says more, and is not changed: a copy of it is trained.
    memory : int, optional
        Latent channels per site carried from cycle to cycle, where `network` is a name or a torch module; 0 is the
        paper's network. A torch module with memory is called as `module(x, zeta, memory)`.
    objective : str or Objective
        Supervised: "mse" is Eq. 4; "rmse" takes the root over the state first, as the score does; "crps" and "energy"
        score the members of an ensemble network, or the Gaussian of a network with a spread such as
        `xdan.GaussianCNN`; "log-score" scores that Gaussian. From observations only, the truth is not read even where
        there is one: "forecast" is the misfit of the forecast to the next observations; "analysis" that of the
        analysis to its own observations, corrected for having seen them; "variational" the distance of a network's
        Gaussian from Bayes's analysis. Validation is then by the innovations. "covariance", on an endless twin, is the
        distance of P_a from the teacher's: a start for `LinearInZeta`. For an objective that you write, see
        `xdan.Objective`.
    teacher : xarray.Dataset, str or mapping, optional
        A run of `baseline` on this record to imitate, as a start: every analysis is made from the teacher's forecast
        and compared with its analysis, so that no model is run and no gradient goes through it. Take it from a store:
        a lazy one runs anew for every block that is read. Carry on from the network without a teacher. With
        objective="covariance", a method that runs beside an endless twin, with members or a covariance of its own: a
        name such as "etkf", or {"method": "etkf", "members": 80, "inflation": 1.02}. For a network with memory
        {"method": "second-order-kalman", "c2": 8.0} costs less; {"method": "state-covariance", "past": "dynamics",
        "depth": 36, "c2": 8.0} has a covariance that follows from the state alone, as that of a network without.
    window : int
        N_iter: number of cycles through which the gradient goes back.
    batch : int
        S_b: number of trajectories in a step.
    trajectories : int, optional
        N_r: number of trajectories of an endless twin; by default four batches.
    steps, epochs, minutes : optional
        When to stop; the learning rate falls linearly to zero until then, where `optimiser` has no other schedule. An
        epoch is a pass over a record; of an endless twin, a window of every trajectory: N_r / S_b steps. With `steps`
        or `epochs` a run is reproducible (on one machine, with one number of processes); with `minutes` it depends on
        the machine's speed. 6000 steps by default.
    patience : int, optional
        Stop earlier, after so many validations in a row without a better one. Those before a resumption count, and that
        before the first step of a network that is carried on. While the learning rate falls, the best validations come
        at the end: take `optimiser=xdan.Optimiser(schedule="constant")`. The best network until then is returned, and
        `description["training"]` has "stopped_by" and "stopped_at_step". The same call with a larger patience goes on
        from a checkpoint.
    optimiser : Optimiser, optional
        Learning rates, their schedule, weight decay and clipping; `xdan.Optimiser()` by default.
    validation : float
        Share of the trajectories that is held back for validation. The result has the weights with the best RMSE on
        these; if the spread is scored, the weights with the best loss.
    validate_every : int
        Steps between validations. One whose RMSE is 1.3 times the best sends training back to the best weights, at 0.7
        of the rates.
    on_validation : callable, optional
        Called after each validation with a dict: "step"; "seconds" of training; "loss", the mean since the last
        validation; "validation_rmse", in units of the state (of innovations where there is no truth, and in units of
        the observation errors where there are several fields); "best", whether it is the best so far;
        "best_validation_rmse"; and "validation_loss" where the best is by the loss. If it returns True, the training
        stops, and the best network until then is returned. An error that it raises ends the training: a checkpoint is
        saved first, and the attribute `network` of the error has the best weights until then. Its time is a part of
        `minutes`. It changes no number of the training, and a checkpoint goes on with another one, or without.
    seed : int
        Of the initial weights, of the order of the trajectories and of an endless twin. A torch module begins with the
        weights that it has.
    {device}
    processes : int, optional
        Number of processes that share the trajectories of a batch, on the CPU. By default the number of torch's threads
        (`torch.set_num_threads`), if each process then has at least 12 trajectories.
    checkpoint : path or Zarr store, optional
        Save here about every half minute, and when the training ends. A run that was killed or ended by Ctrl-C is
        resumed by the same call, and ends with the same weights.
    progress : bool or mapping
        Show a progress bar with validation RMSE and time left; a mapping gives tqdm's own arguments. Every validation
        is logged, too, to the logger "xdan.training".
    {words}

        A twin experiment, or a dynamics, takes the word climatology alone. In a training the trajectories start from
        its states, and the network is normalised by them.

    Returns
    -------
    Network
        With `history`: loss, RMSE (of innovations, without the truth), validation RMSE, learning rate, restarted
        trajectories, returns to the best weights and seconds along `step`. `description["training"]` has the settings,
        and as "before" those of the training of a network that was carried on.

    Raises
    ------
    TypeError, ValueError
        If a setting is wrong; this is checked before the values of a record are read. If values cannot be trained on,
        or too little is observed in the part that is held back for validation.
    RuntimeError
        If training diverges for good.
    TrainingInterrupted
        At a second Ctrl-C, and at one before the first step: a KeyboardInterrupt whose `network` has the best weights
        until then. At a first Ctrl-C the training ends after the step at hand, and returns.

    Warns
    -----
    XdanWarning
        At Ctrl-C: the best network until then is returned, a checkpoint is saved, and `description["training"]` says
        "interrupted". Where no validation was finite; where a network goes on in another setting than its own; where
        some trajectories have no observations; where a network draws random numbers in training, as dropout does;
        where `optimiser` has a learning rate or weight decay of Muon, and Adam trains all weights of the network.

    See Also
    --------
    xdan.networks : table of the networks by name, with their parameters.
    xdan.ModuleNetwork : any torch module as a network.
    xdan.models : table of the models by name.

    References
    ----------
    Bocquet et al., Sect. 2.2.1, Eq. 2 to 4 and 22, App. A; forecasts as the target: the same authors' slides, Eq. 13
    to 15; the correction: Mallia-Parfitt and Broecker (2016), doi:10.1063/1.4965029.

    Examples
    --------
    >>> import xdan
    >>> ds = xdan.twin(xdan.Lorenz96(sites=8), cycles=20, trajectories=4, seed=0).compute()
    >>> net = ds.dan.train(xdan.ResidualCNN(filters=4, blocks=1), steps=4, window=4, batch=2, progress=False)
    >>> run = ds.dan.cycle(net)
    >>> sorted(run)
    ['analysis', 'diverged', 'forecast', 'innovation_ratio']
    """
    net, interruption = fit(TrainingArguments(**locals()))
    if interruption is not None:
        warnings.warn(interruption, XdanWarning, stacklevel=2)
    return net


def fit(arguments: TrainingArguments) -> tuple[Network, str | None]:
    """Train as `train` does, and say whether Ctrl-C cut it short.

    Returns
    -------
    network : Network
    interruption : str or None
        The warning where Ctrl-C ended the training early.
    """
    device = pick_device(arguments.device)
    kind = torch.device(device).type
    # Training does not depend on the caller's modes of torch, which are restored afterwards.
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(kind, enabled=False):
        return _fit(arguments, device)


def _fit(arguments: TrainingArguments, device: str) -> tuple[Network, str | None]:
    """As `fit`, in torch's usual modes: plan, read, train, and describe what was trained."""
    bars = arguments.shows_progress
    # Reading goes through dask's tasks, the rest through loops that are tracked.
    reading = TqdmCallback(desc="reading the record", delay=2.0, leave=False) if bars else nullcontext()
    with showing_bars(bars), reading:
        planned = plan(arguments, device)
        data = planned.source.data(planned.network, device)
    if torch.device(device).type == "cuda":
        data = replace(data, windows=ReadAhead(data.windows))
    with closing(data.windows):
        module = planned.module(data).to(device)
        budget = _budget(arguments, data)
        identity = _identity(arguments, planned, data, module, budget)
        for text in filter(None, (_setting_text(planned.trained, data), _idle_text(arguments.optimiser, module))):
            warnings.warn(text, XdanWarning, stacklevel=4)
        objective, optimiser, checkpoint = arguments.objective, arguments.optimiser, arguments.checkpoint
        trainer = Trainer(module, data.dynamics, data.observing, objective, optimiser, planned.processes)
        with closing(trainer), nullcontext() if checkpoint is None else writing(checkpoint):
            carried_on = planned.trained is not None
            rules = arguments.validate_every, SCHEDULES[optimiser.schedule], arguments.patience, arguments.on_validation
            loop = Loop(trainer, data, Course(budget, *rules), checkpoint, identity, carried_on)
            try:
                seconds = loop.run(arguments.progress)
            except KeyboardInterrupt as error:
                raise TrainingInterrupted(_raised_text(loop), _kept(loop, module, data, identity)) from error
            except Exception as error:
                if loop.failed:
                    _attach(error, _kept(loop, module, data, identity))
                raise
    module.load_state_dict(trainer.best)
    if names := not_finite(module):
        raise RuntimeError(f"{names} of the best network are not finite, expected numbers: nothing is returned")
    if not math.isfinite(trainer.best_score):
        warnings.warn(
            f"no validation of these {trainer.step_count} steps was finite: the network diverges from the validation "
            "trajectories. Train longer, or at lower learning rates",
            XdanWarning,
            stacklevel=4,
        )
    training = {**identity, "data": {**data.identity, **data.setting}, **_outcome(planned, loop, seconds, device)}
    network = Network.from_module(module.cpu(), data.dynamics.dims, training, loop.history())
    return network, _interruption_text(loop, seconds) if loop.interrupted else None


def _budget(arguments: TrainingArguments, data: TrainingData) -> Budget:
    """Steps, or minutes; epochs are steps of these data."""
    if arguments.epochs is not None:
        return Budget(arguments.epochs * data.windows.per_epoch, None)
    if arguments.minutes is not None:
        return Budget(None, arguments.minutes)
    return Budget(_DEFAULT_STEPS if arguments.steps is None else arguments.steps, None)


def _identity(
    arguments: TrainingArguments,
    planned: TrainingPlan,
    data: TrainingData,
    module: AnalysisNetwork,
    budget: Budget,
) -> dict[str, Any]:
    """JSON that tells this training from another: a checkpoint of another one is refused."""
    return {
        "window": arguments.window,
        "batch": arguments.batch,
        "seed": arguments.seed,
        **arguments.optimiser.config(),
        "objective": arguments.objective.to_json(),
        **asdict(budget),
        "validate_every": arguments.validate_every,
        "data": data.identity,
        "architecture": {"name": registered_name(module), **module.config()},
        "start": _start(planned, data, module),
    }


def _start(planned: TrainingPlan, data: TrainingData, module: AnalysisNetwork) -> str | None:
    """Digest of the first weights, where they do not follow from the seed."""
    if planned.trained is not None:
        return planned.trained.digest
    if module.follows_from_config:
        return None
    first = Network.from_module(module, data.dynamics.dims, {})
    # Increments of a torch module stay out: another machine rounds otherwise. The checkpoint compares them.
    return digest(first.description["parameters"], *(first.arrays[name] for name in sorted(first.arrays)))


def _outcome(planned: TrainingPlan, loop: Loop, seconds: float, device: str) -> dict[str, Any]:
    """JSON of how a training went, and on what machine."""
    trainer = loop.trainer
    outcome: dict[str, Any] = {
        "validation_rmse": trainer.best_score,
        "seconds": round(seconds, 1),
        "device": device,
        "processes": planned.processes,
        "torch": torch.__version__,
    }
    if trainer.objective.cycles_network:
        outcome["validation_innovation"] = trainer.best_innovation
    if trainer.best_loss is not None:
        outcome["validation_loss"] = trainer.best_loss
    if loop.interrupted:
        outcome |= {"interrupted": True, "interrupted_at_step": trainer.step_count}
    if loop.course.patience is not None:
        outcome["patience"] = loop.course.patience
    if loop.stopped_by is not None:
        outcome |= {"stopped_by": loop.stopped_by, "stopped_at_step": trainer.step_count}
    if planned.trained is not None:
        outcome["before"] = planned.trained.description["training"]
    return outcome


def _setting_text(trained: Network | None, data: TrainingData) -> str:
    """The warning about a network that is carried on in another setting than its own; empty where there is none."""
    if trained is None:
        return ""
    other = disagreements([trained.description, {"training": {"data": data.setting}}])
    if not other:
        return ""
    return (
        f"the network goes on in another setting than it was trained in ({'; '.join(other)}, before and now): what it "
        "knows of the errors may mislead it at first. Go on if that is meant, or train a network from the start"
    )


def _idle_text(optimiser: Optimiser, module: AnalysisNetwork) -> str:
    """The warning about settings of Muon for a network that Muon does not train; empty where there is none."""
    settings, usual = optimiser.config(), Optimiser().config()
    changed = {name for name, value in settings.items() if value != usual.get(name)}
    names = ["weight_decay"] if "adam_learning_rate" in changed else ["learning_rate", "weight_decay"]
    idle = [f"{name}={settings[name]:g}" for name in names if name in changed]
    if not idle or module.hidden_matrices():
        return ""
    return (
        f"{' and '.join(idle)} of xdan.Optimiser change nothing: they are settings of Muon, and the network "
        f"{registered_name(module)!r} has no weights for it. Set adam_learning_rate=, by which Adam trains all of them"
    )


def _kept(loop: Loop, module: AnalysisNetwork, data: TrainingData, identity: Mapping[str, Any]) -> Network:
    """What a training has learned until it ended without a result; before the first validation, the weights it had."""
    last = {name: value.clone() for name, value in module.state_dict().items()}
    if any(math.isfinite(row.validation_rmse) for row in loop.rows) or not_finite(module):
        last = loop.trainer.best
    module.load_state_dict(last)
    told = {"interrupted": True, "interrupted_at_step": loop.trainer.step_count}
    training = {**identity, "data": {**data.identity, **data.setting}, **told}
    if math.isfinite(loop.trainer.best_score):
        training["validation_rmse"] = loop.trainer.best_score
    return Network.from_module(module.cpu(), data.dynamics.dims, training, loop.history() if loop.rows else None)


def _attach(error: Exception, network: Network) -> None:
    """Keep a network on an error of `on_validation`."""
    with suppress(AttributeError, TypeError):  # errors of some classes take no attributes
        error.network = network  # type: ignore[attr-defined]
    error.add_note(
        "raised by on_validation=, which ended the training: the network with the best weights until then is the "
        "attribute `network` of this error, and where there is a checkpoint= the same call goes on from it"
    )


def _raised_text(loop: Loop) -> str:
    """What a training says that Ctrl-C ended at once."""
    saved = "" if loop.checkpoint is None else "; the same call goes on from the last save of checkpoint="
    return f"training was interrupted at step {loop.trainer.step_count} of {loop.budget}{saved}. {KEPT_TEXT}"


def _interruption_text(loop: Loop, seconds: float) -> str:
    """The warning about a training that Ctrl-C ended."""
    trainer, steps, minutes = loop.trainer, loop.budget.steps, loop.budget.minutes
    budget = f"of {steps}" if steps is not None else f"after {seconds / 60:.2g} of {minutes:g} minutes"
    more = "" if loop.checkpoint is None else "; the same call goes on from checkpoint="
    return (
        f"training was interrupted at step {trainer.step_count} {budget}: the best network until then is returned, "
        f"validation RMSE {trainer.best_score:.4g}{more}"
    )
