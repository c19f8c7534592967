"""The arguments of a training, checked one by one. Numbers and bools become those of Python."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import xarray as xr
from torch import nn

from ..core.checks import integer, perhaps, real, shown, switch
from ..core.dynamics import Dynamics
from ..core.learning import Objective, Optimiser, objective_by_name, objective_names
from ..core.learning.objectives import RootSquaredError, check_complete
from ..core.networks import AnalysisNetwork, ModuleNetwork, known_networks, network_parameters
from ..core.random import check_seed
from ..core.twin import TwinExperiment
from ..network import Network
from ..records.climatology import with_climatology
from ..records.location import StoreLike, check_rewritable, locate
from ..records.record import RecordWords

LENGTHS = ("steps", "epochs", "minutes")  # each sets the length of the training: at most one of them may be set
_WORDS = RecordWords.__optional_keys__


@dataclass(frozen=True, eq=False)
class TrainingArguments:
    """The arguments of `train`, which describes them.

    A dynamics becomes a twin experiment, the name of an objective becomes the objective, and a missing optimiser
    becomes the default one.

    Raises
    ------
    TypeError
        For an argument of a wrong type, or an unknown word.
    ValueError
        For a wrong value, or arguments that do not go together.
    """

    source: xr.Dataset | TwinExperiment
    network: str | AnalysisNetwork | Network | nn.Module = "residual-cnn"
    memory: int | None = None
    objective: Objective = field(default_factory=RootSquaredError)
    teacher: xr.Dataset | str | Mapping[str, Any] | None = None
    window: int = 12
    batch: int = 24
    trajectories: int | None = None
    steps: int | None = None
    epochs: int | None = None
    minutes: float | None = None
    patience: int | None = None
    optimiser: Optimiser = field(default_factory=Optimiser)
    validation: float = 0.1
    validate_every: int = 250
    on_validation: Callable[[dict[str, Any]], Any] | None = None
    seed: int = 0
    device: str = "auto"
    processes: int | None = None
    checkpoint: StoreLike | None = None
    progress: bool | Mapping[str, Any] = True
    words: RecordWords = field(default_factory=RecordWords)

    def __post_init__(self) -> None:
        optimiser: Any = self.optimiser
        self._set("optimiser", Optimiser() if optimiser is None else optimiser)
        self._check_words()
        self._take_module()
        self._check_kinds()
        self._set("source", TwinExperiment(self.source) if isinstance(self.source, Dynamics) else self.source)
        self._take_climatology()
        self._set("objective", _objective(self.objective))
        for label in ("window", "batch", "validate_every"):
            self._set(label, integer(label, getattr(self, label), least=1))
        self._set("seed", check_seed(self.seed))
        positive = ("steps", "epochs", "patience", "processes", "trajectories")
        for label, least in (*((one, 1) for one in positive), ("memory", 0)):
            if getattr(self, label) is not None:
                self._set(label, integer(label, getattr(self, label), least=least))
        if self.minutes is not None:
            self._set("minutes", real("minutes", self.minutes, above=0.0))
        self._set("validation", real("validation", self.validation, above=0.0, below=1.0))
        if not isinstance(self.progress, Mapping):
            self._set("progress", switch("progress", self.progress))
        self._check_together()
        if self.checkpoint is not None:
            self._set("checkpoint", locate(self.checkpoint, "checkpoint"))
            check_rewritable(self.checkpoint, "checkpoint")

    @property
    def shows_progress(self) -> bool:
        """Whether progress bars are drawn."""
        quiet = isinstance(self.progress, Mapping) and bool(self.progress.get("disable"))
        return self.progress is not False and not quiet

    def _set(self, label: str, value: Any) -> None:
        object.__setattr__(self, label, value)

    def _take_module(self) -> None:
        """Make a network of a torch module, with the memory that stands beside it."""
        network: Any = self.network
        if isinstance(network, type) and issubclass(network, nn.Module):
            name = network.__name__
            raise TypeError(f"network={name} is a class: expected an instance of it, such as {name}(...)")
        if isinstance(network, nn.Module) and not isinstance(network, AnalysisNetwork):
            self._set("network", ModuleNetwork(network, 0 if self.memory is None else self.memory))
            self._set("memory", None)

    def _take_climatology(self) -> None:
        """Give the model of an endless twin its climatology. A Dataset is read with `climatology`."""
        if isinstance(self.source, TwinExperiment):
            words = dict(self.words)
            dynamics = with_climatology(self.source.dynamics, words.pop("climatology", None))
            self._set("source", replace(self.source, dynamics=dynamics))
            self._set("words", words)

    def _check_words(self) -> None:
        """Refuse unknown keywords as Python does, and say where keywords of early versions have gone."""
        known = [entry.name for entry in fields(self)]
        homes = {}
        if isinstance(self.network, str) and self.network in known_networks():
            cls = known_networks()[self.network][0].__name__
            homes = {
                word: f"the network: pass network=xdan.{cls}({word}=...)" for word in network_parameters(self.network)
            }
        homes |= {entry.name: "xdan.TwinExperiment, to train on" for entry in fields(TwinExperiment)}
        homes |= {entry.name: "xdan.Optimiser, for optimiser=" for entry in fields(Optimiser)}
        for word in self.words:
            if word not in _WORDS:
                place = f"; {word}= is a parameter of {homes[word]}" if word in homes else ""
                raise TypeError(
                    f"train() got an unexpected keyword argument {word!r}: expected its parameters, or the words of a "
                    f"record, {sorted(_WORDS)}{place or perhaps(word, [*known, *_WORDS])}"
                )

    def _check_kinds(self) -> None:
        """Refuse arguments of a wrong type; numbers are checked elsewhere."""
        words: Mapping[str, Any] = {**dict.fromkeys(_WORDS), **self.words}
        named = (type(None), str, Mapping)
        kinds: dict[str, tuple[Any, Any, str]] = {
            "network": (
                self.network,
                (str, AnalysisNetwork, Network),
                "a registered name, an architecture such as xdan.ResidualCNN(), a trained Network, or an instance of "
                "torch.nn.Module whose forward(x, zeta) gives the analysis",
            ),
            "optimiser": (
                self.optimiser,
                Optimiser,
                "an xdan.Optimiser, such as xdan.Optimiser(learning_rate=0.001)",
            ),
            "device": (self.device, str, "'auto', 'cpu', 'cuda' or 'cuda:0' and so on"),
            "progress": (self.progress, (bool, np.bool_, Mapping), "True, False or a mapping of tqdm's arguments"),
            "teacher": (
                self.teacher,
                (type(None), xr.Dataset, str, Mapping),
                "the Dataset that baseline() returned, or with objective='covariance' a method's name",
            ),
            "dynamics": (words["dynamics"], (type(None), Dynamics), "an xdan Dynamics such as xdan.Lorenz96()"),
            "truth": (words["truth"], named, "the name of a variable, or a mapping of fields to names"),
            "observation": (words["observation"], named, "the name of a variable, or a mapping of fields to names"),
        }
        if not isinstance(self.source, (xr.Dataset, TwinExperiment, Dynamics)):
            raise TypeError(
                f"cannot train on source={shown(self.source)}: expected an xarray Dataset or an xdan Dynamics, or a "
                "TwinExperiment of it"
            )
        for label, (value, kind, expected) in kinds.items():
            if not isinstance(value, kind):
                raise TypeError(f"{label}={shown(value)}: expected {expected}")
        if self.on_validation is not None and not _takes_one(self.on_validation):
            raise TypeError(
                f"on_validation={shown(self.on_validation)}: expected a function of one dict, which may return True to "
                "stop the training"
            )

    def _check_together(self) -> None:
        """Refuse arguments that do not fit one another."""
        lengths = [label for label in LENGTHS if getattr(self, label) is not None]
        if len(lengths) > 1:
            raise ValueError(f"{lengths} each say how long to train: expected one of steps=, epochs= and minutes=")
        if self.memory is not None and not isinstance(self.network, str):
            raise ValueError(
                f"memory={self.memory} goes with a network given by name: expected None; set it in the architecture "
                "instead"
            )
        words = [word for word, value in self.words.items() if value is not None]
        if isinstance(self.source, TwinExperiment) and words:
            raise ValueError(
                f"{words} go with a Dataset: expected none of them, an endless twin has error_std=, operator= and "
                "positions= in its TwinExperiment"
            )
        if isinstance(self.source, xr.Dataset) and self.trajectories is not None:
            raise ValueError(
                "['trajectories'] describe an endless twin; a Dataset brings its own, expected none of them"
            )


def _takes_one(function: Any) -> bool:
    """Whether an object can be called with one argument. Functions of C may not tell, and are taken as such."""
    try:
        inspect.signature(function).bind({})
    except TypeError:
        return False
    except ValueError:
        pass
    return True


def _objective(objective: Any) -> Objective:
    """The objective itself, or the objective with this name."""
    if isinstance(objective, type) and issubclass(objective, Objective):
        raise TypeError(
            f"objective={objective.__name__}: expected an object of this class, such as {objective.__name__}()"
        )
    if not isinstance(objective, Objective):
        if not isinstance(objective, str):
            raise TypeError(
                f"objective={shown(objective)}: expected an Objective, or one of {sorted(objective_names())}"
            )
        return objective_by_name(objective)
    check_complete(type(objective))
    return objective
