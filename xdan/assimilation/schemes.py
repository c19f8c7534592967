"""What cycling asks of a scheme, a trained network or a classical method, and how each answers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

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
    """A scheme that a record is cycled with, as a handle that travels between processes."""

    @abstractmethod
    def at_work(self, dtype: np.dtype[Any], device: str) -> Method:
        """Return the method that cycles; the parameters of a prepared scheme are those that were tuned."""

    @abstractmethod
    def prepared(self, record: Record, setup: Setup, observation: Array) -> Scheme:
        """Return the scheme ready for a record, whose leading part is given as tensors and as an array.

        Raises
        ------
        ValueError
            If it cannot work on the record.
        """

    @abstractmethod
    def watch(self, setup: Setup, seed: int) -> Watch:
        """How large the innovations of a run should be."""

    def check(self, labelled: LabelledRecord) -> None:  # noqa: B027 - a method looks at the record while it is prepared
        """Refuse a record before it is read."""

    def outside(self, labelled: LabelledRecord) -> list[str]:
        """Say in what a record differs from what the scheme was made for, and what to do."""
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

    def at_work(self, dtype: np.dtype[Any], device: str) -> Method:
        """The network as a method; one torch module for each process."""
        return self.network.method(torch.float64 if dtype == np.float64 else torch.float32, device)

    def prepared(self, record: Record, setup: Setup, observation: Array) -> Scheme:
        """Refuse another climate than the network's; there is nothing to tune."""
        self.at_work(setup.dtype, str(record.observation.device)).check_record(record)
        if setup.observing.direct:
            during = setup.observing.during(slice(0, observation.shape[1]))
            self.network.check_climate(observation, float(during.error_variance().mean()))
        return self

    def watch(self, setup: Setup, seed: int) -> Watch:
        """By the spread of members, or by what the network had in training, or by the climate."""
        remedy = "Train a network on this record with ds.dan.train(), or for longer, or compare with baseline('enkf-n')"
        method = self.network.method(torch.float64, "cpu")
        if method.gives_forecast_spread and setup.observing.direct:
            return Watch("spread", None, remedy)
        factor = validation_innovation(self.network.description)
        if factor is not None:
            return Watch("training", torch.tensor(factor, dtype=torch.float64), remedy)
        return Watch("climate", method.climate_variance(setup.dynamics, setup.observing, seed), remedy)

    def check(self, labelled: LabelledRecord) -> None:
        """Refuse states of other dims."""
        self.network.check(labelled.setup.dynamics)

    def outside(self, labelled: LabelledRecord) -> list[str]:
        """Say in what a record differs from the network's training."""
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

    def at_work(self, dtype: np.dtype[Any], device: str) -> Method:
        """The method itself."""
        return self.method

    def prepared(self, record: Record, setup: Setup, observation: Array) -> Scheme:
        """Prepare the method, and tune it."""
        with torch.no_grad():
            return MethodScheme(tune(self.method, record))

    def watch(self, setup: Setup, seed: int) -> Watch:
        """By the forecast's spread where the method gives one, otherwise by the climate."""
        remedy = (
            "Take more members, inflation= or localisation, or look whether units, R and the model's time step are "
            "right"
        )
        if self.method.gives_forecast_spread and setup.observing.direct:
            return Watch("spread", None, remedy)
        return Watch("climate", self.method.climate_variance(setup.dynamics, setup.observing, seed), remedy)


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
    raise TypeError(
        f"cannot cycle with {type(method).__name__}: expected a Network, as xdan.open_network() and train() give, "
        "or a method of xdan.core.methods; classical ones go by name through baseline()"
    )
