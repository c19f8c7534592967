"""The `.dan` accessor: every method forwards to the function it names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import xarray as xr

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .core.dynamics import CorrectedDynamics, Dynamics, SurrogateDynamics
    from .core.methods import Method
    from .core.symmetry import Group
    from .network import Network


@xr.register_dataset_accessor("dan")
class DanAccessor:
    """Data assimilation on a Dataset of observations and, for twins, their truth."""

    def __init__(self, ds: xr.Dataset) -> None:
        self._ds = ds

    def train(self, *args: Any, **kwargs: Any) -> Network:
        """Train a network on this record: `xdan.train`."""
        from .training.fitting import train

        return train(self._ds, *args, **kwargs)

    def cycle(self, method: Network | Method, **kwargs: Any) -> xr.Dataset:
        """Run a method over this record: `xdan.cycle`."""
        from .assimilation.cycling import cycle

        return cycle(self._ds, method, **kwargs)

    def baseline(self, name: str, **kwargs: Any) -> xr.Dataset:
        """Tune and run a classical method over this record: `xdan.baseline`."""
        from .assimilation.baselines import baseline

        return baseline(self._ds, name, **kwargs)

    def estimate_errors(self, method: str = "em", **kwargs: Any) -> xr.Dataset:
        """Estimate Q and R from this record: `xdan.estimate_errors`."""
        from .estimation.errors import estimate_errors

        return estimate_errors(self._ds, method, **kwargs)

    def estimate_parameters(self, *args: Any, **kwargs: Any) -> xr.Dataset:
        """Estimate parameters of a model from this record: `xdan.estimate_parameters`."""
        from .estimation.parameters import estimate_parameters

        return estimate_parameters(self._ds, *args, **kwargs)

    def gain(self, network: Network, **kwargs: Any) -> xr.DataArray:
        """Differentiate a network at this record's states: `xdan.gain`."""
        from .diagnostics.gains import gain

        return gain(self._ds, network, **kwargs)

    def explore(self, *args: Any, **kwargs: Any) -> Any:
        """Look around in this record, runs and gains with widgets: `xdan.explore`."""
        from .plots.explorer import explore

        return explore(self._ds, *args, **kwargs)

    def symmetry_group(self, **kwargs: Any) -> Group:
        """Find this record's symmetries: `xdan.symmetry_group`."""
        from .diagnostics.symmetries import symmetry_group

        return symmetry_group(self._ds, **kwargs)

    def equivariance_error(self, network: Network, **kwargs: Any) -> xr.DataArray:
        """Measure how far a network is from this record's symmetries: `xdan.equivariance_error`."""
        from .diagnostics.symmetries import equivariance_error

        return equivariance_error(self._ds, network, **kwargs)

    def zero_innovation_bias(self, network: Network, **kwargs: Any) -> xr.Dataset:
        """Measure a network's increments without innovation: `xdan.zero_innovation_bias`."""
        from .diagnostics.covariances import zero_innovation_bias

        return zero_innovation_bias(self._ds, network, **kwargs)

    def scaling_of_increments(self, network: Network, run: xr.Dataset, *args: Any, **kwargs: Any) -> xr.Dataset:
        """Measure how increments grow with innovations: `xdan.scaling_of_increments`."""
        from .diagnostics.linearity import scaling_of_increments

        return scaling_of_increments(self._ds, network, run, *args, **kwargs)

    def stein_identity(self, network: Network, **kwargs: Any) -> xr.Dataset:
        """Compare mean derivatives with regression slopes: `xdan.stein_identity`."""
        from .diagnostics.linearity import stein_identity

        return stein_identity(self._ds, network, **kwargs)

    def innovation_histogram(self, network: Network, run: xr.Dataset, **kwargs: Any) -> xr.DataArray:
        """Count the projected innovations of a run: `xdan.innovation_histogram`."""
        from .diagnostics.linearity import innovation_histogram

        return innovation_histogram(self._ds, network, run, **kwargs)

    def lyapunov_vectors(self, **kwargs: Any) -> xr.Dataset:
        """Find the Lyapunov vectors at this record's states: `xdan.lyapunov_vectors`."""
        from .diagnostics.lyapunov import lyapunov_vectors

        return lyapunov_vectors(self._ds, **kwargs)

    def score(self, run: xr.Dataset | Mapping[str, xr.Dataset], **kwargs: Any) -> xr.Dataset:
        """Score a run on this record, or several: `xdan.score`."""
        from .assimilation.scoring import score

        return score(self._ds, run, **kwargs)

    def learn_correction(self, run: xr.Dataset, *args: Any, **kwargs: Any) -> CorrectedDynamics:
        """Learn what the model of a run lacks from its increments: `xdan.learn_correction`."""
        from .estimation.corrections import learn_correction

        return learn_correction(self._ds, run, *args, **kwargs)

    def train_surrogate(self, *args: Any, **kwargs: Any) -> SurrogateDynamics:
        """Train a network to take the place of this record's model: `xdan.train_surrogate`."""
        from .estimation.surrogates import train_surrogate

        return train_surrogate(self._ds, *args, **kwargs)

    def forecast_skill(self, models: Mapping[str, Dynamics], **kwargs: Any) -> xr.Dataset:
        """Forecast by several models from this record's truth: `xdan.forecast_skill`."""
        from .estimation.model_skill import forecast_skill

        return forecast_skill(self._ds, models, **kwargs)

    def rank_histogram(self, run: xr.Dataset | Mapping[str, xr.Dataset], **kwargs: Any) -> xr.DataArray:
        """Rank the truth among a run's members: `xdan.rank_histogram`."""
        from .assimilation.ranks import rank_histogram

        return rank_histogram(self._ds, run, **kwargs)

    def spread_error(self, run: xr.Dataset | Mapping[str, xr.Dataset], **kwargs: Any) -> xr.Dataset:
        """Compare a run's spread with its error: `xdan.spread_error`."""
        from .assimilation.spread_errors import spread_error

        return spread_error(self._ds, run, **kwargs)

    def reliability(self, run: xr.Dataset | Mapping[str, xr.Dataset], **kwargs: Any) -> xr.Dataset:
        """Compare a run's probabilities with frequencies: `xdan.reliability`."""
        from .assimilation.reliability import reliability

        return reliability(self._ds, run, **kwargs)

    def hovmoller(self, run: xr.Dataset, **kwargs: Any) -> Any:
        """Draw truth, analysis and error in space and time: `xdan.hovmoller`."""
        from .plots.state_plots import hovmoller

        return hovmoller(self._ds, run, **kwargs)

    def field_maps(self, run: xr.Dataset, **kwargs: Any) -> Any:
        """Draw maps of truth, analysis and error at one time: `xdan.field_maps`."""
        from .plots.state_plots import field_maps

        return field_maps(self._ds, run, **kwargs)

    def component_curves(self, run: xr.Dataset, **kwargs: Any) -> Any:
        """Draw single components of truth and analysis in time: `xdan.component_curves`."""
        from .plots.state_plots import component_curves

        return component_curves(self._ds, run, **kwargs)

    def rmse_in_time(self, runs: dict[str, xr.Dataset], **kwargs: Any) -> Any:
        """Draw the RMSE of several runs in time: `xdan.rmse_in_time`."""
        from .plots.plotting import rmse_in_time

        return rmse_in_time(self._ds, runs, **kwargs)
