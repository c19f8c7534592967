"""The protocol of a method, classical or learned: what a method declares, and what it does in a cycle."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from torch import Tensor

from ..checks import integer, shown
from ..derivative_checks import Mode, check_model, check_operator, climate_states
from ..dynamics import Dynamics
from ..observing import ObservingSystem
from ..random import Purpose, normal
from ..registry import Registry, constructor_values
from ..user_functions import finest
from .advancing import advance
from .arguments import checked_candidates, number_or_tune
from .backward import SMOOTHED, BackwardPass
from .declarations import CURVES, FORECAST_SPREAD, Choice, Output, Search, Tunable
from .record import KEPT, Record, State

Differentiated = Literal["model", "operator"]

CLIMATE_STATES = 64  # number of states from which the climate's variance in observation space is computed


class Method(ABC):
    """A sequential method: at every time a forecast and an analysis of a state that the method itself defines.

    A subclass gives `start` and `analyse`; everything else has a default. The states of B trajectories are computed
    together and never mixed. A state is a dict of tensors, trajectories first. Its entry `x` has shape (B, N), or
    (B, M, N) for an ensemble of M members. Other entries are what the method remembers from cycle to cycle. The loop
    adds two entries, which a method may read and need not return. `label`, shape (B,), is the trajectory's label.
    `cycle`, shape (B,), is the number of the coming analysis, counted from `first_cycle`. A trajectory is lost if its
    `x` is not finite or grows without bound: the loop flags it, and sets its entries to zero so that the others go on.

    A method is one class, in one file::

        @xdan.register_method
        class Nudging(xdan.Method):
            name = "nudging"

            def __init__(self, weight: float = 0.3) -> None:
                self.weight = weight

            def start(self, record):
                return {"x": record.observation.new_zeros(record.shape)}

            def analyse(self, state, observation, observed, observing):
                x = state["x"]
                innovation = observation - observing.observe(x)
                return {"x": x + self.weight * observing.project_innovation(innovation, observed, x)}

    `config` then follows from the constructor, because the attribute `weight` holds the parameter `weight`.
    `baseline("nudging", weight=0.5)` runs the method. So does `cycle(ds, Nudging(0.5))`, without a registered name.

    Attributes
    ----------
    name : str
        The name that `baseline` takes. A run has it as its label.
    ensemble : bool
        Whether `x` holds members.
    members : int
        Number of members M.
    channels : int
        Number of latent channels of a network with memory. The state's entry `memory` has shape (B, channels, N).
    keeps_covariance : bool
        Whether the state has an entry `covariance`, P_a of shape (B, N, N). A run stores it where it stores members.
    outputs : tuple of Output
        What `forecast_outputs` and `analysis_outputs` give. The constructor sets it if it depends on parameters.
    tunable : dict of str to Tunable
        Parameters that may be "tune". `number(name)` gives the number in use.
    search : Search
        How these parameters are searched.
    windowed : bool
        Whether the state holds a window of several times that all trajectories share. After a gap in the observations
        the window of all trajectories starts anew. A gap is then a long interval between two times
        of the record, not a sequence of times without observations.
    fixed : dict of str to object
        Parameters of a base class that this class sets once and for all.
    differentiates_model : bool
        Class attribute: whether the method needs derivatives of the model, whatever its parameters are. If not,
        messages suggest the method to users whose model has no derivatives.
    perfect_model : bool
        Whether the method assumes that the model is perfect, and does not use the covariance Q of the model's errors.
        Then a record with a Q is refused.
    first_cycle : int
        Number of the first analysis in the loop. It is 1 for an ensemble whose first analysis draws random numbers,
        because `start` draws the numbers of cycle 0.
    backward : type of BackwardPass, optional
        Class attribute: how to go back over a run, so that later observations correct earlier states. None if the
        method's state does not hold what such a pass needs.
    no_backward : str
        Class attribute: why there is no backward pass, in the words of a message.
    tune_on : {"innovation", "truth"}
        What tuning compares candidates by: the innovations, or the analysis RMSE.
    dynamics, seed
        Dynamics and seed of the record that the method is prepared for. If the model depends on time, this `dynamics`
        stands at the record's first analysis. The `dynamics` that `forecast` gets stands at the time of the state.
        `from_step` gives the model at another time.

    Examples
    --------
    >>> import xdan
    >>> ds = xdan.twin(xdan.Lorenz96(sites=8), cycles=10, trajectories=4, seed=0).compute()
    >>> class Persistence(xdan.Method):
    ...     name = "persistence"
    ...     def start(self, record):
    ...         return {"x": record.observation.new_zeros(record.shape)}
    ...     def forecast(self, state, dynamics, steps):
    ...         return state
    ...     def analyse(self, state, observation, observed, observing):
    ...         return {"x": state["x"]}
    >>> bool((ds.dan.cycle(Persistence()).analysis == 0.0).all())
    True
    """

    name: ClassVar[str] = "method"
    ensemble: ClassVar[bool] = False
    tunable: ClassVar[Mapping[str, Tunable]] = {}
    search: ClassVar[Search] = Search()
    fixed: ClassVar[Mapping[str, Any]] = {}
    windowed: ClassVar[bool] = False
    first_cycle: ClassVar[int] = 0
    differentiates_model: ClassVar[bool] = False
    backward: ClassVar[type[BackwardPass] | None] = None
    no_backward: ClassVar[str] = "its state has neither members nor a covariance that would say how"
    perfect_model: bool = False
    outputs: tuple[Output, ...] = ()
    members: int = 1
    channels: int = 0
    keeps_covariance: bool = False
    tune_on: str = "innovation"
    dynamics: Dynamics
    seed: int
    _numbers: Mapping[str, Any] = {}
    _curve: Tensor | None = None
    _candidates: Mapping[str, tuple[float, ...]] = {}

    # What a method is.

    def config(self) -> dict[str, Any]:
        """Plain JSON values that identify this method: its parameters, with "tune" where a parameter is tuned.

        The default reads the constructor's parameters from attributes of their names.

        Raises
        ------
        TypeError
            If such an attribute is missing, or is not a plain value.
        """
        return constructor_values(self, lists=True) | self.asked_candidates()

    @property
    def derivatives(self) -> tuple[tuple[Differentiated, Mode], ...]:
        """Derivatives of the model and of the observation operator that the method needs."""
        return ()

    @property
    def gives_forecast_spread(self) -> bool:
        """Whether a run holds the standard deviation of the forecast."""
        return any(output.name == FORECAST_SPREAD.name for output in self.outputs)

    @property
    def smoothing_lag(self) -> int:
        """How many later cycles of observations the method's output `smoothed` includes; 0 without such an output."""
        return next((output.lag for output in self.outputs if output.name == SMOOTHED.name), 0)

    def check_backward(self, dynamics: Dynamics) -> None:
        """Refuse a backward pass over the method's run, if there is none.

        Raises
        ------
        ValueError
            If the method has no backward pass.
        """
        if self.backward is None or self.windowed:
            raise ValueError(self.without_backward_pass(self.no_backward))

    def backward_pass(self, dynamics: Dynamics) -> BackwardPass:
        """How to go back over the run of a tuned method.

        If `analyse` returns inflated members or an inflated covariance, this gives `self.backward(inflation)`.

        Raises
        ------
        ValueError
            If the method has no backward pass.
        """
        self.check_backward(dynamics)
        assert self.backward is not None
        return self.backward()

    def without_backward_pass(self, why: str) -> str:
        """Message that the method has no backward pass. It lists the methods that have one."""
        others = [name for name in METHODS if METHODS[name].backward is not None and not METHODS[name].windowed]
        title = f"smooth=True: the method {self.name!r}"
        if (lag := self.smoothing_lag) > 0:
            return (
                f"{title} smooths by its lag already: its run holds `smoothed`, from the observations of up to {lag} "
                f"later times; expected smooth=False, or a method with a backward pass: {others}"
            )
        why = "its state is a window of several times" if self.windowed else why
        return (
            f"{title} has no backward pass: {why}; expected one of {others}, or a network beside a "
            "Kalman filter with one matrix, such as 'lorenz96-kalman'"
        )

    @property
    def reads_covariance(self) -> bool:
        """Whether an analysis depends on the forecast error covariance, if the method carries one."""
        return self.keeps_covariance

    def kept_covariance(self, state: State) -> Tensor:
        """P_a of an analysis state, (B, N, N), if the method carries it."""
        return state["covariance"]

    def check_kept(self, dynamics: Dynamics) -> None:
        """Refuse `members=True` for a dynamics whose states are too large for what the run would store.

        Raises
        ------
        ValueError
        """
        del dynamics  # members and memory are stored for any dynamics

    def check_declarations(self) -> None:
        """Refuse wrong declarations: outputs that are no outputs or share a name, and parameters with a wrong value.

        Raises
        ------
        TypeError, ValueError
        """
        title = f"the method {self.name!r}"
        names = []
        for output in self.outputs:
            if not isinstance(output, Output):
                raise TypeError(f"outputs of {title} hold {shown(output)}: expected xdan.Output(name, long_name)")
            names.append(output.name)
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"{title} declares the outputs {twice} twice: expected distinct names")
        if taken := sorted(set(names) & set(KEPT)):
            raise ValueError(f"{title} declares the outputs {taken}, which the loop itself keeps: expected other names")
        if not (self.backward is None or (isinstance(self.backward, type) and issubclass(self.backward, BackwardPass))):
            raise TypeError(
                f"backward={shown(self.backward)} of {title}: expected a class derived from "
                "xdan.core.methods.BackwardPass, or None"
            )
        for name, tunable in self.tunable.items():
            if not isinstance(tunable, Tunable):
                raise TypeError(f"tunable[{name!r}]={shown(tunable)} of {title}: expected xdan.Tunable((0.1, 0.2))")
            if not hasattr(self, name):
                raise TypeError(
                    f"{title} declares {name!r} tunable and has no attribute of that name: expected its constructor "
                    f"to set self.{name}"
                )
            value = getattr(self, name)
            if not isinstance(value, str | None) or value not in tunable.words:
                number_or_tune(name, value, tunable.zero)

    # What a method does.

    def prepare(self, record: Record) -> Self:
        """Return the method ready for a record. It does not tune: `tune` also chooses the parameters that are "tune".

        Parameters
        ----------
        record : Record
            The leading part of the record that the method will cycle over.

        Raises
        ------
        ValueError
            If the method cannot work on the record.
        """
        self.check_dynamics(record.dynamics)
        self.check_record(record)
        ready = copy.copy(self)
        ready.dynamics, ready.seed = record.dynamics, record.seed
        ready.set_up(record)
        return ready

    def bound(self, dynamics: Dynamics) -> Self:
        """Return the method with its dynamics, for callers that do not call `prepare` although an analysis needs it."""
        return self

    def check_dynamics(self, dynamics: Dynamics) -> None:
        """Refuse a model that the method cannot work with, before any computation.

        Raises
        ------
        ValueError
            If the method needs derivatives and the model has none, if the method assumes a perfect model and the model
            has a known error, or if the method needs more members than a climatology of the user has states.
        """
        if self.perfect_model and dynamics.model_error is not None:
            others = [name for name in METHODS if not METHODS[name].perfect_model]
            raise ValueError(
                f"the method {self.name!r} assumes a perfect model, and {dynamics.label!r} has a known error of "
                f"{dynamics.model_error.word} in an interval: expected model_error=0, to assume a perfect model "
                f"nevertheless, or another method: {others}"
            )
        if self.differentiates_model or any(what == "model" for what, _ in self.derivatives):
            others = [name for name in METHODS if not METHODS[name].differentiates_model]
            dynamics.require_derivatives(f"the method {self.name!r}", f"Methods that need none are {others}")
        if dynamics.given_climate is not None:
            dynamics.given_climate.check_members(self.members)

    def check_steps(self, dynamics: Dynamics, steps: Sequence[int]) -> None:  # noqa: B027 - most methods take any
        """Refuse intervals of these numbers of model steps if the method cannot use them, before any computation.

        Raises
        ------
        ValueError
        """

    def check_record(self, record: Record) -> None:
        """Refuse a record that the method cannot work on, for example one without a derivative that the method needs.

        Raises
        ------
        ValueError
        """
        wanted = [pair for pair in self.derivatives if pair[0] == "model" or not record.observing.linear]
        if not wanted:
            return
        like = record.observation
        states = climate_states(record.dynamics, record.seed, like)
        observing = record.observing.to(torch.float64, like.device)
        for what, mode in wanted:
            if what == "model":
                check_model(record.dynamics, mode, states, self._instead(mode))
            else:
                check_operator(observing.operator, mode, states, f"the method {self.name!r} needs it")

    def _instead(self, mode: Mode) -> str:
        """What to do if the model has no derivative."""
        return "take a method that needs none, such as 'etkf'"

    def set_up(self, record: Record) -> None:  # noqa: B027 - most methods need nothing
        """Compute what the method needs from a record, such as the moments of its climate. `self` is a copy."""

    @abstractmethod
    def start(self, record: Record) -> State:
        """Forecast state at the first time, before any observation.

        Parameters
        ----------
        record : Record
            `record.shape` is (B, N). `record.observation` has the dtype and the device for the computation.

        Returns
        -------
        dict of Tensor
            `x` of shape (B, N) or (B, M, N), and everything else that the method remembers.
        """

    @abstractmethod
    def analyse(self, state: State, observation: Tensor, observed: Tensor, observing: ObservingSystem) -> State:
        """Turn a forecast state into an analysis state.

        Parameters
        ----------
        state : dict of Tensor
            The state that `forecast` returned. The method must not write into it.
        observation : Tensor, shape (B, P)
            Zero where nothing is observed. P is N if the state's sites are observed directly.
        observed : Tensor of bool, shape (B, P)
            True where there is an observation; this differs between trajectories and times. The innovation has no
            meaning where it is False. `observing.whiten` and `observing.project_innovation` take this mask, and give
            zero there.
        observing : ObservingSystem
            H and R of this time: `observe` x, the `tangent` of H, `whiten` by R^{-1/2}, `project_innovation`.

        Returns
        -------
        dict of Tensor
            `x` of the same shape, and what the next cycle needs. The loop does not inflate: a method with inflation
            returns anomalies or a covariance that are multiplied already.
        """

    def first(self, state: State, observation: Tensor, observed: Tensor, observing: ObservingSystem) -> State:
        """Make the first analysis of a record, or of a trajectory that starts anew. The state comes from `start`."""
        return self.analyse(state, observation, observed, observing)

    def forecast(self, state: State, dynamics: Dynamics, steps: int) -> State:
        """Advance the state to the next analysis time, Eq. 3."""
        return {**state, "x": advance(dynamics, state["x"], steps)}

    def mean(self, state: State) -> Tensor:
        """Best estimate, shape (B, N)."""
        return state["x"].mean(1) if self.ensemble else state["x"]

    def forecast_outputs(self, state: State) -> dict[str, Tensor]:
        """Values of the outputs that belong to a forecast state; none by default."""
        return {}

    def analysis_outputs(self, state: State) -> dict[str, Tensor]:
        """Values of the outputs that belong to an analysis state; by default, the entries that have these names."""
        return {output.name: state[output.name] for output in self.outputs if output.name in state}

    def draw(self, state: State, size: int, purpose: Purpose = Purpose.PERTURBATION) -> Tensor:
        """Standard normal numbers of this cycle, shape (B, size), in the dtype of `x`.

        They depend on the seed, each trajectory's label, the cycle and the purpose alone. They are therefore the same
        for every division of the record into blocks.

        Raises
        ------
        TypeError
            If the size is not an integer.
        """
        size = integer("size", size, least=1)
        return normal(self.seed, purpose, state["label"], state["cycle"][:1], size)[:, 0].to(state["x"])

    def climate_variance(self, dynamics: Dynamics, observing: ObservingSystem, seed: int) -> Tensor:
        """Variance of H(x) over the climate, shape (P,) or (), in double precision."""
        has_sample = dynamics.given_climate is not None
        like = finest(dynamics.one_step, dynamics.start_states() if has_sample else torch.zeros(1, *dynamics.shape))
        states = dynamics.climate_sample(CLIMATE_STATES, seed, purpose=Purpose.CLIMATOLOGY, like=like)
        return observing.climate_variance(states.double().flatten(1))

    # Parameters that may be tuned.

    def number(self, name: str) -> float:
        """Value of a parameter; the tuned value if it was tuned.

        Raises
        ------
        RuntimeError
            If the parameter is "tune" and was not tuned yet.
        """
        value = self._numbers.get(name, getattr(self, name))
        if name not in self.tunable and isinstance(value, str):
            raise TypeError(
                f"{name}={value!r} of {self.name!r}: expected a number; a parameter that may be 'tune' has an entry in "
                "`tunable`"
            )
        if isinstance(value, str):
            raise RuntimeError(f"{name}={value!r} of {self.name!r}: call tune(method, record) first")
        return float(value)

    def at(self, numbers: Mapping[str, Any]) -> Self:
        """Return a copy in which some parameters have these numbers; `config()` keeps "tune".

        Parameters
        ----------
        numbers : mapping of str to float, or to Tensor of shape (B,) if `search.together`
        """
        chosen = copy.copy(self)
        chosen._numbers = {**self._numbers, **numbers}
        return chosen

    def to_tune(self) -> list[str]:
        """Names of the parameters that are "tune"."""
        return [name for name in self.tunable if getattr(self, name) == "tune"]

    def tried(self, name: str) -> tuple[float, ...]:
        """Values that tuning tries for a parameter."""
        return self._candidates.get(name, self.tunable[name].values)

    def labels(self) -> dict[str, tuple[float, ...]]:
        """The values that tuning tries, by the names of their `choices`; known before the method is prepared."""
        return {f"candidate_{name}": self.tried(name) for name in self.to_tune()}

    def take_candidates(self, candidates: Any) -> None:
        """Set the values that tuning tries for parameters that are "tune".

        Parameters
        ----------
        candidates : mapping of str to sequence of float
            At least two distinct positive numbers each.

        Raises
        ------
        TypeError, ValueError
            If the values are not such numbers, or a parameter is not to be tuned.
        """
        zero = {name for name, tunable in self.tunable.items() if tunable.zero}
        self._candidates = checked_candidates(candidates, self.to_tune(), zero)

    def asked_candidates(self) -> dict[str, Any]:
        """Candidates that the caller asked for, as a part of `config`; empty if the class's candidates are used."""
        if not self._candidates:
            return {}
        return {"candidates": {name: list(values) for name, values in self._candidates.items()}}

    @property
    def curve(self) -> Choice:
        """Declaration of the score that candidates are compared by, without dims."""
        return CURVES["truth_rmse" if self.tune_on == "truth" else self.search.innovation]

    @property
    def choices(self) -> tuple[Choice, ...]:
        """Declarations of the results of `chosen`, known before the method is prepared."""
        names = self.to_tune()
        if not names:
            return ()
        dims = tuple(f"candidate_{name}" for name in names)
        sizes = tuple(len(self.tried(name)) for name in names)
        each: list[Choice] = []
        for name, dim, size in zip(names, dims, sizes, strict=True):
            words = self.tunable[name].long_name or f"values that tuning tried for {name}"
            each += [
                Choice(f"tuned_{name}", f"value that tuning chose for {name}"),
                Choice(dim, words, (dim,), (size,)),
            ]
        return (*each, replace(self.curve, dims=dims, shape=sizes))

    def chosen(self) -> dict[str, Any]:
        """What the method chose for its record, by the names of `choices`: numbers and arrays."""
        if self._curve is None:
            return {}
        values: dict[str, Any] = {f"tuned_{name}": self.number(name) for name in self.to_tune()}
        labels = {name: np.array(tried, np.float64) for name, tried in self.labels().items()}
        return {**values, **labels, self.curve.name: self._curve.numpy()}


METHODS: Registry[Method] = Registry(
    "baseline",
    Method,  # type: ignore[type-abstract]
    "xdan.Method",
    "Register a method of your own by xdan.register_method, or pass an object of it to cycle()",
)
"""Methods by their names; `register_method` adds to them."""
