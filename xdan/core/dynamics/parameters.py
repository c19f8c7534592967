"""A model's parameters: the model with other values, and steps that compute with tensors instead of values."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Mapping
from functools import cached_property
from numbers import Real
from typing import Any, Self

import torch
from torch import Tensor
from torch.func import vmap

from ..checks import real_array, shown
from ..registry import constructor_parameters

_NO_PARAMETERS = ("timestep", "spin_up_time", "time_unit", "time_origin")  # they belong to the scheme, not to the model
_SET_LATER = ("given_climate", "model_error", "_first", "_model_step", "time_unit", "time_origin")  # set on objects
_CLOSE = {torch.float64: 1e-9, torch.float32: 1e-4}  # largest relative difference of two equal steps


class Parametrised:
    """A model whose parameters may take other values, also tensors with a gradient.

    A parameter is an argument of the constructor. The model keeps it in an attribute of the same name, and reads the
    attribute at every step.
    """

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """Plain JSON values from which the constructor makes the model."""

    @abstractmethod
    def advance(self, x: Tensor, steps: int) -> Tensor:
        """Advance states of shape (..., *shape)."""

    @abstractmethod
    def _copied(self, **changed: Any) -> Self:
        """A copy with other attributes."""

    def parameter_values(self) -> dict[str, Any]:
        """Real parameters of the model by name: a number, or lists of numbers. These can be estimated.

        Integers, words and the time step are not among them.

        Examples
        --------
        >>> from xdan import Lorenz96
        >>> Lorenz96(sites=6).parameter_values()
        {'forcing': 8.0}
        """
        accepted = constructor_parameters(type(self))
        named = {name: value for name, value in self.config().items() if name in accepted}
        return {name: value for name, value in named.items() if name not in _NO_PARAMETERS and _is_real(value)}

    def with_parameters(self, **values: Any) -> Self:
        """The model with other values of some parameters.

        Parameters
        ----------
        **values : float, or array of the parameter's shape
            Values by the parameters' names. Labelled arrays and tensors are allowed.

        Returns
        -------
        Dynamics
            Made by the constructor. It keeps a given climatology, the model error and the time of the model.

        Raises
        ------
        TypeError
            If a value is not made of real numbers.
        ValueError
            If a name is not in `parameter_values`, values are not finite, or the constructor refuses them.

        Examples
        --------
        >>> from xdan import Lorenz96
        >>> Lorenz96(sites=6).with_parameters(forcing=8.5)
        Lorenz96(sites=6, forcing=8.5, timestep=0.05)
        """
        check_names(self, values)
        plain = {name: real_array(name, value).tolist() for name, value in values.items()}
        return self._remade(plain)

    def _remade(self, values: dict[str, Any]) -> Self:
        """The model with plain values of some parameters, and with attributes that a constructor does not take."""
        made = type(self)(**(self.config() | values))
        return made._copied(**{name: vars(self)[name] for name in _SET_LATER if name in vars(self)})

    def computing_with(self, values: Mapping[str, Tensor]) -> Self:
        """A copy that computes with tensors in the place of some parameters, so that gradients reach the tensors.

        Parameters
        ----------
        values : mapping of str to Tensor
            Each tensor is a scalar, or has the parameter's shape. All states share it.

        Returns
        -------
        Dynamics
            Results that `functools.cached_property` keeps are computed anew.
        """
        other = self._copied(**values, _vetted=True)
        for name in [name for name in vars(other) if isinstance(getattr(type(other), name, None), cached_property)]:
            del vars(other)[name]  # it was computed from other values
        return other

    def advance_each(self, x: Tensor, steps: int, values: Mapping[str, Tensor]) -> Tensor:
        """Advance states, each with its own parameters.

        The default maps `advance` over the states by `torch.func.vmap`. If vmap fails for a model, the states are
        advanced one by one.

        Parameters
        ----------
        x : Tensor, shape (B, *shape)
        steps : int
        values : mapping of str to Tensor, shape (B, ...)
            One value for each state.

        Returns
        -------
        Tensor, shape (B, *shape)
        """
        names = list(values)

        def advanced(state: Tensor, *of_state: Tensor) -> Tensor:
            model = self.computing_with(dict(zip(names, of_state, strict=True)))
            return model.advance(state[None], steps)[0]

        arguments = (x, *(values[name] for name in names))
        try:
            mapped: Tensor = vmap(advanced)(*arguments)
            return mapped
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, ValueError, TypeError):  # errors of torch or the model for a mapped tensor
            return torch.stack([advanced(*row) for row in zip(*arguments, strict=True)])


def _is_real(value: Any) -> bool:
    """Whether a plain value is a real number, or lists of numbers with at least one real number."""
    if isinstance(value, (list, tuple)):
        return bool(value) and all(_is_number(one) for one in value) and any(_is_real(one) for one in value)
    return isinstance(value, float)


def _is_number(value: Any) -> bool:
    """Whether a plain value is a number, or lists of numbers."""
    if isinstance(value, (list, tuple)):
        return all(_is_number(one) for one in value)
    return isinstance(value, Real) and not isinstance(value, bool)


def check_names(dynamics: Any, names: Collection[str]) -> None:
    """Refuse names that are not real parameters of a model.

    Raises
    ------
    ValueError
    """
    known = dynamics.parameter_values()
    for name in names:
        if name in known:
            continue
        label, config = f"the dynamics {dynamics.label!r}", dynamics.config()
        expected = f"expected some of its real parameters, {sorted(known)}" if known else "it has no real parameters"
        if name in _NO_PARAMETERS:
            raise ValueError(f"{name!r} belongs to the numerical scheme of {label}, and is no parameter: {expected}")
        if name in config:
            hint = ". A real parameter that is whole is written 8.0, not 8" if isinstance(config[name], int) else ""
            raise ValueError(
                f"the parameter {name!r} of {label} is {shown(config[name])}, no real number: {expected}{hint}"
            )
        raise ValueError(f"{label} has no parameter {shown(name)}: {expected}")


def check_read_at_every_step(dynamics: Any, means: Mapping[str, Tensor], changed: Mapping[str, Tensor]) -> None:
    """Refuse parameters that act differently on a step as tensors than as values of the constructor.

    One step from two states is computed in three ways: by a model that the constructor makes with a changed value, by a
    copy that computes with the changed value as a tensor, and by `advance_each` with one value for each state.

    Parameters
    ----------
    dynamics : Dynamics
    means, changed : mapping of str to Tensor of float64
        Two values of each parameter.

    Raises
    ------
    ValueError
        If the model does not read a parameter at every step, or does not depend on it.
    """
    middle = dynamics.with_parameters(**means)
    states = middle.start_states()
    with torch.no_grad():
        before = middle.advance(states, 1)
        tolerance = _CLOSE[states.dtype] * float(before.abs().max().nan_to_num(1.0))

        def same(one: Tensor, other: Tensor) -> bool:
            return torch.allclose(one, other, rtol=0.0, atol=tolerance, equal_nan=True)

        for name, value in changed.items():
            label = f"the parameter {name!r} of the dynamics {dynamics.label!r}"
            expected = middle.with_parameters(**{name: value}).advance(states, 1)
            tensors = {key: one.to(states) for key, one in means.items()} | {name: value.to(states)}
            if torch.equal(expected, before):
                raise ValueError(
                    f"a step does not depend on {label}: from equal states, its results are equal with the mean "
                    f"{shown(means[name])} and with the mean plus a deviation; expected a parameter that acts on every "
                    "step"
                )
            shared = middle.computing_with(tensors).advance(states, 1)
            if not same(shared, expected):
                raise ValueError(
                    f"the model does not read {name!r} at every step: with another value in the attribute "
                    f"{name!r}, a step of the dynamics {dynamics.label!r} is off by "
                    f"{float((shared - expected).abs().max()):.3g} from that of a model made with the value. Expected "
                    f"tendency() or step() to read self.{name} at each call, or a method computing_with() that updates "
                    "what was computed of it"
                )
            both = {key: torch.stack([means[key].to(states), one]) for key, one in tensors.items()}
            each = middle.advance_each(states, 1, both)
            if not same(each[1:], expected[1:]) or not same(each[:1], before[:1]):
                raise ValueError(
                    f"{label} cannot differ from state to state: a step of two states with two values differs from the "
                    "steps of two models; expected torch operations, without a memory of earlier calls"
                )
