"""Mean and covariance of a dynamics' climatology, computed once for all methods that need them."""

from __future__ import annotations

import math
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import Tensor

from ..dynamics import Dynamics
from ..random import Purpose, normal

_STATES = 4096  # number of states from which the moments are computed
_FEWEST, _ENTRIES = 64, 1 << 22  # large states: fewer states, as only variances are needed; numbers in all of them
_KEPT, _LARGEST = 4, 1 << 26  # number of climates in memory, and the largest size of one of them in bytes

_Moments = tuple[Tensor, Tensor]
_known: OrderedDict[tuple[object, ...], _Moments] = OrderedDict()
_lock = threading.Lock()


def climate_moments(dynamics: Dynamics, seed: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (N,) and covariance (N, N) of the dynamics' climatology, in the dtype and on the device of a tensor.

    For a climatology that the user gave, these are the moments of all its states. A few climates from spin-ups are kept
    in memory, on the CPU.

    Raises
    ------
    ValueError
        If a state of the climatology is not finite.
    """
    if dynamics.given_climate is not None:
        states = dynamics.given_climate.states.flatten(1)
        return states.mean(0).to(like), covariance_of(states).to(like)
    key = _key(dynamics, seed, like)
    with _lock:
        moments = _known.get(key)
        if moments is not None:
            _known.move_to_end(key)
    if moments is None:
        moments = _moments(dynamics, seed, like)
        with _lock:
            if moments[1].nbytes <= _LARGEST:
                _known[key] = moments
            while len(_known) > _KEPT:
                _known.popitem(last=False)
    mean, covariance = moments
    return mean.to(like.device), covariance.to(like.device)


def climate_variances(dynamics: Dynamics, seed: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance (N,) of the climatology, for states whose covariance would be too large.

    Raises
    ------
    ValueError
        See `climate_moments`.
    """
    states = _some_states(dynamics, seed, like)
    return states.mean(0).to(like), states.var(0).to(like)


def climate_columns(
    dynamics: Dynamics, seed: int, like: Tensor, count: int, shares: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean (N,) of the climatology, leading columns (count, N) of a root of its covariance, and the variance beside.

    The last result is the variance (N,) that the columns do not hold.

    Parameters
    ----------
    dynamics : Dynamics
    seed : int
    like : Tensor
        The results have its dtype and device.
    count : int
    shares : callable
        shares(variance) gives weights (N,) of squared components. Directions are compared by weighted squares.

    Raises
    ------
    ValueError
        As for `climate_moments`.
    """
    states = _some_states(dynamics, seed, like).to(like)
    mean, variance = states.mean(0), states.var(0)
    scale = shares(variance).sqrt()
    anomalies = (states - mean) / max(1, len(states) - 1) ** 0.5 * scale
    _, sizes, directions = torch.linalg.svd(anomalies, full_matrices=False)
    columns = like.new_zeros(count, states.shape[1])
    # A direction has two signs. A rule chooses one, as the device would otherwise: a filter mixes columns with draws.
    largest = directions.gather(1, directions.abs().argmax(1, keepdim=True))
    directions = directions * largest.sign()
    leading = (sizes[:, None] * directions)[:count] / scale.clamp_min(torch.finfo(scale.dtype).tiny)
    columns[: len(leading)] = leading
    return mean, columns, (variance - columns.square().sum(0)).clamp_min(0.0)


def _some_states(dynamics: Dynamics, seed: int, like: Tensor) -> Tensor:
    """States (S, N) of the climatology; fewer states if a state is large."""
    if dynamics.given_climate is not None:
        return dynamics.given_climate.states.flatten(1)
    count = max(_FEWEST, min(_STATES, _ENTRIES // math.prod(dynamics.shape)))
    return _spun_up(dynamics, seed, like, count)


def covariance_of(states: Tensor) -> Tensor:
    """Sample covariance of states (S, N), shape (N, N), also if N is 1."""
    size = states.shape[1]
    return torch.cov(states.T).reshape(size, size)


def _moments(dynamics: Dynamics, seed: int, like: Tensor) -> _Moments:
    x = _spun_up(dynamics, seed, like, _STATES)
    return x.mean(0).cpu(), covariance_of(x).cpu()


def _spun_up(dynamics: Dynamics, seed: int, like: Tensor, count: int) -> Tensor:
    """States (count, N) of the climatology that the model makes by a spin-up."""
    x = dynamics.climatology(torch.arange(count), seed, purpose=Purpose.CLIMATOLOGY, like=like).flatten(1)
    lost = int((~x.isfinite()).any(1).sum())
    if lost:
        raise ValueError(
            f"{lost} of {count} states of the climatology of {dynamics.label!r} are not finite after a spin-up of "
            f"{dynamics.spin_up_time:g}: expected a model that stays finite; take a smaller timestep=, or another "
            "rest= to start from"
        )
    return x


def _key(dynamics: Dynamics, seed: int, like: Tensor) -> tuple[object, ...]:
    """Key of a climate among the climates in memory.

    Two models may have the same description, as a description holds no functions. The key therefore has the functions
    too, and the result of one step from the first state of the spin-up. A model that depends on time has a climate for
    each time.
    """
    labels = torch.arange(2)
    with torch.no_grad():
        noise = normal(seed, Purpose.CLIMATOLOGY, labels, labels[:1], math.prod(dynamics.shape))[:, 0].to(like)
        start = dynamics.rest(noise.reshape(-1, *dynamics.shape))
        begins = start.detach().cpu().numpy().tobytes()
        ends = dynamics.advance(start, 1).detach().cpu().numpy().tobytes()
    functions = tuple(_Same(value) for value in vars(dynamics).values() if callable(value))
    described = type(dynamics), repr(dynamics.config()), dynamics.timestep, dynamics.spin_up_time, functions
    return *described, dynamics.model_time, begins, ends, seed, like.dtype, str(like.device)


class _Same:
    """A function that equals only itself. The key does not keep it alive, because it may hold a network on a GPU."""

    def __init__(self, function: object) -> None:
        self.hash = id(function)
        self.reference: Callable[[], object]
        try:
            self.reference = weakref.ref(function)
        except TypeError:  # an object whose class has slots cannot be referred to weakly
            self.reference = lambda: function

    def __eq__(self, other: object) -> bool:
        function = self.reference()
        return isinstance(other, _Same) and function is not None and other.reference() is function

    def __hash__(self) -> int:
        return self.hash
