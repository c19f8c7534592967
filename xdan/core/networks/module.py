"""Any torch module as a network. No name makes the module anew: it is copied, and recognised by its analyses."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from ..checks import shown, switch
from ..random import Purpose, normal
from ..spaces import StateSpace
from ..user_functions import shown_reason
from .base import AnalysisNetwork
from .registry import register_network
from .sizes import size

_WIDE = 2.0  # size of the state and innovation that test a module, in climatological deviations and observation errors
_KEPT = 8  # largest number of increments that a description keeps
_SAME = 1e-3  # largest difference by rounding between two machines, relative to the largest increment
_ROUNDING = 1e-5  # largest difference of increments by rounding on one machine, in climatological deviations
_FAILURES = (RuntimeError, TypeError, ValueError, IndexError, KeyError, AttributeError, AssertionError)


class WrongAnswerError(ValueError):
    """The result of a module is no analysis."""


@register_network
class ModuleNetwork(AnalysisNetwork):
    """A torch module of yours as a network: any `torch.nn.Module` that makes the analysis from forecast and zeta.

    The module is called as `module(x, zeta)`, or as `module(x, zeta, memory)` if `memory` is above 0. zeta is the
    projected innovation, H^T R^-1 (y - H(x_f)). It is 0 where nothing is observed.

    ==========  ====================  ==================================================================================
    argument    shape                 units
    ==========  ====================  ==================================================================================
    x           (B, N)                forecast, in the units of the state
    zeta        (B, N)                projected innovation, in 1 / the units of the state
    memory      (B, memory, N)        your latent channels; zeros before the first analysis of a record
    ==========  ====================  ==================================================================================

    The module returns the analysis, with the shape and dtype of x, or the pair (analysis, memory). B is the number of
    states; no state may change the analysis of another. A state is flat: several fields stand one after another in the
    order of the model's space, each in C order. If there is one field, `x.unflatten(-1, (32, 64))` makes a plane of it.
    If there are several, `xdan.StateSpace.unpack(x)` gives each field.

    With `normalised=True` the module is called with numbers of order one, as the networks that come with xdan are. Its
    result is converted back::

        x' = (x - state_mean) / state_std,   zeta' = error_std zeta,   x'_a = module(x', zeta'),
        x_a = x + state_std (x'_a - x').

    So the module returns its analysis in the units of x'. If each site is observed by itself, and all errors have one
    size, zeta' is the innovation in units of the observation error. `state_mean` and `state_std` are the climatological
    mean and deviation, and `error_std` is the observation error. Each is one number, or one number for each field.
    Training sets them.

    The module is copied, and the copy is in single precision. The copy begins with the weights of the module. `seed=`
    of `train` does not draw these weights, so call `torch.manual_seed` before you make the module. In cycles the copy
    is in evaluation mode, and in a training in training mode. Adam trains all its parameters.

    A store holds the weights and the class's dotted name as text. It holds no code, so opening needs the module again:
    `xdan.open_network("net.zarr", module=Mine())`.

    Parameters
    ----------
    module : torch.nn.Module
        An instance, not a class.
    memory : int
        Number of latent channels of each component of the state; 0 means no memory.
    normalised : bool
        Whether the module receives normalised states, as above.
    space : StateSpace, or its JSON, optional
        The fields of the states; training fills it in. None is one field on a ring.

    Raises
    ------
    TypeError
        If `module` is no instance of `torch.nn.Module`, or `memory` is no integer.
    ValueError
        If the module has no parameters, has an extra state beside its tensors, was compiled or scripted, or cannot be
        copied; or if a parameter has no shape yet or is complex.

    See Also
    --------
    xdan.register_network : registers a class under a name, so that stores of it open without `module=`.

    Examples
    --------
    >>> import torch, xdan
    >>> class Mine(torch.nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.layer = torch.nn.Conv1d(2, 1, 5, padding=2, padding_mode="circular")
    ...     def forward(self, x, zeta):
    ...         return x + self.layer(torch.stack([x, zeta], 1))[:, 0]
    >>> network = xdan.ModuleNetwork(Mine(), normalised=True)
    >>> analysis, memory = network(torch.zeros(3, 40), torch.zeros(3, 40))
    >>> tuple(analysis.shape), memory
    ((3, 40), None)
    """

    name: ClassVar[str] = "module"
    described: ClassVar[bool] = False

    def __init__(
        self,
        module: nn.Module | None = None,
        memory: int = 0,
        normalised: bool = False,
        space: StateSpace | Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(space)
        self.memory, self.normalised = size("memory", memory, 0), switch("normalised", normalised)
        self.module = _copied(module)
        self.sites: int | None = None

    @property
    def label(self) -> str:
        """Dotted name of the module's class."""
        return dotted_name(self.module)

    def config(self) -> dict[str, Any]:
        """Plain JSON parameters, with the dotted name in the place of the module."""
        described = {"module": self.label, "memory": self.memory, "normalised": self.normalised}
        return described if self.space is None else {**described, "space": self.space.to_json()}

    def made_for(self, space: StateSpace) -> AnalysisNetwork:
        """Return a copy for the fields of a space, if this network has no space."""
        if self.space is not None or space.is_plain_ring:
            return self
        return type(self)(self.module, self.memory, self.normalised, space)

    def check_state(self, dims: Sequence[str], shape: Sequence[int]) -> None:
        """Refuse states on which the module fails. A module may work on one number of sites only."""
        super().check_state(dims, shape)
        sites = math.prod(shape)
        usual = "" if self.sites in (None, sites) else f", and was last used on {self.sites}"
        try:
            self.increments(sites)
        except (torch.OutOfMemoryError, WrongAnswerError):
            raise
        except _FAILURES as reason:
            raise ValueError(
                f"{self._title} fails for states of {sites} components{usual} ({type(reason).__name__}: "
                f"{shown_reason(reason)}): expected {self.takes}, that takes x and zeta of shape (B, {sites}) and "
                "gives the analysis"
            ) from reason
        self.sites = sites

    @property
    def takes(self) -> str:
        """Text that says how the module is called."""
        if self.memory:
            return f"forward(x, zeta, memory), as memory={self.memory}"
        return "forward(x, zeta), or memory= and forward(x, zeta, memory)"

    def forward(self, x: Tensor, zeta: Tensor, memory: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Analysis and new memory; shapes as in the base class."""
        states, innovation = x, zeta
        if self.normalised:
            mean, std, error_std = map(self.per_component, (self.state_mean, self.state_std, self.error_std))
            states, innovation = (x - mean) / std, zeta * error_std
        if self.memory:
            memory = x.new_zeros(len(x), self.memory, x.shape[-1]) if memory is None else memory
            analysis, after = self._answer(self.module(states, innovation, memory), x)
        else:
            analysis, after = self._answer(self.module(states, innovation), x)
        if self.normalised:
            analysis = x + std * (analysis - (x - mean) / std)  # anew, as the module may have written into `states`
        return (x + self.conserving(analysis - x) if self._conserved else analysis), after

    def _answer(self, answer: Any, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Analysis and memory from the result of the module."""
        shape, channels = tuple(x.shape), (len(x), self.memory, x.shape[-1])
        expected = f"the analysis, {x.dtype} of shape {shape}"
        if self.memory:
            expected = f"a pair: {expected}, and the new memory of shape {channels}"
        if isinstance(answer, Tensor):
            answer = answer, None
        if not isinstance(answer, (tuple, list)) or len(answer) != 2:
            raise WrongAnswerError(f"{self._title} gave {_kind(answer)}: expected {expected}")
        analysis, after = answer
        if not isinstance(analysis, Tensor) or tuple(analysis.shape) != shape:
            raise WrongAnswerError(f"{self._title} gave {_kind(analysis)}: expected {expected}")
        if analysis.dtype != x.dtype:
            raise WrongAnswerError(
                f"{self._title} gave {_kind(analysis)}: expected {expected}; turn tensors of its own with .to(x)"
            )
        if not self.memory and after is not None:
            raise WrongAnswerError(
                f"{self._title} gave {_kind(after)} beside the analysis: expected {expected} alone; for latent "
                "channels pass memory=, their number"
            )
        if self.memory and (not isinstance(after, Tensor) or tuple(after.shape) != channels or after.dtype != x.dtype):
            raise WrongAnswerError(f"{self._title} gave {_kind(after)} as its memory: expected {expected}")
        return analysis, after

    @torch.no_grad()
    def increments(self, sites: int) -> Tensor:
        """Increments for a fixed state with this number of components, in climatological deviations.

        The forecast and the innovation are equal at every call. So a module can be recognised by its increments.

        Returns
        -------
        Tensor, shape (sites,)
        """
        weight = next(self.parameters())
        like = weight if weight.is_floating_point() else self.state_mean
        labels, origin = torch.arange(1), torch.zeros(1, dtype=torch.int64)
        noise = normal(0, Purpose.CLIMATOLOGY, labels, origin, (2 + self.memory) * sites)[:, 0].to(like)
        first, second, *rest = noise.split(sites, -1)
        mean, std, error_std = map(self.per_component, (self.state_mean, self.state_std, self.error_std))
        x, zeta = mean + _WIDE * std * first, _WIDE * second / error_std
        training = {part: part.training for part in self.modules()}
        self.eval()
        try:
            analysis, _ = self(x, zeta, torch.stack(rest, 1) if rest else None)
        finally:
            for part, mode in training.items():
                part.training = mode
        increments: Tensor = ((analysis - x) / std)[0]
        return increments

    def seen(self) -> dict[str, Any] | None:
        """Numbers by which a description recognises the module: a number of components, and some increments.

        None if no states were checked yet, or if increments are not finite.
        """
        if self.sites is None:
            return None
        values = self.increments(self.sites)[:: -(-self.sites // _KEPT)].double().cpu()
        return {"sites": self.sites, "increments": values.tolist()} if bool(values.isfinite().all()) else None

    def check_seen(self, kept: Any) -> None:
        """Refuse a module whose increments differ from the increments of the saved module.

        Parameters
        ----------
        kept : object
            Result of `seen` of the saved module.

        Raises
        ------
        ValueError
            If the increments differ.
        """
        if kept is None:
            return
        self.sites = size("sites", kept["sites"])
        now, before = self.seen(), torch.tensor(kept["increments"], dtype=torch.float64)
        other = None if now is None else torch.tensor(now["increments"], dtype=torch.float64)
        if other is None or other.shape != before.shape or not _alike(other, before):
            raise ValueError(
                f"{self._title} with the weights that were saved gives other analyses than the module that was saved: "
                "expected the same values in its constructor and the same code in its class"
            )

    @property
    def _title(self) -> str:
        return f"the module {type(self.module).__qualname__}"


def dotted_name(module: nn.Module) -> str:
    """Python module and name of a class, as an import writes them."""
    return f"{type(module).__module__}.{type(module).__qualname__}"


def check_instance(module: Any, label: str) -> None:
    """Refuse what is no instance of a torch module of the user.

    Raises
    ------
    TypeError
    """
    such_as = f"{label}={shown(module)}: expected an instance of torch.nn.Module"
    if isinstance(module, type) and issubclass(module, nn.Module):
        raise TypeError(f"{label}={module.__qualname__} is a class: expected an instance, {module.__qualname__}(...)")
    if isinstance(module, str):
        raise TypeError(f"{such_as}; a name stands for no code, so import the class {shown(module)} and make one of it")
    if isinstance(module, AnalysisNetwork):
        raise TypeError(f"{such_as} that is no network of xdan; {type(module).__name__} is one as it is")
    if not isinstance(module, nn.Module):
        raise TypeError(f"{such_as} of yours, whose forward(x, zeta) gives the analysis")


def _copied(module: Any) -> nn.Module:
    """A copy of a module in single precision, without gradients."""
    check_instance(module, "module")
    title = f"the module {type(module).__qualname__}"
    if hasattr(module, "_orig_mod"):
        raise ValueError(f"{title} is what torch.compile gave: expected the module before it was compiled")
    if isinstance(module, torch.jit.ScriptModule):
        raise ValueError(f"{title} is what torch.jit gave: expected the module before it was scripted or traced")
    tensors = [*module.named_parameters(), *module.named_buffers()]
    if unknown := [name for name, one in tensors if isinstance(one, UninitializedParameter)]:
        raise ValueError(f"{title} has no shape yet for {unknown[:4]}: expected a module that was called once")
    if complex_ones := [name for name, one in tensors if one.is_complex()]:
        raise ValueError(f"{title} has complex numbers in {complex_ones[:4]}: expected pairs of real ones")
    if odd := [name for name, one in module.state_dict().items() if not isinstance(one, Tensor)]:
        raise ValueError(
            f"{title} keeps {odd[:4]} beside its tensors: expected no get_extra_state(), as a store has none"
        )
    if not any(True for _ in module.parameters()):
        raise ValueError(f"{title} has no parameters: expected some to train, as torch.nn.Parameter or layers")
    try:
        mine: nn.Module = copy.deepcopy(module)
    except Exception as reason:  # a module may hold anything
        raise ValueError(
            f"{title} cannot be copied ({shown_reason(reason)}): expected one that copy.deepcopy takes, without open "
            "files, locks or tensors that autograd made"
        ) from reason
    mine.zero_grad(set_to_none=True)
    return mine.float()


def _kind(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{value.dtype} of shape {tuple(value.shape)}"
    if isinstance(value, (tuple, list)):
        return f"a {type(value).__name__} of {len(value)}"
    return "None" if value is None else f"a {type(value).__name__}"


def _alike(one: Tensor, other: Tensor) -> bool:
    return bool(((one - other).abs() <= _SAME * other.abs().max() + _ROUNDING).all())
