"""Networks that a user wrote are tried before a training: their declarations, and one analysis of two states."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from ..checks import is_json_mapping, shown, warn
from ..random import Purpose, normal
from ..user_functions import shown_reason
from .base import AnalysisNetwork

_LOUD = 0.1  # deviation of the noise that is added to weights: about the size of torch's first weights


def check_network(network: AnalysisNetwork, size: int) -> None:
    """Refuse a network that cannot be made again from its `config`, or that gives no analysis.

    Parameters
    ----------
    network : AnalysisNetwork
    size : int
        N, the number of components of the state.

    Raises
    ------
    TypeError
        If `config` gives no plain values that the class takes, or `hidden_matrices` gives no parameters.
    ValueError
        If `config` makes another network. If `forward` fails, writes into the forecast, mixes the states of a batch, or
        has no derivative by any weight. If its result has another shape, dtype or memory than declared.
    """
    title = network._title
    if network.follows_from_config:
        _check_config(network, title)
    parameters = {id(one) for one in network.parameters()}
    if not parameters:
        raise ValueError(f"{title} has no parameters: expected some to train, as torch.nn.Parameter or layers")
    for one in network.hidden_matrices():
        if not isinstance(one, Tensor) or id(one) not in parameters or one.ndim != 2:
            what = f"a tensor of shape {tuple(one.shape)}" if isinstance(one, Tensor) else shown(one)
            raise TypeError(f"hidden_matrices() of {title} gave {what}: expected parameters of it with two dims")
    training = network.training
    try:
        _check_forward(network.eval(), size, title)
        _check_in_training(_loud(network).train(), size, title)
    finally:
        network.train(training)


def _check_config(network: AnalysisNetwork, title: str) -> None:
    config: Any = network.config()
    expected = "expected a dict of plain JSON values, with which its class makes the same network"
    if not is_json_mapping(config):
        raise TypeError(f"config() of {title} gave {shown(config)}: {expected}")
    try:
        with torch.random.fork_rng(devices=[]):
            again = type(network)(**config)
    except Exception as reason:  # a user's class may raise any error
        raise TypeError(
            f"config() of {title} gave {shown(config)}, which its class does not take ({shown_reason(reason)}): "
            f"{expected}"
        ) from reason
    one, other = ({name: tuple(value.shape) for name, value in each.state_dict().items()} for each in (network, again))
    if one != other:
        name = min(label for label in {*one, *other} if one.get(label) != other.get(label))
        raise ValueError(
            f"config() of {title} gave {shown(config)}, which makes another network: its {name!r} has shape "
            f"{other.get(name)} in place of {one.get(name)}; {expected}"
        )


def _states(network: AnalysisNetwork, size: int) -> tuple[Tensor, Tensor, Tensor | None]:
    """Two forecasts, with projected innovations and empty memories."""
    weight = next(network.parameters())
    labels, cycle = torch.arange(2), torch.zeros(1, dtype=torch.int64)
    members = network.members if network.ensemble else 1
    noise = normal(0, Purpose.CLIMATOLOGY, labels, cycle, (members + 1) * size)[:, 0].to(weight)
    x, zeta = noise[:, : members * size].contiguous(), noise[:, members * size :].contiguous()
    if network.ensemble:
        x = x.reshape(2, members, size)
    return x, zeta, x.new_zeros(2, network.memory, size) if network.memory else None


def _check_forward(network: AnalysisNetwork, size: int, title: str) -> None:
    x, zeta, memory = _states(network, size)
    states = (x, zeta) if memory is None else (x, zeta, memory)
    taken = [one.clone() for one in states]
    with torch.enable_grad():
        analysis = _analysis(network, taken[0], taken[1], None if memory is None else taken[2], title)
    if not all(map(torch.equal, taken, states)):
        raise ValueError(
            f"{title} writes into its forecast, its projected innovation or its memory: expected new tensors"
        )
    if not analysis.requires_grad:
        raise ValueError(
            f"torch sees no derivative of {title} by its weights: expected torch operations of them throughout, "
            "without detach() or NumPy"
        )
    with torch.no_grad():
        second = _analysis(network, x.clone(), zeta.clone(), memory, title)
        alone = _analysis(network, x[:1].clone(), zeta[:1].clone(), None if memory is None else memory[:1], title)
    scale = float(analysis.detach().nan_to_num(0.0, 0.0, 0.0).abs().max())
    if not _close(second, analysis.detach(), 1e-4 * scale):
        raise ValueError(
            f"{title} gave two analyses of the same states: expected a function of them alone where it is not "
            "training, without random numbers or a memory of earlier calls"
        )
    if not _close(alone, second[:1], 1e-4 * scale):
        raise ValueError(
            f"{title} mixes the states of a batch: one gives another analysis beside another state than by itself; "
            "expected every state along the first axis by itself, so take sums and means along the last axes only"
        )


def _loud(network: AnalysisNetwork) -> AnalysisNetwork:
    """A copy with other weights. If the last layer begins with zeros, it hides the layers before it."""
    try:
        other = copy.deepcopy(network)
    except Exception:  # a user's class may hold what cannot be copied
        return network
    labels, origin = torch.arange(1), torch.zeros(1, dtype=torch.int64)
    with torch.no_grad():
        for number, one in enumerate(other.parameters()):
            noise = normal(number, Purpose.NETWORK, labels, origin, one.numel()).reshape(one.shape)
            one.add_(_LOUD * noise.to(one))
    return other


def _check_in_training(network: AnalysisNetwork, size: int, title: str) -> None:
    """Refuse what goes wrong only in training mode: statistics of a batch, and buffers that a call changes."""
    x, zeta, memory = _states(network, size)
    buffers = dict(network.named_buffers())
    before = {name: value.clone() for name, value in buffers.items()}
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        try:
            first = _analysis(network, x.clone(), zeta.clone(), memory, title)
            changed = sorted(name for name, value in buffers.items() if not _same(value, before[name]))
        finally:
            for name, value in buffers.items():
                value.copy_(before[name])
        if changed:
            raise ValueError(
                f"{title} changes its buffers {changed[:4]} when it is called in training mode, as BatchNorm does: "
                "these would depend on how trajectories are shared between batches and processes; expected layers "
                "without statistics of a batch, such as torch.nn.GroupNorm or LayerNorm"
            )
        second = _analysis(network, x.clone(), zeta.clone(), memory, title)
        alone = _analysis(network, x[:1].clone(), zeta[:1].clone(), None if memory is None else memory[:1], title)
    scale = float(first.nan_to_num(0.0, 0.0, 0.0).abs().max())
    if not _close(first, second, 1e-4 * scale):
        warn(
            f"{title} draws random numbers in training mode, as dropout does: two trainings with one seed give two "
            "networks, and a resumed one another than one that was not killed. Cycles draw none. Leave dropout out, or "
            "go on if that is meant",
        )
    elif not _close(alone, first[:1], 1e-4 * scale):
        raise ValueError(
            f"{title} mixes the states of a batch in training mode: one gives another analysis beside another state "
            "than by itself; expected every state along the first axis by itself, so leave out BatchNorm and the like"
        )


def _analysis(network: AnalysisNetwork, x: Tensor, zeta: Tensor, memory: Tensor | None, title: str) -> Tensor:
    """The analysis. Its shape and the shape of the memory are checked."""
    shape, channels = tuple(x.shape), network.memory
    try:
        answer: Any = network(x, zeta, memory)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, TypeError, IndexError) as reason:
        raise ValueError(
            f"{title} failed for a forecast of shape {shape} and a projected innovation of shape {tuple(zeta.shape)} "
            f"({type(reason).__name__}: {shown_reason(reason)}): expected {network.takes}"
        ) from reason
    expected = f"expected the analysis, {x.dtype} of shape {shape}, and the new memory, None for a network without"
    if not isinstance(answer, tuple) or len(answer) != 2:
        raise ValueError(f"{title} gave a {type(answer).__name__}: {expected}")
    analysis, new = answer
    if not isinstance(analysis, Tensor) or tuple(analysis.shape) != shape or analysis.dtype != x.dtype:
        what = f"{analysis.dtype} of shape {tuple(analysis.shape)}" if isinstance(analysis, Tensor) else shown(analysis)
        raise ValueError(f"{title} gave {what}: {expected}")
    wanted = (len(x), channels, shape[-1]) if channels else None
    size = tuple(new.shape) if isinstance(new, Tensor) else new
    if size != wanted:
        raise ValueError(
            f"{title} gave a memory of shape {shown(size)}: expected {wanted}, as its `memory` is {channels}"
        )
    return analysis


def _close(one: Tensor, other: Tensor, tolerance: float) -> bool:
    return torch.allclose(one, other, rtol=0.0, atol=tolerance, equal_nan=True)


def _same(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one, other) or bool(((one == other) | (one.isnan() & other.isnan())).all())
