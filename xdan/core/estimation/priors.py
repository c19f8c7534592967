"""Parameters to be estimated: their names, shapes and prior distributions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..checks import real_array, shown
from ..derivative_checks import check_derivative, pull_back, random_directions
from ..dynamics import Dynamics
from ..dynamics.parameters import check_names, check_read_at_every_step

_DRAWS = 4  # number of draws from the prior at which derivatives with respect to the parameters are compared


@dataclass(frozen=True)
class Priors:
    """Gaussian priors of some parameters of a model, packed into one vector of p numbers.

    Attributes
    ----------
    names : tuple of str
    shapes : tuple of tuple of int
        Shape of each parameter; () for a number.
    mean, deviation : Tensor of float64, shape (p,)
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    mean: Tensor
    deviation: Tensor

    @property
    def sizes(self) -> tuple[int, ...]:
        """How many numbers each parameter has."""
        return tuple(math.prod(shape) for shape in self.shapes)

    def split(self, packed: Tensor) -> dict[str, Tensor]:
        """Parameters by name, (..., *shape), from packed numbers (..., p)."""
        parts = packed.split(self.sizes, -1)
        return {
            name: part.reshape((*packed.shape[:-1], *shape))
            for name, shape, part in zip(self.names, self.shapes, parts, strict=True)
        }

    def scaled(self, standard: Tensor) -> Tensor:
        """Parameters (..., p) from differences to the prior's mean, in standard deviations of the prior."""
        return self.mean.to(standard) + self.deviation.to(standard) * standard

    def described(self) -> dict[str, list[list[float]]]:
        """Plain JSON: mean and standard deviation of each parameter."""
        means, deviations = self.split(self.mean), self.split(self.deviation)
        return {name: [means[name].tolist(), deviations[name].tolist()] for name in self.names}


def read_priors(dynamics: Dynamics, parameters: Any) -> Priors:
    """Check a mapping from parameters' names to means and standard deviations, and test the model with both.

    Parameters
    ----------
    dynamics : Dynamics
    parameters : mapping of str to (mean, deviation)
        Numbers, or arrays of the parameter's shape. One number holds for all entries of a parameter.

    Raises
    ------
    TypeError
        If `parameters` is not such a mapping, or has values that are not real numbers.
    ValueError
        If there are no parameters; if the model does not have a parameter, it is an integer, or the model does not read
        it at every step; if a standard deviation is not positive, or a shape does not fit.
    """
    if not isinstance(parameters, Mapping):
        raise TypeError(
            f"parameters={shown(parameters)}: expected a mapping of names to (mean, deviation), such as "
            "{'forcing': (7.0, 1.0)}"
        )
    if not parameters:
        raise ValueError("parameters={} names none: expected for example {'forcing': (7.0, 1.0)}")
    check_names(dynamics, list(parameters))
    known = dynamics.parameter_values()
    shapes, means, deviations = [], [], []
    for name, prior in parameters.items():
        if not isinstance(prior, (tuple, list)) or len(prior) != 2:
            raise TypeError(f"parameters[{name!r}]={shown(prior)}: expected a pair (mean, deviation)")
        mean, deviation = (
            real_array(f"the prior's {word} of {name!r}", value)
            for word, value in zip(("mean", "deviation"), prior, strict=True)
        )
        if not (deviation > 0).all():
            raise ValueError(
                f"the prior's deviation of {name!r} is {deviation.min():g}: expected a positive number, how far the "
                "parameter may lie from its mean"
            )
        own_shape = np.shape(known[name])
        try:
            shape = np.broadcast_shapes(own_shape, mean.shape)
            spread = np.broadcast_to(deviation, shape)
        except ValueError:
            raise ValueError(
                f"the prior of {name!r} has a mean of shape {mean.shape} and a deviation of shape {deviation.shape}: "
                f"expected numbers, or arrays of the parameter's shape {own_shape}"
            ) from None
        shapes.append(shape)
        means.append(np.broadcast_to(mean, shape).reshape(-1))
        deviations.append(spread.reshape(-1))
    priors = Priors(
        tuple(parameters),
        tuple(shapes),
        torch.from_numpy(np.concatenate(means)),
        torch.from_numpy(np.concatenate(deviations)),
    )
    dynamics.vet()
    check_read_at_every_step(dynamics, priors.split(priors.mean), priors.split(priors.mean + priors.deviation))
    return priors


def read_walk(walk: Any, priors: Priors) -> Tensor:
    """Check the standard deviations of the parameters' random walk in one interval.

    Parameters
    ----------
    walk : float, or mapping of str to float or array
        One number for all parameters, or numbers by the parameters' names. Parameters without a number do not walk.
    priors : Priors

    Returns
    -------
    Tensor of float64, shape (p,)

    Raises
    ------
    TypeError
        If a value is not made of real numbers.
    ValueError
        If names or shapes do not fit, or numbers are negative.
    """
    if not isinstance(walk, Mapping):
        walk = dict.fromkeys(priors.names, walk)
    if unknown := sorted(map(str, set(walk) - set(priors.names))):
        raise ValueError(f"walk= names {unknown}: expected some of the parameters {list(priors.names)}")
    parts = []
    for name, shape in zip(priors.names, priors.shapes, strict=True):
        value = real_array(f"walk of {name!r}", walk.get(name, 0.0))
        if (value < 0).any() or value.shape not in ((), shape):
            raise ValueError(
                f"walk of {name!r} is {shown(value.tolist())}: expected a standard deviation, 0 or more, or one for "
                f"each number of the shape {shape}"
            )
        parts.append(np.broadcast_to(value, shape).reshape(-1))
    return torch.from_numpy(np.concatenate(parts))


def check_parameter_derivatives(dynamics: Dynamics, priors: Priors, who: str) -> None:
    """Refuse a model for which the derivative of a step with respect to the parameters is missing or wrong.

    Parameters
    ----------
    dynamics : Dynamics
    priors : Priors
    who : str
        What needs the derivative, such as "the method 'likelihood'".

    Raises
    ------
    ValueError
    """
    dynamics.require_derivatives(who, "method='augmented' needs none")
    state = dynamics.with_parameters(**priors.split(priors.mean)).start_states()[:1]

    def increment(standard: Tensor) -> Tensor:
        """Increment of one step from one state, with parameters in standard deviations of their prior, (S, p)."""
        x = state.to(standard).expand(len(standard), *state.shape[1:])
        moved = dynamics.advance_each(x, 1, priors.split(priors.scaled(standard)))
        return (moved - x).flatten(1)

    draws = random_directions(torch.arange(_DRAWS), 3, torch.zeros(1, len(priors.mean), dtype=torch.float64))
    check_derivative(
        increment,
        draws,
        f"a step of the model {dynamics.label!r} by its parameters {list(priors.names)}",
        f"{who} needs it; method='augmented' needs none",
        adjoint=pull_back(increment),
    )
