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
    from .assimilation.baselines import baseline as baseline
    from .assimilation.cycling import cycle as cycle
    from .assimilation.scoring import rank_histogram as rank_histogram
    from .assimilation.scoring import score as score
    from .assimilation.twins import twin as twin
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
    from .diagnostics.covariances import covariance_spectrum as covariance_spectrum
    from .diagnostics.covariances import ensemble_covariance as ensemble_covariance
    from .diagnostics.covariances import principal_angles as principal_angles
    from .diagnostics.covariances import zero_innovation_bias as zero_innovation_bias
    from .diagnostics.exponents import lyapunov_spectrum as lyapunov_spectrum
    from .diagnostics.gains import gain as gain
    from .diagnostics.linearity import innovation_histogram as innovation_histogram
    from .diagnostics.linearity import scaling_of_increments as scaling_of_increments
    from .diagnostics.linearity import stein_identity as stein_identity
    from .diagnostics.lyapunov import lyapunov_vectors as lyapunov_vectors
    from .diagnostics.symmetries import equivariance_error as equivariance_error
    from .diagnostics.symmetries import pattern_extent as pattern_extent
    from .diagnostics.symmetries import reconstruct_gain as reconstruct_gain
    from .diagnostics.symmetries import symmetry_group as symmetry_group
    from .network import Network as Network
    from .network import committee as committee
    from .network import open_network as open_network
    from .plots.explorer import explore as explore
    from .plots.gain_plots import angle_curves as angle_curves
    from .plots.gain_plots import gain_map as gain_map
    from .plots.gain_plots import histogram_curves as histogram_curves
    from .plots.gain_plots import scaling_curves as scaling_curves
    from .plots.gain_plots import spectrum_curves as spectrum_curves
    from .plots.plotting import hovmoller as hovmoller
    from .plots.plotting import rmse_in_time as rmse_in_time
    from .plots.plotting import save_page as save_page
    from .plots.plotting import sweep_curves as sweep_curves
    from .plots.plotting import training_history as training_history
    from .records.schema import XdanWarning as XdanWarning
    from .sweeps.scaling_law import scaling_law as scaling_law
    from .sweeps.sweeps import sweep as sweep
    from .training.fitting import train as train

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
    "XdanWarning": "records.schema",
    "angle_curves": "plots.gain_plots",
    "baseline": "assimilation.baselines",
    "committee": "network",
    "covariance_spectrum": "diagnostics.covariances",
    "cycle": "assimilation.cycling",
    "ensemble_covariance": "diagnostics.covariances",
    "equivariance_error": "diagnostics.symmetries",
    "explore": "plots.explorer",
    "gain": "diagnostics.gains",
    "gain_map": "plots.gain_plots",
    "histogram_curves": "plots.gain_plots",
    "hovmoller": "plots.plotting",
    "innovation_histogram": "diagnostics.linearity",
    "lyapunov_spectrum": "diagnostics.exponents",
    "lyapunov_vectors": "diagnostics.lyapunov",
    "open_network": "network",
    "pattern_extent": "diagnostics.symmetries",
    "principal_angles": "diagnostics.covariances",
    "rank_histogram": "assimilation.scoring",
    "reconstruct_gain": "diagnostics.symmetries",
    "register_dynamics": "core.dynamics",
    "rmse_in_time": "plots.plotting",
    "save_page": "plots.plotting",
    "scaling_curves": "plots.gain_plots",
    "scaling_of_increments": "diagnostics.linearity",
    "scaling_law": "sweeps.scaling_law",
    "score": "assimilation.scoring",
    "spectrum_curves": "plots.gain_plots",
    "stein_identity": "diagnostics.linearity",
    "sweep": "sweeps.sweeps",
    "sweep_curves": "plots.plotting",
    "symmetry_group": "diagnostics.symmetries",
    "train": "training.fitting",
    "training_history": "plots.plotting",
    "twin": "assimilation.twins",
    "zero_innovation_bias": "diagnostics.covariances",
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
