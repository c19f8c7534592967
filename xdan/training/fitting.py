"""Training: fit a network to a Dataset, or to an endless twin."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import closing, nullcontext, suppress
from dataclasses import asdict, replace
from typing import Any, Unpack

import torch
import xarray as xr
from torch import nn
from tqdm.dask import TqdmCallback

from ..core.checks import warn
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
        generated during the training and never ends. A dynamics stands for the experiment with default parameters.
    network : str, AnalysisNetwork, Network or torch.nn.Module
        A registered name; an architecture such as `xdan.ResidualCNN(filters=40)`; a trained network to train further;
        or any torch module of yours. A trained network is not changed, and is validated first: on the validation
        record the result is never worse. A torch module is called as `module(x, zeta)`, and returns the analysis; x,
        zeta and the analysis have the shape (B, N). It is wrapped as `xdan.ModuleNetwork(module)`. A copy of the module
        is trained, and the module does not change.
    memory : int, optional
        Number of latent channels for each site that are carried from cycle to cycle, if `network` is a name or a torch
        module. 0 is the network of the paper. A torch module with memory is called as `module(x, zeta, memory)`.
    objective : str or Objective
        What the training makes small. With the truth:

        - "mse": the mean square error of the analysis, Eq. 4;
        - "rmse": its root over the state, as in the score;
        - "crps", "energy": scores of the members of an ensemble network, or of the Gaussian of a network with a spread
          such as `xdan.GaussianCNN`;
        - "log-score": the log score of this Gaussian.

        From observations alone. The truth is not read, even if there is one, and the validation uses the innovations:

        - "forecast": the misfit of the forecast to the next observations;
        - "analysis": the misfit of the analysis to its observations, with a correction, as the analysis has seen them;
        - "variational": the distance of a network's Gaussian from Bayes's analysis.

        "covariance", on an endless twin, is the distance of P_a from the covariance of the teacher: a start for
        `LinearInZeta`. `xdan.Objective` says how to write an objective.
    teacher : xarray.Dataset, str or mapping, optional
        A method that the network imitates, as a start. Afterwards, train the network further without a teacher.

        On a record, `teacher` is a run of `baseline`. The network makes every analysis from the teacher's forecast, and
        the loss compares it with the teacher's analysis. No model is run, and no gradient goes through a model. Open
        the run from a store: a lazy run is computed again for every block that is read.

        With objective="covariance", `teacher` is a method that runs beside the endless twin, with members or a
        covariance: a name such as "etkf", or {"method": "etkf", "members": 80, "inflation": 1.02}. For a network with
        memory, {"method": "second-order-kalman", "c2": 8.0} costs less. For a network without memory, the covariance
        should follow from the state alone: {"method": "state-covariance", "past": "dynamics", "depth": 36, "c2": 8.0}.
    window : int
        N_iter: number of cycles through which the gradient goes back.
    batch : int
        S_b: number of trajectories in a step.
    trajectories : int, optional
        N_r: number of trajectories of an endless twin; by default four batches.
    steps, epochs, minutes : optional
        The length of the training: one of the three, by default 6000 steps. The learning rate falls linearly to zero
        until then, unless `optimiser` has another schedule. An epoch is a pass over a record. For an endless twin it is
        a window of every trajectory, which is N_r / S_b steps. With `steps` or `epochs` a training is reproducible, on
        one machine and with one number of processes. With `minutes` it depends on the speed of the machine. The minutes
        begin with the first step: reading, and the validation of a trained network before it, do not count.
    patience : int, optional
        Number of validations in a row without a better one after which the training stops. Validations before a
        resumption count, and so does the validation before the first step of a trained network. While the learning
        rate falls, the best validations come at the end: take `optimiser=xdan.Optimiser(schedule="constant")`. The best
        network until then is returned, and `description["training"]` has "stopped_by" and "stopped_at_step". The same
        call with a larger patience goes on from a checkpoint.
    optimiser : Optimiser, optional
        Learning rates, their schedule, weight decay and clipping; `xdan.Optimiser()` by default.
    validation : float
        Share of the trajectories that is held back for validation. The result has the weights with the best RMSE on
        these; if the spread is scored, the weights with the best loss.
    validate_every : int
        Number of steps between validations. If a validation RMSE reaches 1.3 times the best one, the training goes back
        to the best weights and multiplies the learning rates by 0.7.
    on_validation : callable, optional
        A function that is called after each validation with a dict of these entries:

        - "step", and "seconds" of training;
        - "loss": the mean loss since the last validation;
        - "validation_rmse": in units of the state; for several fields in units of the observation errors. Without the
          truth it is the RMSE of the innovations;
        - "best": whether this validation is the best so far; "best_validation_rmse";
        - "validation_loss": only if the loss chooses the best weights.

        If the function returns True, the training stops, and the best network until then is returned. If the function
        raises an error, the training ends: a checkpoint is saved first, and the attribute `network` of the error has
        the best weights until then. After the first step, the time of the function is a part of `minutes`. The function
        changes no number of the training. A checkpoint goes on with another function too, or without one.
    seed : int
        Key of the first weights, of the order of the trajectories and of an endless twin. A torch module begins with
        the weights that it has.
    {device}
    processes : int, optional
        Number of processes that share the trajectories of a batch, on the CPU. By default the number of torch's threads
        (`torch.set_num_threads`), if each process then has at least 12 trajectories.
    checkpoint : path or Zarr store, optional
        Store in which the training is saved about every half minute, and when it ends. After a kill or Ctrl-C, the same
        call goes on from there. With `steps` or `epochs` it ends with the weights of a training without interruption.
    progress : bool or mapping
        Whether to show a progress bar with validation RMSE and time left. Without the truth it shows the validation RMS
        innovation. A mapping holds arguments of tqdm. The logger "xdan.training" logs every validation.
    {words}

        A twin experiment, or a dynamics, takes the word climatology alone. In a training the trajectories start from
        its states, and the network is normalised by them.

    Returns
    -------
    Network
        The trained network. Its `history` has, along `step`: loss, RMSE, validation RMSE, rate, restarted trajectories,
        returns to the best weights, and seconds. Without the truth both RMSE are those of the innovations y - H x_f.
        The rate is the factor by which the schedule multiplies the learning rates of `optimiser`. The attribute
        `description["training"]` has the settings. If a trained network was trained further, the entry "before" has
        the settings of its earlier training.

    Raises
    ------
    TypeError, ValueError
        If a setting is wrong; this is checked before the values of a record are read. If values cannot be trained on,
        or too little is observed in the part that is held back for validation.
    RuntimeError
        If the training diverges again and again.
    TrainingInterrupted
        At a second Ctrl-C, and at a Ctrl-C before the first step. It is a KeyboardInterrupt whose `network` has the
        best weights until then. At a first Ctrl-C the training ends after the step at hand, and returns the network.

    Warns
    -----
    XdanWarning
        At Ctrl-C: the best network until then is returned, `checkpoint` is saved, and `description["training"]` has the
        entry "interrupted" unless the training is whole. If no step was made, or no validation was finite; if a trained
        network is trained further in another setting; if some trajectories have no observations; if a network draws
        random numbers in training, as dropout does; if `optimiser` has a learning rate or weight decay of Muon, and
        Adam trains all weights of the network.

    See Also
    --------
    xdan.networks : table of the networks by name, with their parameters.
    xdan.ModuleNetwork : any torch module as a network.
    xdan.models : table of the models by name.

    References
    ----------
    Bocquet et al., Sect. 2.2.1, Eq. 2 to 4 and 22, App. A; forecasts as the target: slides of these authors, Eq. 13 to
    15; the correction: Mallia-Parfitt and Broecker (2016), doi:10.1063/1.4965029.

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
        warn(interruption)
    return net


def fit(arguments: TrainingArguments) -> tuple[Network, str | None]:
    """Train as `train` does, and tell whether there was a Ctrl-C.

    Returns
    -------
    network : Network
    interruption : str or None
        The warning, if there was a Ctrl-C.
    """
    device = pick_device(arguments.device)
    kind = torch.device(device).type
    # Training does not depend on the caller's modes of torch, which are restored afterwards.
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(kind, enabled=False):
        return _fit(arguments, device)


def _fit(arguments: TrainingArguments, device: str) -> tuple[Network, str | None]:
    """As `fit`, in torch's usual modes: plan, read, train, and describe the training."""
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
            warn(text)
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
        warn(
            f"no validation of these {trainer.step_count} steps was finite: the network diverges from the validation "
            "trajectories. Train longer, or at lower learning rates",
        )
    if not trainer.step_count and loop.stopped_by is None:
        warn(f"no step was made in {budget}: the network has its first weights. Train longer")
    training = {**identity, "data": {**data.identity, **data.setting}, **_outcome(planned, loop, seconds, device)}
    network = Network.from_module(module.cpu(), data.dynamics.dims, training, loop.history())
    return network, _interruption_text(loop, seconds)


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
    """JSON that identifies this training: the checkpoint of another training is refused."""
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
    """Digest of the first weights, if they do not follow from the seed."""
    if planned.trained is not None:
        return planned.trained.digest
    if module.follows_from_config:
        return None
    first = Network.from_module(module, data.dynamics.dims, {})
    # Increments of a torch module stay out: another machine rounds otherwise. The checkpoint compares them.
    return digest(first.description["parameters"], *(first.arrays[name] for name in sorted(first.arrays)))


def _outcome(planned: TrainingPlan, loop: Loop, seconds: float, device: str) -> dict[str, Any]:
    """JSON of the scores and the end of a training, and of the machine."""
    trainer = loop.trainer
    outcome: dict[str, Any] = {
        "validation_rmse": trainer.best_score,
        "seconds": round(seconds, 1),
        "device": device,
        "processes": planned.processes,
        "torch": torch.__version__,
    }
    if loop.data.validation.truth is None:
        outcome["validation_score"] = loop.data.score
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
    """The warning about a trained network that is trained further in another setting; or no text."""
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
    """The network of a training that ended without a result: the best weights, or before a validation the last ones."""
    last = {name: value.clone() for name, value in module.state_dict().items()}
    if any(math.isfinite(row.validation_rmse) for row in loop.rows) or not_finite(module):
        last = loop.trainer.best
    module.load_state_dict(last)
    told = {"interrupted": True, "interrupted_at_step": loop.trainer.step_count}
    training = {**identity, "data": {**data.identity, **data.setting}, **told}
    if math.isfinite(loop.trainer.best_score):
        training["validation_rmse"] = loop.trainer.best_score
        if data.validation.truth is None:
            training["validation_score"] = data.score
    return Network.from_module(module.cpu(), data.dynamics.dims, training, loop.history() if loop.rows else None)


def _attach(error: Exception, network: Network) -> None:
    """Keep a network as an attribute of an error of `on_validation`."""
    with suppress(AttributeError, TypeError):  # errors of some classes take no attributes
        error.network = network  # type: ignore[attr-defined]
    error.add_note(
        "raised by on_validation=, which ended the training: the network with the best weights until then is the "
        "attribute `network` of this error, and where there is a checkpoint= the same call goes on from it"
    )


def _raised_text(loop: Loop) -> str:
    """The text of the exception of a training that Ctrl-C ended at once."""
    saved = "" if loop.checkpoint is None else "; the same call goes on from the last save of checkpoint="
    return f"training was interrupted at step {loop.trainer.step_count} of {loop.budget}{saved}. {KEPT_TEXT}"


def _interruption_text(loop: Loop, seconds: float) -> str | None:
    """The warning about a Ctrl-C, if there was one."""
    if loop.interrupted_late:
        return "Ctrl-C came when the training had made its last step: it is whole, and its network is returned"
    if not loop.interrupted:
        return None
    trainer, steps, minutes = loop.trainer, loop.budget.steps, loop.budget.minutes
    budget = f"of {steps}" if steps is not None else f"after {seconds / 60:.2g} of {minutes:g} minutes"
    more = "" if loop.checkpoint is None else "; the same call goes on from checkpoint="
    return (
        f"training was interrupted at step {trainer.step_count} {budget}: the best network until then is returned, "
        f"{loop.data.score} {trainer.best_score:.4g}{more}"
    )
