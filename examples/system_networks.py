"""Systems beyond the papers' Lorenz-96: the observations of each, the methods that are compared, and the networks."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

import xdan

from common import Methods, archive, kept, trained

DECAYED = xdan.Optimiser(learning_rate=0.01, adam_learning_rate=0.002, weight_decay=0.1)
CAREFUL = xdan.Optimiser(learning_rate=0.008, adam_learning_rate=0.0016, weight_decay=0.1)
PSI_ERROR = 2.0e6  # m2 s-1, a tenth of the deviation of the stream function on the sphere


@dataclass(frozen=True)
class Member:
    """A network of a system.

    Attributes
    ----------
    shipped : str or None
        The name of the network if it comes with xdan.
    network : AnalysisNetwork
    settings : mapping
        Settings of its training.
    changed : mapping
        Parameters with which the network is used, if they differ from those of its training.
    """

    shipped: str | None
    network: xdan.AnalysisNetwork
    settings: Mapping[str, Any]
    changed: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class System:
    """A model, its observations, and the methods that are compared on it.

    Attributes
    ----------
    title : str
    experiment : TwinExperiment
    methods : mapping
        Classical methods with their parameters, by their names in a table.
    members : mapping
        Networks by their names in a table.
    burn_in, cycles, trajectories : int
        Sizes of the test record.
    unit : float
        Unit of the errors in a table.
    states : int, optional
        Number of states of a free run that stand for the climatology. By default the climatology of the model.
    """

    title: str
    experiment: xdan.TwinExperiment
    methods: Methods
    members: Mapping[str, Member] = field(default_factory=dict)
    burn_in: int = 100
    cycles: int = 200
    trajectories: int = 8
    unit: float = 1.0
    states: int | None = None

    def climatology(self, out: Path) -> np.ndarray | None:
        """States of a free run, which are saved in a folder; None for the climatology of the model."""
        if self.states is None:
            return None

        def free_run() -> xr.Dataset:
            values = archive(self.experiment, self.states or 0, seed=3)
            return xr.Dataset({"state": (("sample", *self.experiment.dynamics.dims), values)})

        model = self.experiment.dynamics
        path = out / f"climatology-{model.name}-{model.space.size}.zarr"
        return kept(path, free_run, states=self.states).state.values

    def record(self, out: Path, seed: int, cycles: int, trajectories: int) -> xr.Dataset:
        """A record that no network has seen."""
        words = {"cycles": self.burn_in + cycles, "trajectories": trajectories, "seed": seed}
        return xdan.twin(self.experiment, **words, climatology=self.climatology(out)).compute()

    def network(self, name: str, out: Path, minutes: float, device: str = "auto") -> xdan.Network:
        """A network that comes with xdan, or a network that is trained for some minutes and saved in a folder."""
        one = self.members[name]
        if not minutes:
            if one.shipped is None:
                raise SystemExit(f"the network {name!r} does not come with xdan: give --minutes, to train it")
            return xdan.open_network(one.shipped).with_parameters(**one.changed)
        words = {"objective": "mse", "seed": 2, "climatology": self.climatology(out), "device": device, **one.settings}
        path = out / f"{name.replace(' ', '-')}.zarr"
        net = trained(path, self.experiment, one.network, minutes=minutes, **words)
        return net.with_parameters(**one.changed)


def kuramoto_sivashinsky(sites: int = 128) -> xdan.KuramotoSivashinsky:
    """A ring whose length is proportional to its number of sites."""
    return xdan.KuramotoSivashinsky(sites=sites, length=sites / 128 * 32 * math.pi)


def radiosondes(count: int = 200) -> dict[str, np.ndarray]:
    """Places on two continents, most of them in the north."""
    draw = np.random.default_rng(5)
    sine, eastern = draw.uniform(-0.3, 0.95, count), draw.random(count) < 0.5
    lon = np.where(eastern, draw.uniform(0.0, 150.0, count), draw.uniform(230.0, 310.0, count))
    return {"lat": np.degrees(np.arcsin(sine)), "lon": lon}


RING, FLOW = kuramoto_sivashinsky(), xdan.SphereQG()
POINT = RING.length / RING.sites
WAVES = {"window": 12, "batch": 128, "validate_every": 300, "optimiser": DECAYED}
LONG = {"window": 16, "validate_every": 300, "optimiser": DECAYED}
WEATHER = {"window": 8, "batch": 64, "validate_every": 200, "optimiser": DECAYED}
ON_RING: dict[str, Any] = {"filters": 32, "kernel": 7, "blocks": 5, "space": RING.space}
ON_SPHERE: dict[str, Any] = {"filters": 32, "space": FLOW.space}

BESIDE_MATRIX = Member(
    "kuramoto-sivashinsky-kalman",
    xdan.KalmanCNN(filters=32, blocks=4, kernel=5, memory=8, c2=3.0, space=RING.space),
    {"window": 8, "batch": 48, "validate_every": 300, "optimiser": CAREFUL},
)
BESIDE_COLUMNS = Member(
    "sphere-qg-kalman",
    xdan.KalmanCNN(filters=24, blocks=3, memory=4, diagonals=5, c2=0.0, columns=32, inflation=1.04, space=FLOW.space),
    {"window": 6, "batch": 48, "validate_every": 150, "optimiser": CAREFUL},
)
# Sizes for a sphere with few observed places: records are longer, as filters take longer to settle.
FEW_PLACES: dict[str, Any] = {
    "methods": {
        "3D-Var": ("3d-var", {}),
        "ETKF, 60 members": ("etkf", {"members": 60, "inflation": 1.02}),
        "second-order Kalman filter, 32 columns": (
            "second-order-kalman",
            {"columns": 32, "inflation": 1.05, "c2": 0.01},
        ),
    },
    "members": {"network beside 32 columns, of all points": BESIDE_COLUMNS},
    "trajectories": 4,
    "unit": PSI_ERROR,
    "states": 1024,
}
TUNED = {
    "radius": "tune",
    "inflation": "tune",
    "candidates": {"radius": [3.0, 5.0], "inflation": [1.02, 1.06]},
    "tune_on": "truth",
}

SYSTEMS = {
    "kuramoto-sivashinsky": System(
        "Kuramoto-Sivashinsky, 128 points on 32 pi, every point observed every 1.0",
        xdan.TwinExperiment(RING, interval=1.0),
        {
            "3D-Var, trained B": ("3d-var", {"background": "trained"}),
            "ETKF, 20 members": ("etkf", {"members": 20, "inflation": 1.03, "rotate": True}),
            "LETKF, 16 members": ("letkf", {"members": 16, "radius": 28 * POINT, "inflation": 1.02}),
            "second-order Kalman filter": ("second-order-kalman", {"c2": 4.0}),
            "iterated Kalman smoother, lag 4": ("iterated-kalman-smoother", {"lag": 4, "c2": 4.0}),
        },
        {
            "network": Member("kuramoto-sivashinsky", xdan.ResidualCNN(**ON_RING), WAVES),
            "network with memory": Member("kuramoto-sivashinsky-memory", xdan.ResidualCNN(**ON_RING, memory=12), WAVES),
            "network beside a Kalman filter": BESIDE_MATRIX,
            "the same, put back 4 intervals": dataclasses.replace(BESIDE_MATRIX, changed={"lag": 4}),
        },
    ),
    "kuramoto-sivashinsky-sparse": System(
        "Kuramoto-Sivashinsky, every eighth point observed",
        xdan.TwinExperiment(RING, interval=1.0, observe=xdan.Sites.every(8)),
        {
            "3D-Var, trained B": ("3d-var", {"background": "trained"}),
            "EnKF-N, 40 members": ("enkf-n", {"members": 40}),
            "EnKF-N, 100 members": ("enkf-n", {"members": 100}),
            "second-order Kalman filter": ("second-order-kalman", {"c2": 3.0}),
        },
        {
            "network with memory": Member(
                "kuramoto-sivashinsky-sparse",
                xdan.ResidualCNN(**ON_RING, memory=16),
                {**LONG, "batch": 96},
            )
        },
        burn_in=150,
        cycles=250,
    ),
    "lorenz96-sparse": System(
        "Lorenz-96, every fourth site observed every 0.15",
        xdan.TwinExperiment(xdan.Lorenz96(), interval=0.15, observe=xdan.Sites.every(4)),
        {
            "3D-Var": ("3d-var", {}),
            "EnKF-N, 40 members": ("enkf-n", {"members": 40}),
            "EnKF-N, 100 members": ("enkf-n", {"members": 100}),
            "LETKF, 40 members, tuned": ("letkf", {"members": 40, **TUNED}),
            "IEnKS-N, 40 members, lag 1": ("ienks-n", {"members": 40, "lag": 1}),
            "IEnKS-N, 40 members, lag 4": ("ienks-n", {"members": 40, "lag": 4}),
        },
        {
            "network with memory": Member(
                "lorenz96-sparse",
                xdan.ResidualCNN(filters=40, kernel=7, blocks=5, memory=24),
                {**LONG, "batch": 192},
            )
        },
        burn_in=200,
        cycles=400,
        trajectories=16,
    ),
    "sphere": System(
        "quasi-geostrophic flow on the sphere, T21, every point observed every 6 hours",
        xdan.TwinExperiment(FLOW, interval=0.25, error_std=PSI_ERROR),
        {
            "3D-Var": ("3d-var", {}),
            "LETKF, 20 members": ("letkf", {"members": 20, "radius": 25.0, "inflation": 1.03}),
            "ETKF, 60 members": ("etkf", {"members": 60, "inflation": 1.02}),
            "EnKF-N, 60 members": ("enkf-n", {"members": 60}),
            "second-order Kalman filter, 32 columns": (
                "second-order-kalman",
                {"columns": 32, "inflation": 1.05, "c2": 4.0},
            ),
            "LETKF, 40 members": ("letkf", {"members": 40, "radius": 35.0, "inflation": 1.02}),
        },
        {
            "network": Member("sphere-qg", xdan.ResidualCNN(**ON_SPHERE, kernel=5, blocks=5), WEATHER),
            "network with memory": Member(
                "sphere-qg-memory",
                xdan.ResidualCNN(**ON_SPHERE, kernel=5, blocks=4, memory=8),
                {**WEATHER, "window": 10},
            ),
            "network beside 32 columns": BESIDE_COLUMNS,
        },
        unit=PSI_ERROR,
        states=1024,
    ),
    "sphere-quarter": System(
        "quasi-geostrophic flow on the sphere, T21, every fourth meridian observed every 6 hours",
        xdan.TwinExperiment(FLOW, interval=0.25, error_std=PSI_ERROR, observe=xdan.Sites.every(4)),
        **FEW_PLACES,
        burn_in=130,
        cycles=70,
    ),
    "sphere-radiosondes": System(
        "quasi-geostrophic flow on the sphere, T21, observed at 200 places on two continents every 6 hours",
        xdan.TwinExperiment(FLOW, interval=0.25, error_std=PSI_ERROR, positions=radiosondes()),
        **FEW_PLACES,
        burn_in=150,
        cycles=50,
    ),
}
