"""A spread for networks that have none: learned, or measured, on a record or an endless twin."""

from __future__ import annotations

from typing import Any, Literal

import torch
import xarray as xr

from ..core.checks import choice, shown
from ..core.dynamics import Dynamics
from ..core.learning import calibration, objective_by_name
from ..core.networks import ConstantSpread, GaussianCNN
from ..core.networks.gaussian import Mean
from ..core.random import check_seed
from ..core.twin import TwinExperiment
from ..network import Network
from ..records.blocks import pick_device
from ..records.record import RecordWords, read
from .arguments import TrainingArguments
from .data import burn_in
from .fitting import train
from .plan import building, plan

Kind = Literal["network", "constant"]


def with_spread(net: Network, *, mean: Mean = "frozen", seed: int = 0, **parameters: Any) -> Network:
    """Put a `GaussianCNN` around a trained network: its analyses, and a spread that is still to be trained.

    Parameters
    ----------
    net : Network
        Of one forecast, without a spread, such as `xdan.open_network("lorenz96")`.
    mean : {"frozen", "trained"}
        Whether a training will change the analyses too.
    seed : int
        Of the first weights of the CNN that gives the spread.
    **parameters
        Of `xdan.GaussianCNN`: filters, blocks, sub_blocks, kernel, diagonals, activation.

    Returns
    -------
    Network
        Its description has how the analyses were trained, under "before". Train it: `xdan.train(source,
        xdan.with_spread(net), objective="log-score")`; `xdan.calibrate` does both.

    Raises
    ------
    TypeError
        For what is no trained network, or unknown parameters.
    ValueError
        For a network with members, beside a Kalman filter, or with a spread.

    See Also
    --------
    xdan.calibrate
    """
    _check_network(net)
    seed = check_seed(seed)
    with building(seed):
        module = GaussianCNN(net.module(), mean=mean, **parameters)
    return Network.from_module(module, net.state_dims, _described(net, {"spread_seed": seed}))


def calibrate(
    net: Network, source: xr.Dataset | TwinExperiment | Dynamics, kind: Kind = "network", **settings: Any
) -> Network:
    """Give the analyses of a trained network a spread, which a record or an endless twin says.

    Parameters
    ----------
    net : Network
        Of one forecast. Its analyses stay as they are.
    source : xarray.Dataset, TwinExperiment or Dynamics
        As of `xdan.train`. A Dataset has the truth, or with kind="constant" direct observations alone.
    kind : {"network", "constant"}
        "network": a `GaussianCNN` around the network, trained by the log score with the analyses frozen: the spread
        differs from place to place and from time to time. "constant": one number for each component, the root mean
        square error of its analyses on the part of the source that is held back for validation; without the truth one
        number for each field.
    **settings
        Of "network": those of `xdan.train`, 2000 steps by default, and those of `xdan.with_spread`: filters, blocks,
        sub_blocks, kernel, diagonals, activation. Of "constant": validation, seed, device and the words of a record.

    Returns
    -------
    Network
        Its runs have `spread`.

    Raises
    ------
    TypeError
        For what is no trained network, or unknown settings.
    ValueError
        For networks that have a spread already, and sources that `xdan.train` refuses; with kind="constant", where a
        field is never observed and there is no truth.

    Notes
    -----
    Without the truth the error variance of component n follows from observations of independent Gaussian errors of
    variance R_n alone, by Stein's (1981) unbiased estimate of risk, whatever the network does:

        E[e_n^2] = E[(y_n - x_a,n)^2] - R_n + 2 R_n E[d x_a,n / d y_n].

    Its values scatter by some 2^(1/2) R_n: it takes some 100,000 of them to know a variance of 0.04 R_n to a tenth.
    They are averaged over the components of each field.

    References
    ----------
    Stein (1981), doi:10.1214/aos/1176345632. Divergence from one random direction: Ramani et al. (2008),
    doi:10.1109/TIP.2008.2001404.
    """
    _check_network(net)
    if choice("kind", kind, ("network", "constant")) == "network":
        return _by_network(net, source, settings)
    return _by_constants(net, source, settings)


def _by_network(net: Network, source: Any, settings: dict[str, Any]) -> Network:
    own = {"filters", "blocks", "sub_blocks", "kernel", "diagonals", "activation"}
    parameters = {name: settings.pop(name) for name in own & set(settings)}
    around = with_spread(net, seed=settings.get("seed", 0), **parameters)
    lengths = {"steps", "epochs", "minutes"} & {name for name, value in settings.items() if value is not None}
    defaults = {} if lengths else {"steps": 2000}
    return train(source, around, **{"objective": "log-score", **defaults, **settings})


def _by_constants(net: Network, source: Any, settings: dict[str, Any]) -> Network:
    if trains := sorted(set(settings) & {"steps", "epochs", "minutes", "window", "objective", "optimiser", "teacher"}):
        raise TypeError(
            f"calibrate() with kind='constant' trains nothing and takes no {trains}: expected kind='network'"
        )
    device = pick_device(settings.pop("device", "auto"))
    words = {name: value for name, value in settings.items() if name in RecordWords.__optional_keys__}
    has_truth = not isinstance(source, xr.Dataset) or read(source, **words).truth is not None
    objective = objective_by_name("mse" if has_truth else "analysis")
    planned = plan(TrainingArguments(source, net, objective=objective, window=1, batch=2, **settings), device)
    data = planned.source.data(planned.network, device)
    record = data.validation
    first = burn_in(record.observation.shape[1])
    errors = calibration.error_variance(planned.network.to(device), record, first).cpu()
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
    """Training of a network around another: the setting is that of the other, whose training stands under "before"."""
    before = net.description["training"]
    kept = {name: before[name] for name in ("data", "validation_rmse", "validation_innovation") if name in before}
    return {**kept, **said, "before": before}
