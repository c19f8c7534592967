"""xdan: data assimilation networks on labelled arrays.

A network is trained through the assimilation cycles of a model to correct a single forecast, run beside tuned
classical methods, and scored like them. `import xdan` registers the `.dan` accessor and stays light: torch, dask and
hvplot are imported where they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from . import accessor as _accessor  # noqa: F401 - registers .dan

if TYPE_CHECKING:
    from .baselines import baseline as baseline
    from .core.dynamics import CustomDynamics as CustomDynamics
    from .core.dynamics import Dynamics as Dynamics
    from .core.dynamics import Lorenz63 as Lorenz63
    from .core.dynamics import Lorenz96 as Lorenz96
    from .core.dynamics import register_dynamics as register_dynamics
    from .core.methods import FiniteSizeEnKF as FiniteSizeEnKF
    from .core.methods import Method as Method
    from .core.methods import ThreeDVar as ThreeDVar
    from .core.networks import Committee as Committee
    from .core.networks import EnsembleCNN as EnsembleCNN
    from .core.networks import LinearInZeta as LinearInZeta
    from .core.networks import ResidualCNN as ResidualCNN
    from .core.observing import Sites as Sites
    from .core.symmetry import Group as Group
    from .covariances import covariance_spectrum as covariance_spectrum
    from .covariances import ensemble_covariance as ensemble_covariance
    from .covariances import principal_angles as principal_angles
    from .covariances import zero_innovation_bias as zero_innovation_bias
    from .cycling import cycle as cycle
    from .explorer import explore as explore
    from .exponents import lyapunov_spectrum as lyapunov_spectrum
    from .fitting import train as train
    from .gain_plots import angle_curves as angle_curves
    from .gain_plots import gain_map as gain_map
    from .gain_plots import histogram_curves as histogram_curves
    from .gain_plots import scaling_curves as scaling_curves
    from .gain_plots import spectrum_curves as spectrum_curves
    from .gains import gain as gain
    from .linearity import innovation_histogram as innovation_histogram
    from .linearity import scaling_of_increments as scaling_of_increments
    from .linearity import stein_identity as stein_identity
    from .lyapunov import lyapunov_vectors as lyapunov_vectors
    from .network import Network as Network
    from .network import committee as committee
    from .network import open_network as open_network
    from .plotting import hovmoller as hovmoller
    from .plotting import rmse_in_time as rmse_in_time
    from .plotting import save_page as save_page
    from .plotting import sweep_curves as sweep_curves
    from .plotting import training_history as training_history
    from .scaling import scaling_law as scaling_law
    from .schema import XdanWarning as XdanWarning
    from .scoring import rank_histogram as rank_histogram
    from .scoring import score as score
    from .sweeps import sweep as sweep
    from .symmetries import equivariance_error as equivariance_error
    from .symmetries import pattern_extent as pattern_extent
    from .symmetries import reconstruct_gain as reconstruct_gain
    from .symmetries import symmetry_group as symmetry_group
    from .twins import twin as twin

__version__ = "0.1.0"

_HOMES = {
    "Committee": "core.networks",
    "CustomDynamics": "core.dynamics",
    "Dynamics": "core.dynamics",
    "EnsembleCNN": "core.networks",
    "FiniteSizeEnKF": "core.methods",
    "Group": "core.symmetry",
    "LinearInZeta": "core.networks",
    "Lorenz63": "core.dynamics",
    "Lorenz96": "core.dynamics",
    "Method": "core.methods",
    "Network": "network",
    "ResidualCNN": "core.networks",
    "Sites": "core.observing",
    "ThreeDVar": "core.methods",
    "XdanWarning": "schema",
    "angle_curves": "gain_plots",
    "baseline": "baselines",
    "committee": "network",
    "covariance_spectrum": "covariances",
    "cycle": "cycling",
    "ensemble_covariance": "covariances",
    "equivariance_error": "symmetries",
    "explore": "explorer",
    "gain": "gains",
    "gain_map": "gain_plots",
    "histogram_curves": "gain_plots",
    "hovmoller": "plotting",
    "innovation_histogram": "linearity",
    "lyapunov_spectrum": "exponents",
    "lyapunov_vectors": "lyapunov",
    "open_network": "network",
    "pattern_extent": "symmetries",
    "principal_angles": "covariances",
    "rank_histogram": "scoring",
    "reconstruct_gain": "symmetries",
    "register_dynamics": "core.dynamics",
    "rmse_in_time": "plotting",
    "save_page": "plotting",
    "scaling_curves": "gain_plots",
    "scaling_of_increments": "linearity",
    "scaling_law": "scaling",
    "score": "scoring",
    "spectrum_curves": "gain_plots",
    "stein_identity": "linearity",
    "sweep": "sweeps",
    "sweep_curves": "plotting",
    "symmetry_group": "symmetries",
    "train": "fitting",
    "training_history": "plotting",
    "twin": "twins",
    "zero_innovation_bias": "covariances",
}

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'xdan' has no attribute {name!r}; it has {__all__}")
    value = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
