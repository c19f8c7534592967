# The verbs of the accessor and the modules that they come from. `accessor.py` reads the imports at run time.

from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, TypeVar

import xarray as xr

from .assimilation.baselines import baseline as baseline
from .assimilation.cycling import cycle as cycle
from .assimilation.forecast_scores import score_forecasts as score_forecasts
from .assimilation.forecasts import forecast as forecast
from .assimilation.ranks import rank_histogram as rank_histogram
from .assimilation.reanalysis import reanalysis as reanalysis
from .assimilation.reliability import reliability as reliability
from .assimilation.scoring import score as score
from .assimilation.spread_errors import spread_error as spread_error
from .diagnostics.covariances import zero_innovation_bias as zero_innovation_bias
from .diagnostics.gains import gain as gain
from .diagnostics.linearity import innovation_histogram as innovation_histogram
from .diagnostics.linearity import scaling_of_increments as scaling_of_increments
from .diagnostics.linearity import stein_identity as stein_identity
from .diagnostics.lyapunov import lyapunov_vectors as lyapunov_vectors
from .diagnostics.symmetries import equivariance_error as equivariance_error
from .diagnostics.symmetries import symmetry_group as symmetry_group
from .estimation.corrections import learn_correction as learn_correction
from .estimation.errors import estimate_errors as estimate_errors
from .estimation.model_skill import forecast_skill as forecast_skill
from .estimation.parameters import estimate_parameters as estimate_parameters
from .estimation.surrogates import train_surrogate as train_surrogate
from .plots.analysis_plots import one_analysis as one_analysis
from .plots.explorer import explore as explore
from .plots.plotting import rmse_in_time as rmse_in_time
from .plots.state_plots import component_curves as component_curves
from .plots.state_plots import field_maps as field_maps
from .plots.state_plots import hovmoller as hovmoller
from .training.fitting import train as train

_Words = ParamSpec("_Words")
_Answer = TypeVar("_Answer")

def _method(
    function: Callable[Concatenate[xr.Dataset, _Words], _Answer],
) -> Callable[Concatenate[Any, _Words], _Answer]: ...

class Verb:
    module: str
    name: str
    def __init__(self, module: str, name: str) -> None: ...
    def __get__(self, accessor: DanAccessor | None, owner: type | None = None) -> Callable[..., Any]: ...

class DanAccessor:
    def __init__(self, ds: xr.Dataset) -> None: ...
    baseline = _method(baseline)  # type: ignore[arg-type]  # a parameter of a method might be called ds
    component_curves = _method(component_curves)
    cycle = _method(cycle)
    equivariance_error = _method(equivariance_error)
    estimate_errors = _method(estimate_errors)
    estimate_parameters = _method(estimate_parameters)  # type: ignore[arg-type]
    explore = _method(explore)
    field_maps = _method(field_maps)
    forecast = _method(forecast)
    forecast_skill = _method(forecast_skill)
    gain = _method(gain)
    hovmoller = _method(hovmoller)
    innovation_histogram = _method(innovation_histogram)
    learn_correction = _method(learn_correction)
    lyapunov_vectors = _method(lyapunov_vectors)
    one_analysis = _method(one_analysis)
    rank_histogram = _method(rank_histogram)
    reanalysis = _method(reanalysis)  # type: ignore[arg-type]
    reliability = _method(reliability)
    rmse_in_time = _method(rmse_in_time)
    scaling_of_increments = _method(scaling_of_increments)
    score = _method(score)
    score_forecasts = _method(score_forecasts)
    spread_error = _method(spread_error)
    stein_identity = _method(stein_identity)
    symmetry_group = _method(symmetry_group)
    train = _method(train)
    train_surrogate = _method(train_surrogate)
    zero_innovation_bias = _method(zero_innovation_bias)
