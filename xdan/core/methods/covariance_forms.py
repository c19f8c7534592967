"""Forms in which a state's covariance is kept: one matrix, matrices of patches, or a few columns of a root."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from ..checks import check_one_form, integer, real
from ..dynamics import Dynamics, ModelError
from ..observing import ObservingSystem
from .climate import climate_columns, climate_moments, climate_variances
from .columns import Columns
from .gaussian_forecast import check_size, forecast_moments
from .kalman import kalman_gain, updated
from .patch_cutting import patches_of, warn_of_reach
from .patches import Patches, check_observing

_CPU = torch.device("cpu")
Companions = Callable[[int], Tensor]


class CovarianceForm(ABC):
    """A form in which the covariances of B states are kept, as one tensor, and what a Kalman filter does with them.

    Attributes
    ----------
    whole : bool
        Whether a covariance is one matrix, (B, N, N).
    begins_at_climate : bool
        Whether a network begins with the covariance of a climatology that the user gave, as far as the form holds it.
    words : str
        The form's name in messages.
    """

    whole: bool = False
    begins_at_climate: bool = False
    words: str

    def recordable(self, dynamics: Dynamics) -> bool:
        """Whether forecasts and updates on a GPU read no number back to the CPU, as a CUDA graph requires."""
        return False

    @abstractmethod
    def diagonal(self, variance: Tensor) -> Tensor:
        """The covariance of independent errors of these variances (B, N)."""

    @abstractmethod
    def bound(self, variance: Tensor) -> Tensor:
        """Trace of the climate's covariance, from its variances (N,). `forecast` keeps the trace with Q2 below it."""

    def forecast(
        self, dynamics: Dynamics, x: Tensor, covariance: Tensor, steps: int, c2: float, most: Tensor
    ) -> Tensor:
        """M P M^T + c2 Q2(P) + Q of states (B, N). Q2 is shortened if the trace would exceed `most`."""
        propagated = self.propagated(dynamics, x, covariance, steps, c2, most)
        error = dynamics.model_error
        return propagated if error is None or not steps else self.with_errors(propagated, error)

    @abstractmethod
    def propagated(
        self, dynamics: Dynamics, x: Tensor, covariance: Tensor, steps: int, c2: float, most: Tensor
    ) -> Tensor:
        """M P M^T + c2 Q2(P): `forecast` without the model's errors."""

    @abstractmethod
    def with_errors(self, covariance: Tensor, error: ModelError) -> Tensor:
        """P + Q, as far as the form holds Q."""

    @abstractmethod
    def analysed(self, x: Tensor, covariance: Tensor, observed: Tensor, observing: ObservingSystem) -> Tensor:
        """P_a = (I - K H) P_f."""

    @abstractmethod
    def update(
        self, x: Tensor, covariance: Tensor, innovation: Tensor, observed: Tensor, observing: ObservingSystem
    ) -> tuple[Tensor, Tensor]:
        """The increment K d of an innovation (B, P), and P_a. If x and P are detached, no gradient goes through K."""

    @abstractmethod
    def variances(self, covariance: Tensor) -> Tensor:
        """Diagonal of P, shape (B, N)."""

    @abstractmethod
    def seen(self, covariance: Tensor) -> Tensor:
        """Covariances of each component with its companions, shape (B, N, L). A network reads them."""

    def deviations(self, covariance: Tensor) -> Tensor:
        """Standard deviations (B, N)."""
        return self.variances(covariance).clamp_min(0.0).sqrt()

    def scaled(self, covariance: Tensor, factor: float) -> Tensor:
        """The covariance times a factor."""
        return factor * covariance

    def climate(self, dynamics: Dynamics, seed: int, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean (N,) of the climatology, its covariance in this form (without a batch), and the result of `bound`."""
        mean, variance = climate_variances(dynamics, seed, like)
        return mean, self.diagonal(variance[None])[0], self.bound(variance)

    def check_observing(self, observing: ObservingSystem, who: str) -> None:  # noqa: B027
        """Refuse observations that this form cannot use. `who` names in messages what asked for the form.

        Raises
        ------
        ValueError
        """

    def check_first(self, observing: ObservingSystem, who: str) -> None:  # noqa: B027
        """Refuse observations that allow no first analysis from independent errors with the climate's variances.

        Raises
        ------
        ValueError
        """

    def warn(self, dynamics: Dynamics, x: Tensor, steps: int) -> None:  # noqa: B027
        """Warn if the form cannot follow the model over so many steps, from a state (1, N) of the climate."""


class OneMatrix(CovarianceForm):
    """One matrix for each state, (B, N, N).

    Parameters
    ----------
    companions : callable, optional
        companions(N) gives for each of N components the L components whose covariance with it a network reads, (N, L).
    """

    whole = True
    words = "one matrix"

    def __init__(self, companions: Companions | None = None) -> None:
        self.companions = companions

    def recordable(self, dynamics: Dynamics) -> bool:
        """True if the model's class has a second-order term. Otherwise Q2 needs a root of the covariance."""
        return type(dynamics).second_order_tendency is not Dynamics.second_order_tendency

    def diagonal(self, variance: Tensor) -> Tensor:
        """The covariance of independent errors of these variances (B, N)."""
        return torch.diag_embed(variance)

    def bound(self, variance: Tensor) -> Tensor:
        """Sum of the variances."""
        return variance.sum()

    def propagated(
        self, dynamics: Dynamics, x: Tensor, covariance: Tensor, steps: int, c2: float, most: Tensor
    ) -> Tensor:
        """M P M^T + c2 Q2(P), by products with the tangent linear model as a matrix."""
        return forecast_moments(dynamics, x, covariance, steps).inflated(c2, most)

    def with_errors(self, covariance: Tensor, error: ModelError) -> Tensor:
        """P + Q, the sum of the matrices."""
        return error.added_to(covariance)

    def analysed(self, x: Tensor, covariance: Tensor, observed: Tensor, observing: ObservingSystem) -> Tensor:
        """P_a in Joseph's form."""
        return updated(x, covariance, kalman_gain(x, covariance, observed, observing), observed, observing)

    def update(
        self, x: Tensor, covariance: Tensor, innovation: Tensor, observed: Tensor, observing: ObservingSystem
    ) -> tuple[Tensor, Tensor]:
        """K d and P_a, by the gain K of any observation operator."""
        gain = kalman_gain(x, covariance, observed, observing)
        after = updated(x, covariance, gain, observed, observing)
        d = torch.where(observed, innovation, torch.zeros_like(innovation))
        return (gain @ d[..., None])[..., 0], after

    def variances(self, covariance: Tensor) -> Tensor:
        """Diagonal of P."""
        return covariance.diagonal(dim1=-2, dim2=-1)

    def seen(self, covariance: Tensor) -> Tensor:
        """Covariances of each component with its companions."""
        assert self.companions is not None
        sites = torch.arange(covariance.shape[-1], device=covariance.device)
        return covariance[:, sites[:, None], self.companions(len(sites))]

    def climate(self, dynamics: Dynamics, seed: int, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean, whole covariance, and the result of `bound`."""
        mean, covariance = climate_moments(dynamics, seed, like)
        return mean, covariance, covariance.trace()


class InPatches(CovarianceForm):
    """One matrix for each patch, (B, T, W, W). The patches are overlapping neighbourhoods.

    Parameters
    ----------
    patches : Patches
    pairs : Tensor of int64, shape (N, L), optional
        Places in the patches of the covariances that a network reads (`Patches.pairs`).
    """

    def __init__(self, patches: Patches, pairs: Tensor | None = None) -> None:
        self.patches, self.pairs = patches, pairs
        self.words = f"radius={patches.radius:g}"

    def diagonal(self, variance: Tensor) -> Tensor:
        """The covariance of independent errors of these variances (B, N)."""
        return self.patches.diagonal(variance)

    def bound(self, variance: Tensor) -> Tensor:
        """Sum of the variances of each patch, (T,)."""
        return self.patches.of(variance[None])[0].sum(1)

    def propagated(
        self, dynamics: Dynamics, x: Tensor, covariance: Tensor, steps: int, c2: float, most: Tensor
    ) -> Tensor:
        """M P M^T + c2 Q2(P) in each patch."""
        return forecast_moments(dynamics, x, covariance, steps, self.patches).inflated(c2, most)

    def with_errors(self, covariance: Tensor, error: ModelError) -> Tensor:
        """P + Q. Each patch takes its part of Q."""
        if error.independent:
            return covariance + self.patches.diagonal(error.deviations(covariance).square()[None])
        return covariance + self.patches.cut(error.matrix(covariance))

    def analysed(self, x: Tensor, covariance: Tensor, observed: Tensor, observing: ObservingSystem) -> Tensor:
        """P_a of each patch, by the observations inside the patch."""
        return self.patches.analysed(covariance, observed, observing)

    def update(
        self, x: Tensor, covariance: Tensor, innovation: Tensor, observed: Tensor, observing: ObservingSystem
    ) -> tuple[Tensor, Tensor]:
        """K d = P_a H^T R^-1 d, and P_a."""
        after = self.patches.analysed(covariance, observed, observing)
        return self.patches.times(after, observing.project_innovation(innovation, observed)), after

    def variances(self, covariance: Tensor) -> Tensor:
        """Diagonal of P."""
        return self.patches.variances(covariance)

    def seen(self, covariance: Tensor) -> Tensor:
        """Covariances of each component with its companions."""
        assert self.pairs is not None
        return covariance.flatten(1)[:, self.pairs]

    def check_observing(self, observing: ObservingSystem, who: str) -> None:
        """Refuse an observation operator, and correlated errors."""
        check_observing(observing, f"{who} with {self.words}")

    def warn(self, dynamics: Dynamics, x: Tensor, steps: int) -> None:
        """Warn if the tangent linear model reaches beyond the radius."""
        warn_of_reach(dynamics, self.patches, x, steps)


class InColumns(CovarianceForm):
    """Independent errors and k columns of a root, (B, 1 + k, N); see `Columns`.

    Parameters
    ----------
    columns : Columns
    companions : Tensor of int64, shape (N, L), optional
        For each of N components, the L components whose covariance with it a network reads.
    """

    begins_at_climate = True

    def __init__(self, columns: Columns, companions: Tensor | None = None) -> None:
        self.columns, self.companions = columns, companions
        self.words = f"columns={columns.count}"

    def check_first(self, observing: ObservingSystem, who: str) -> None:
        """Refuse an operator and correlated errors, for which independent errors would have to become columns first."""
        if not observing.direct or observing.independent() is None:
            raise ValueError(
                f"{who} with {self.words}, and observations of an operator or with correlated errors: the covariance "
                "begins with independent errors, and such observations would mix them; expected observations of the "
                "components, or in cycling climatology=, states whose leading directions the columns begin with"
            )

    def diagonal(self, variance: Tensor) -> Tensor:
        """The covariance of independent errors of these variances (B, N)."""
        return self.columns.diagonal(variance)

    def climate(self, dynamics: Dynamics, seed: int, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean, leading columns and the remaining variance as independent errors, and the result of `bound`."""
        mean, columns, rest = climate_columns(dynamics, seed, like, self.columns.count, self.columns.shares)
        covariance = torch.cat([rest.sqrt()[None], columns])
        return mean, covariance, covariance.square().sum()

    def bound(self, variance: Tensor) -> Tensor:
        """Sum of the variances."""
        return variance.sum()

    def propagated(
        self, dynamics: Dynamics, x: Tensor, covariance: Tensor, steps: int, c2: float, most: Tensor
    ) -> Tensor:
        """M P M^T + c2 Q2(P): the leading directions of the propagated columns and of the second-order term."""
        return self.columns.forecast(dynamics, x, covariance, steps, c2, most)

    def with_errors(self, covariance: Tensor, error: ModelError) -> Tensor:
        """P + Q: the leading directions of the columns and of as many draws from Q."""
        return self.columns.with_errors(covariance, error)

    def analysed(self, x: Tensor, covariance: Tensor, observed: Tensor, observing: ObservingSystem) -> Tensor:
        """P_a, by an update in the space of the columns."""
        return self.columns.analysis(x, covariance, observed, observing).covariance

    def update(
        self, x: Tensor, covariance: Tensor, innovation: Tensor, observed: Tensor, observing: ObservingSystem
    ) -> tuple[Tensor, Tensor]:
        """K d and P_a, by the columns."""
        analysis = self.columns.analysis(x, covariance, observed, observing)
        return analysis.increment(innovation), analysis.covariance

    def variances(self, covariance: Tensor) -> Tensor:
        """Diagonal of P."""
        return covariance.square().sum(1)

    def scaled(self, covariance: Tensor, factor: float) -> Tensor:
        """The covariance times a factor: the columns are multiplied by the root of the factor."""
        return math.sqrt(factor) * covariance

    def seen(self, covariance: Tensor) -> Tensor:
        """Covariances of each component with its companions."""
        assert self.companions is not None
        return self.columns.pairs(covariance, self.companions)


class FormOf:
    """Gives the form in which a method keeps covariances. It is made once for each dynamics.

    Parameters
    ----------
    radius : float, optional
        Radius of patches; by default no patches.
    columns : int, optional
        Number of columns of a root; by default no columns. A state with no more components than this has one matrix.
    companions : callable, optional
        companions(N) gives for each of N components the L components whose covariance with it a network reads, (N, L).
    """

    def __init__(
        self, radius: float | None = None, columns: int | None = None, companions: Companions | None = None
    ) -> None:
        self.radius, self.columns, self.companions = radius, columns, companions
        self._last: tuple[Dynamics, torch.device, CovarianceForm] | None = None

    def of(self, dynamics: Dynamics, device: torch.device = _CPU) -> CovarianceForm:
        """The form for a dynamics' states. It is one matrix if patches or columns would be no smaller."""
        if self._last is None or self._last[0] is not dynamics or self._last[1] != device:
            self._last = dynamics, device, self._made(dynamics, device)
        return self._last[2]

    def _made(self, dynamics: Dynamics, device: torch.device) -> CovarianceForm:
        size, companions = dynamics.space.size, self.companions
        if self.columns is not None and self.columns < size:
            near = None if companions is None else companions(size).to(device)
            return InColumns(Columns(dynamics.space, self.columns, device), near)
        patches = None if self.radius is None else patches_of(dynamics, self.radius)
        if patches is None:
            return OneMatrix(companions)
        pairs = None if companions is None else patches.pairs(companions(size).cpu()).to(device)
        return InPatches(patches.to(device), pairs)


def one_form(radius: float | None, columns: int | None) -> tuple[float | None, int | None]:
    """Check a radius of patches and a number of columns; at most one of them may be there.

    Raises
    ------
    TypeError
        If a value is not a number.
    ValueError
        If a number is not positive, or both are there.
    """
    check_one_form(radius, columns)
    return (
        None if radius is None else real("radius", radius, above=0.0),
        None if columns is None else integer("columns", columns, least=1),
    )


def check_form(form: CovarianceForm, shape: tuple[int, ...], who: str, remedy: str) -> None:
    """Refuse one matrix for a state that is too large for it. `remedy` says in the message what to do.

    Raises
    ------
    ValueError
    """
    if form.whole:
        check_size(math.prod(shape), who, remedy)
