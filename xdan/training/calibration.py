"""A spread for networks without one: it is learned or measured, on a record or an endless twin."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, cast

import torch
import xarray as xr

from ..core.checks import choice, shown
from ..core.dynamics import Dynamics
from ..core.learning import calibration
from ..core.networks import AnalysisNetwork, ConstantSpread, GaussianCNN
from ..core.networks.gaussian import Mean, check_centre
from ..core.progress import showing_bars
from ..core.random import check_seed
from ..core.twin import TwinExperiment
from ..network import Network
from ..records.blocks import pick_device
from ..records.record import RecordWords, read
from .arguments import TrainingArguments
from .data import TrainingData, burn_in
from .fitting import train
from .plan import building, plan

Kind = Literal["network", "constant", "factor"]
_TRAINS = frozenset(("steps", "epochs", "minutes", "window", "batch", "objective", "optimiser", "teacher"))
_WORDS = RecordWords.__optional_keys__


def with_spread(net: Network, *, mean: Mean = "frozen", seed: int = 0, **parameters: Any) -> Network:
    """Put a `GaussianCNN` around a trained network. The analyses stay, and the spread must still be trained.

    Parameters
    ----------
    net : Network
        A network of one forecast without a spread, such as `xdan.open_network("lorenz96")`.
    mean : {"frozen", "trained"}
        Whether a later training keeps the analyses or changes them, too.
    seed : int
        Key of the first weights of the CNN that computes the spread.
    **parameters
        Parameters of `xdan.GaussianCNN`: filters, blocks, sub_blocks, kernel, diagonals, activation.

    Returns
    -------
    Network
        The network with a spread. Its description holds the training of the analyses under "before". Train the spread
        by `xdan.train(source, xdan.with_spread(net), objective="log-score")`. `xdan.calibrate` does both steps.

    Raises
    ------
    TypeError
        If `net` is no trained network, or a parameter is unknown.
    ValueError
        If the network takes members, works beside a Kalman filter, or has a spread already.

    See Also
    --------
    xdan.calibrate

    Examples
    --------
    >>> import xdan
    >>> ds = xdan.twin(xdan.Lorenz96(sites=8), cycles=20, trajectories=4, seed=0).compute()
    >>> net = ds.dan.train(xdan.ResidualCNN(filters=4, blocks=1), steps=4, window=4, batch=2, progress=False)
    >>> whole = xdan.with_spread(net, filters=4, blocks=1)
    >>> "spread" in ds.dan.cycle(whole)
    True
    >>> trained = ds.dan.train(whole, objective="log-score", steps=2, window=4, batch=2, progress=False)
    >>> bool((ds.dan.cycle(trained).analysis == ds.dan.cycle(net).analysis).all())
    True
    """
    _check_network(net)
    seed = check_seed(seed)
    with building(seed):
        module = GaussianCNN(net.module(), mean=mean, **parameters)
    return Network.from_module(module, net.state_dims, _described(net, {"spread_seed": seed}))


def calibrate(
    net: Network, source: xr.Dataset | TwinExperiment | Dynamics, kind: Kind = "network", **settings: Any
) -> Network:
    """Give the analyses of a trained network a spread, from their errors on a record or an endless twin.

    Parameters
    ----------
    net : Network
        A network of one forecast. Its analyses stay as they are.
    source : xarray.Dataset, TwinExperiment or Dynamics
        A twin or a record with truth; with kind="constant" direct observations are enough. Or a twin experiment, which
        is generated during the call. A dynamics stands for the twin experiment with default parameters.
    kind : {"network", "constant", "factor"}
        "network": a `GaussianCNN` around the network is trained by the log score, with frozen analyses. The spread
        differs between places and times. At the end, the spread of each field is multiplied by a factor, so that its
        root mean square equals the RMSE of the analyses that are held back for validation, if these have a truth.
        "constant": one number for each component: the root mean square error of its analyses on the part of the source
        that is held back for validation. Without the truth there is one number for each field.
        "factor": the spread of a `GaussianCNN` that is trained already, multiplied by such a factor for each field.
    **settings
        Further arguments. kind="network" takes the arguments of `xdan.train`, with 2000 steps by default, and of
        `xdan.with_spread`: filters, blocks, sub_blocks, kernel, diagonals, activation. The other kinds take
        validation, seed, device, progress and the words of a record.

    Returns
    -------
    Network
        The network with a spread: its runs hold `spread`.

    Raises
    ------
    TrainingInterrupted
        At Ctrl-C, as from `xdan.train`.
    TypeError
        If `net` is no trained network, or a setting is unknown.
    ValueError
        If the network has a spread already; with kind="factor", if it has no `GaussianCNN`; if `xdan.train` refuses the
        source; or with kind="constant", if a field is never observed and there is no truth.

    Notes
    -----
    Without the truth, observations with independent Gaussian errors of variance R_n are enough. Stein's (1981) unbiased
    estimate of risk gives the error variance of component n, for any network:

        E[e_n^2] = E[(y_n - x_a,n)^2] - R_n + 2 R_n E[d x_a,n / d y_n].

    A single value scatters by some 2^(1/2) R_n: some 100,000 values are needed to estimate a variance of 0.04 R_n to
    10 %. Values are averaged over the components of each field.

    References
    ----------
    Stein (1981), doi:10.1214/aos/1176345632. Divergence from one random direction: Ramani et al. (2008),
    doi:10.1109/TIP.2008.2001404.

    Examples
    --------
    >>> import xdan
    >>> ds = xdan.twin(xdan.Lorenz96(sites=8), cycles=20, trajectories=4, seed=0).compute()
    >>> net = ds.dan.train(xdan.ResidualCNN(filters=4, blocks=1), steps=4, window=4, batch=2, progress=False)
    >>> constant = xdan.calibrate(net, ds, kind="constant")
    >>> spread = ds.dan.cycle(constant).spread
    >>> bool((spread.isel(time=1) == spread.isel(time=-1)).all())  # the first analysis starts from the climatology
    True
    """
    _check_network(net)
    kinds = {"network": _by_network, "constant": _by_constants, "factor": _by_factors}
    return kinds[choice("kind", kind, kinds)](net, source, settings)


def _by_network(net: Network, source: Any, settings: dict[str, Any]) -> Network:
    sizes = {"filters", "blocks", "sub_blocks", "kernel", "diagonals", "activation"}
    parameters = {name: settings.pop(name) for name in sizes & set(settings)}
    around = with_spread(net, seed=settings.get("seed", 0), **parameters)
    lengths = {"steps", "epochs", "minutes"} & {name for name, value in settings.items() if value is not None}
    defaults = {} if lengths else {"steps": 2000}
    settings = {"objective": "log-score", **defaults, **settings}
    return _scaled(train(source, around, **settings), source, settings)


def _scaled(net: Network, source: Any, settings: Mapping[str, Any]) -> Network:
    """The network with the factors of `spread_factors`, from the data that its training held back for validation."""
    device = pick_device(settings.get("device", "auto"))
    module, data, bars = _held_back(net, source, settings, device)
    record = data.validation
    if record.truth is None:
        return net
    assert isinstance(module, GaussianCNN)
    with showing_bars(bars):
        factors = calibration.spread_factors(module, record, burn_in(record.observation.shape[1]))
    if not all(math.isfinite(one) and one > 0 for one in factors):
        raise ValueError(
            f"the factors of the spread are {shown(factors)}: expected positive numbers. Analyses of what is held back "
            "for validation left all bounds, or have no errors; train the network longer, or hold back other "
            "trajectories by validation= and seed="
        )
    with torch.no_grad():
        module.spread_factor.mul_(torch.tensor(factors).reshape(module.spread_factor.shape).to(module.spread_factor))
    training = {**net.description["training"], "spread_factors": [round(one, 4) for one in factors]}
    return Network.from_module(module.cpu(), net.state_dims, training, net.history)


def _by_factors(net: Network, source: Any, settings: dict[str, Any]) -> Network:
    _check_trains_nothing("factor", settings)
    if not isinstance(net.module(), GaussianCNN):
        raise ValueError(
            f"the network {net.description['name']!r} has no spread that a factor changes: expected a GaussianCNN, as "
            "xdan.with_spread(net) and a training give; or kind='network', or kind='constant'"
        )
    return _scaled(net, source, {"objective": "mse", "window": 1, "batch": 2, **settings})


def _check_trains_nothing(kind: str, settings: Mapping[str, Any]) -> None:
    if trains := sorted(set(settings) & _TRAINS):
        raise TypeError(f"calibrate() with kind={kind!r} trains nothing and takes no {trains}: expected kind='network'")


def _held_back(
    net: Network, source: Any, settings: Mapping[str, Any], device: str
) -> tuple[AnalysisNetwork, TrainingData, bool]:
    """A module of the network, the data that a training with these settings reads, and whether it shows bars."""
    words = {name: value for name, value in settings.items() if name in _WORDS}
    others = {name: value for name, value in settings.items() if name not in _WORDS}
    arguments = TrainingArguments(source, net, **others, words=cast(RecordWords, words))
    with showing_bars(arguments.shows_progress):
        planned = plan(arguments, device)
        data = planned.source.data(planned.network, device)
    data.windows.close()
    return planned.network.to(device), data, arguments.shows_progress


def _by_constants(net: Network, source: Any, settings: dict[str, Any]) -> Network:
    _check_trains_nothing("constant", settings)
    check_centre(net.module())
    device = pick_device(settings.get("device", "auto"))
    words: Any = {name: value for name, value in settings.items() if name in _WORDS}
    has_truth = not isinstance(source, xr.Dataset) or read(source, **words).truth is not None
    objective = "mse" if has_truth else "analysis"
    held = {"objective": objective, "window": 1, "batch": 2, **settings}
    centre, data, bars = _held_back(net, source, held, device)
    record = data.validation
    with showing_bars(bars):
        errors = calibration.error_variance(centre, record, burn_in(record.observation.shape[1])).cpu()
    if bad := (~(errors > 0)).nonzero()[:, 0].tolist():
        raise ValueError(
            f"the error variance of the components {shown(bad)} is {shown(errors[bad][:4].tolist())}: expected a "
            "positive one of each; without the truth every field is to be observed directly, and often enough"
        )
    with building():
        module = ConstantSpread(net.module(), len(errors))
    with torch.no_grad():
        module.log_spread.copy_(0.5 * errors.log())
    said = {"calibrated": {"kind": "constant", "truth": has_truth, "data": {**data.identity, **data.setting}}}
    return Network.from_module(module, net.state_dims, _described(net, said))


def _check_network(net: Any) -> None:
    if not isinstance(net, Network):
        raise TypeError(
            f"net={shown(net)}: expected a trained Network, as train() and open_network() give; train an architecture "
            "with a spread from the start as xdan.train(source, xdan.GaussianCNN(), objective='log-score')"
        )


def _described(net: Network, said: dict[str, Any]) -> dict[str, Any]:
    """Describe the training of a network around another: with the other's setting, and its training under "before"."""
    before = net.description["training"]
    kept = {name: before[name] for name in ("data", "validation_rmse", "validation_innovation") if name in before}
    return {**kept, **said, "before": before}
