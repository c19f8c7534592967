"""The two schemes that a record is cycled with, a trained network and a method: one protocol for both."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch

from ..core.methods import Method, Record, tune
from ..network import Network
from ..records.blocks import Setup
from ..records.schema import Array
from ..records.setting import differences, observed_otherwise, validation_innovation
from ..records.watch import Watch

if TYPE_CHECKING:
    from ..records.record import LabelledRecord


class Scheme(ABC):
    """A scheme that a record is cycled with, as a handle that travels between processes.

    Attributes
    ----------
    remedy : str
        What to do about innovations that are too large.
    """

    remedy: ClassVar[str]

    @abstractmethod
    def method_on(self, dtype: np.dtype[Any], device: str) -> Method:
        """The method that cycles, computing in a dtype on a device; of a prepared scheme with the tuned parameters."""

    @abstractmethod
    def prepared(self, record: Record, setup: Setup, observation: Array) -> Scheme:
        """Return the scheme ready for a record, whose leading part comes as tensors and as an array.

        Raises
        ------
        ValueError
            If it cannot work on the record.
        """

    def watch(self, setup: Setup, seed: int) -> Watch:
        """How large innovations should be: by the forecast's spread, or as in training, or by the climate."""
        method = self.method_on(np.dtype(np.float64), "cpu")
        if method.gives_forecast_spread and setup.observing.direct:
            return Watch("spread", None, self.remedy)
        if self.training_innovation is not None:
            return Watch("training", torch.tensor(self.training_innovation, dtype=torch.float64), self.remedy)
        return Watch("climate", method.climate_variance(setup.dynamics, setup.observing, seed), self.remedy)

    @property
    def training_innovation(self) -> float | None:
        """Mean square innovation in units of R that was usual in training, where there was one."""
        return None

    def check(self, labelled: LabelledRecord) -> None:  # noqa: B027 - a method looks at the record while it is prepared
        """Refuse a record before it is read."""

    def warnings(self, labelled: LabelledRecord) -> list[str]:
        """Warnings of a record that differs from what the scheme was made for, with what to do."""
        return []

    def observed_otherwise(self, observation: Array) -> str:
        """Say how a record is observed otherwise than what the scheme was made for; nothing where it is not."""
        return ""

    @property
    def digest(self) -> str:
        """Digest of what the method's parameters do not say."""
        return ""

    @property
    def attributes(self) -> Mapping[str, Any]:
        """Attributes of a run, beside those that every method has."""
        return {}


@dataclass(frozen=True)
class NetworkScheme(Scheme):
    """A trained network."""

    network: Network
    remedy: ClassVar[str] = (
        "Train a network on this record with ds.dan.train(), or for longer, or compare with baseline('enkf-n')"
    )

    def method_on(self, dtype: np.dtype[Any], device: str) -> Method:
        """The network as a method; one torch module for each process."""
        return self.network.method(torch.float64 if dtype == np.float64 else torch.float32, device)

    def prepared(self, record: Record, setup: Setup, observation: Array) -> Scheme:
        """Refuse another climate than the network's; there is nothing to tune."""
        self.method_on(setup.dtype, str(record.observation.device)).check_record(record)
        if setup.observing.direct:
            during = setup.observing.during(slice(0, observation.shape[1]))
            self.network.check_climate(observation, during.error_variance())
        return self

    @property
    def training_innovation(self) -> float | None:
        """Of the network's validation record."""
        return validation_innovation(self.network.description)

    def check(self, labelled: LabelledRecord) -> None:
        """Refuse states of other dims."""
        self.network.check(labelled.setup.dynamics)

    def warnings(self, labelled: LabelledRecord) -> list[str]:
        """One warning, of all in which a record differs from the network's training."""
        differing = differences(self.network.description, labelled.setup, labelled.sites)
        if not differing:
            return []
        return [
            f"the network is used out of the setting that it was trained in: {'; '.join(differing)}. It may lose the "
            "truth: compare with baseline('enkf-n'), or train a network on this record with ds.dan.train()"
        ]

    def observed_otherwise(self, observation: Array) -> str:
        """Say how a record is observed otherwise than the network's training."""
        return observed_otherwise(self.network.description, observation)

    @property
    def digest(self) -> str:
        """Of the weights."""
        return self.network.digest

    @property
    def attributes(self) -> Mapping[str, Any]:
        """The digest of the weights."""
        return {"network_digest": self.network.digest}


@dataclass(frozen=True)
class MethodScheme(Scheme):
    """A method, classical or a user's."""

    method: Method
    remedy: ClassVar[str] = (
        "Take more members, inflation= or localisation, or look whether units, R and the model's time step are right"
    )

    def method_on(self, dtype: np.dtype[Any], device: str) -> Method:
        """The method itself."""
        return self.method

    def check(self, labelled: LabelledRecord) -> None:
        """Refuse a model, or intervals, that the method cannot work with."""
        dynamics = labelled.setup.dynamics
        self.method.check_dynamics(dynamics)
        self.method.check_steps(dynamics, sorted({int(step) for step in labelled.setup.steps} - {0}))

    def prepared(self, record: Record, setup: Setup, observation: Array) -> Scheme:
        """Prepare the method, and tune it."""
        with torch.no_grad():
            return MethodScheme(tune(self.method, record))


def scheme_of(method: Any) -> Scheme:
    """Take a network or a method.

    Raises
    ------
    TypeError
        For anything else.
    """
    if isinstance(method, Network):
        return NetworkScheme(method)
    if isinstance(method, Method):
        return MethodScheme(method)
    if isinstance(method, type):
        raise TypeError(
            f"cannot cycle with the class {method.__name__}: expected an object, such as {method.__name__}()"
        )
    raise TypeError(
        f"cannot cycle with {type(method).__name__}: expected a Network, as xdan.open_network() and train() give, "
        "of a torch module too, or a method of xdan.core.methods; classical ones go by name through baseline()"
    )
