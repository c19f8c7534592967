"""Systems beyond Lorenz-96, how each is observed, and the networks that are trained for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

import xdan

from common import Methods, archive, kept, trained

SHIPPED = Path(__file__).parent.parent / "xdan" / "trained"
DECAYED = xdan.Optimiser(learning_rate=0.01, adam_learning_rate=0.002, weight_decay=0.1)
CAREFUL = xdan.Optimiser(learning_rate=0.008, adam_learning_rate=0.0016, weight_decay=0.1)
STATES = 1024  # that stand for the climate of models of which 4,096 spin-ups take long
PSI_ERROR = 2.0e6  # a tenth of the deviation of the stream function on the sphere, m2 s-1


@dataclass(frozen=True)
class Trained:
    """A network, and how it is trained."""

    network: xdan.AnalysisNetwork
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class System:
    """A model, how it is observed, and what is compared on it.

    Attributes
    ----------
    experiment : TwinExperiment
    unit : float
        In which errors are given.
    burn_in, cycles, trajectories : int
        Of the test record.
    methods : mapping
        Classical methods by their names, each with its parameters.
    networks : mapping
        Networks by their names.
    archive : int, optional
        States that stand for the climatology, the model's own by default.
    """

    title: str
    experiment: xdan.TwinExperiment
    burn_in: int
    cycles: int
    trajectories: int
    methods: Methods
    networks: Mapping[str, Trained] = field(default_factory=dict)
    unit: float = 1.0
    archive: int | None = None

    def climatology(self, out: Path) -> np.ndarray | None:
        """States of a free run, kept in a folder, or None for the model's own."""
        if self.archive is None:
            return None

        def free_run() -> xr.Dataset:
            states = archive(self.experiment, self.archive, seed=3)
            return xr.Dataset({"state": (("sample", *self.experiment.dynamics.dims), states)})

        return kept(out / "climatology.zarr", free_run, states=self.archive).state.values

    def record(self, out: Path, seed: int) -> xr.Dataset:
        """The test record."""
        sizes = {"cycles": self.burn_in + self.cycles, "trajectories": self.trajectories}
        return xdan.twin(self.experiment, **sizes, seed=seed, climatology=self.climatology(out)).compute()

    def train(self, name: str, out: Path, minutes: float, **settings: Any) -> xdan.Network:
        """Train a network for some minutes, or open what is kept of it in a folder."""
        one = self.networks[name]
        words = {"objective": "mse", "seed": 2, "climatology": self.climatology(out), **one.settings, **settings}
        return trained(out / f"{name}.zarr", self.experiment, one.network, minutes=minutes, **words)
