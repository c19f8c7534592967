"""The two schemes that cycle a record, a trained network and a method, behind one protocol."""

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
    """A scheme that cycles a record. It is a handle that can travel between processes.

    Attributes
    ----------
    remedy : str
        What to do if innovations are too large.
    """

    remedy: ClassVar[str]

    @abstractmethod
    def method_on(self, dtype: np.dtype[Any], device: str) -> Method:
        """The method that cycles, in a dtype on a device. A prepared scheme has tuned parameters."""

    @abstractmethod
    def prepared(self, record: Record, setup: Setup, observation: Array) -> Scheme:
        """Return the scheme prepared for a record. The record's leading part comes as tensors and as an array.

        Raises
        ------
        ValueError
            If the scheme cannot work on the record.
        """

    def watch(self, setup: Setup, seed: int) -> Watch:
        """The expected size of innovations: from the forecast's spread, from training, or from the climate."""
        method = self.method_on(np.dtype(np.float64), "cpu")
        if method.gives_forecast_spread and setup.observing.direct:
            return Watch("spread", None, self.remedy)
        if self.training_innovation is not None:
            return Watch("training", torch.tensor(self.training_innovation, dtype=torch.float64), self.remedy)
        return Watch("climate", method.climate_variance(setup.dynamics, setup.observing, seed), self.remedy)

    @property
    @abstractmethod
    def title(self) -> str:
        """Name of the scheme, which its progress bar shows."""

    @property
    def training_innovation(self) -> float | None:
        """Mean square innovation in training, in units of R; None if there was no training."""
        return None

    def check(self, labelled: LabelledRecord) -> None:  # noqa: B027 - a method checks the record in `prepared`
        """Refuse a wrong record before its data are read."""

    def warnings(self, labelled: LabelledRecord) -> list[str]:
        """Warnings if a record differs from the setting that the scheme was made for; they say what to do."""
        return []

    def observed_otherwise(self, observation: Array) -> str:
        """Say how the observations differ from those that the scheme was made for; "" if they do not differ."""
        return ""

    @property
    def digest(self) -> str:
        """Digest of everything that the method's parameters do not say."""
        return ""

    @property
    def attributes(self) -> Mapping[str, Any]:
        """Further attributes of a run, beside those of every method."""
        return {}


@dataclass(frozen=True)
class NetworkScheme(Scheme):
    """A trained network."""

    network: Network
    remedy: ClassVar[str] = (
        "Train a network on this record with ds.dan.train(), or for longer, or compare with baseline('enkf-n')"
    )

    def method_on(self, dtype: np.dtype[Any], device: str) -> Method:
        """The network as a method. Each process has one torch module."""
        return self.network.method(torch.float64 if dtype == np.float64 else torch.float32, device)

    def prepared(self, record: Record, setup: Setup, observation: Array) -> Scheme:
        """Refuse a climate that is not the network's. There is nothing to tune."""
        self.method_on(setup.dtype, str(record.observation.device)).check_record(record)
        if setup.observing.direct:
            during = setup.observing.during(slice(0, observation.shape[1]))
            self.network.check_climate(observation, during.error_variance())
        return self

    @property
    def title(self) -> str:
        """Name of the network."""
        return str(self.network.description["name"])

    @property
    def training_innovation(self) -> float | None:
        """Mean square innovation on the network's validation record."""
        return validation_innovation(self.network.description)

    def check(self, labelled: LabelledRecord) -> None:
        """Refuse states with other dims than the network's."""
        self.network.check(labelled.setup.dynamics)

    def warnings(self, labelled: LabelledRecord) -> list[str]:
        """One warning that names all differences between the record and the network's training."""
        differing = differences(self.network.description, labelled.setup, labelled.sites)
        if not differing:
            return []
        return [
            f"the network is used out of the setting that it was trained in: {'; '.join(differing)}. It may lose the "
            "truth: compare with baseline('enkf-n'), or train a network on this record with ds.dan.train()"
        ]

    def observed_otherwise(self, observation: Array) -> str:
        """Say how the observations differ from those of the network's training."""
        return observed_otherwise(self.network.description, observation)

    @property
    def digest(self) -> str:
        """Digest of the weights."""
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
        "Take more members, inflation= or localisation, or look whether the model's time step is right"
    )

    def method_on(self, dtype: np.dtype[Any], device: str) -> Method:
        """The method itself."""
        return self.method

    @property
    def title(self) -> str:
        """Name of the method."""
        return self.method.name

    def check(self, labelled: LabelledRecord) -> None:
        """Refuse a model or intervals with which the method cannot work."""
        dynamics = labelled.setup.dynamics
        self.method.check_dynamics(dynamics)
        self.method.check_steps(dynamics, sorted({int(step) for step in labelled.setup.steps} - {0}))

    def prepared(self, record: Record, setup: Setup, observation: Array) -> Scheme:
        """Prepare the method, and tune it."""
        with torch.no_grad():
            return MethodScheme(tune(self.method, record))


def scheme_of(method: Any) -> Scheme:
    """Make a scheme from a network or a method.

    Raises
    ------
    TypeError
        If `method` is neither.
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
