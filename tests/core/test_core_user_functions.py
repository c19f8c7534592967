"""What users write of models and operators: in place, with buffers, mixed up or at random, and its derivatives."""

import math

import pytest
import torch
from torch.func import jacfwd, jacrev, jvp, vmap
from torch.testing import assert_close

from xdan.core.dynamics import CustomDynamics, Dynamics, Lorenz63, Lorenz96, dynamics_to_json, runge_kutta_4
from xdan.core.observing import FunctionOperator, LinearOperator, Operator

N = 6
DOUBLE = torch.zeros((), dtype=torch.float64)


def states(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, N, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def model(step=None, **options) -> CustomDynamics:
    return CustomDynamics(**{"step": step, "state": {"x": N}, "timestep": 0.1, "spin_up_time": 0.0, **options})


def shifted(x: torch.Tensor) -> torch.Tensor:
    return 0.9 * x + 0.1 * torch.roll(x, 1, -1)


def in_place(x: torch.Tensor) -> torch.Tensor:
    moved = torch.roll(x, 1, -1)
    return x.mul_(0.9).add_(moved, alpha=0.1)


class Buffered:
    """Writes every answer into the tensor that it returned before."""

    def __init__(self, function):
        self.function, self.buffers = function, {}

    def __call__(self, x):
        answer = self.function(x)
        return self.buffers.setdefault((answer.shape, answer.dtype), torch.empty_like(answer)).copy_(answer)


def along_the_second_axis(x: torch.Tensor) -> torch.Tensor:
    return 0.9 * x + 0.1 * torch.roll(x, 1, 1)


MATRIX = 0.9 * torch.eye(N, dtype=torch.float64) + 0.1 * torch.eye(N, dtype=torch.float64).roll(1, 0)


@pytest.mark.parametrize("step", [shifted, in_place, Buffered(shifted), along_the_second_axis])
@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
def test_steps_are_powers_of_their_matrix(step, shape):
    dynamics, x = model(step), states(*shape)
    answers = [dynamics.advance(x, steps) for steps in (1, 2, 5)]
    assert torch.equal(x, states(*shape)), "the argument is left alone"
    for answer, steps in zip(answers, (1, 2, 5), strict=True):  # later calls have changed no earlier answer
        assert_close(answer, x @ torch.linalg.matrix_power(MATRIX.T, steps), rtol=1e-13, atol=1e-13)


def tendency_in_place(x: torch.Tensor) -> torch.Tensor:
    return x.mul_(-2.0)


@pytest.mark.parametrize("tendency", [tendency_in_place, Buffered(lambda x: -2.0 * x)])
def test_runge_kutta_of_a_tendency_that_is_not_pure(tendency):
    h = 0.1
    factor = sum((-2 * h) ** k / math.factorial(k) for k in range(5))
    x = states(3)
    for advanced in (model(None, tendency=tendency).step(x), runge_kutta_4(tendency, x, h)):
        assert_close(advanced, factor * states(3), rtol=1e-14, atol=0)
    assert torch.equal(x, states(3))


@pytest.mark.parametrize("step", [in_place, shifted])
def test_derivatives_pass_through_copies(step):
    dynamics, x, d = model(step), states(2), states(2, seed=1)
    expected = torch.linalg.matrix_power(MATRIX, 3)
    assert_close(jvp(lambda z: dynamics.advance(z, 3), (x,), (d,))[1], d @ expected.T)
    for jacobian in (jacfwd, jacrev):
        assert_close(vmap(jacobian(lambda z: dynamics.advance(z, 3)))(x), expected.expand(2, N, N))
    leaf = x.clone().requires_grad_()
    assert_close(torch.autograd.grad((dynamics.advance(leaf, 3) * d).sum(), leaf)[0], d @ expected)
    assert_close(dynamics.advance_along(x, d[:, None], 3)[1][:, 0], d @ expected.T)
    with torch.inference_mode():
        assert_close(dynamics.advance(states(2), 3), x @ expected.T)


def test_a_buffer_has_no_derivative_and_says_so():
    dynamics = model(Buffered(shifted))
    dynamics.step(states(2))
    with pytest.raises(ValueError, match="step= of the dynamics 'custom' has no derivative, because it writes into"):
        dynamics.advance_along(states(2), states(2, 1), 1)


class Written(Dynamics):
    """A class of a user: every method spoils its argument."""

    name, dims, timestep, spin_up_time = "written-by-a-user", ("x",), 0.1, 0.5
    coordinates = CustomDynamics(step=torch.clone, state={"x": N}, timestep=1.0).coordinates

    def config(self):
        return {}

    def step(self, x):
        return in_place(x)

    def rest(self, noise):
        return noise.add_(1.0)

    def distances(self, sites):
        return sites.mul_(2)[:, None].sub(torch.arange(N)).abs().double()


def test_methods_of_a_users_class_are_called_on_copies():
    dynamics, x, sites = Written(), states(2, 3), torch.arange(2)
    assert_close(dynamics.advance(x, 2), x @ MATRIX.T @ MATRIX.T)
    assert torch.equal(x, states(2, 3))
    assert torch.equal(dynamics.rest(x), x + 1)
    assert dynamics.distances(sites).tolist() == [[0, 1, 2, 3, 4, 5], [2, 1, 0, 1, 2, 3]]
    assert sites.tolist() == [0, 1]
    assert_close(
        dynamics.climatology([0, 1], 0, like=DOUBLE)[:, 0].mean(), dynamics.climatology([0, 1], 0).mean().double()
    )


class Halving(Lorenz96):
    """Another model with the ring of Lorenz-96."""

    def step(self, x):
        return x / 2


class Decaying(Lorenz63):
    """Another model with the components of Lorenz-63."""

    def tendency(self, x):
        return -x


@pytest.mark.parametrize(
    ("dynamics", "factor"),
    [(Halving(sites=N), 0.5), (Decaying(), sum((-0.01) ** k / math.factorial(k) for k in range(5)))],
)
def test_a_subclass_advances_by_its_own_step(dynamics, factor):
    x = states(2)[:, : math.prod(dynamics.shape)]
    assert_close(dynamics.advance(x, 3), factor**3 * x, rtol=1e-13, atol=0)
    after, pushed = dynamics.advance_along(x, 2 * x[:, None], 3)
    assert_close(pushed[:, 0], 2 * after, rtol=1e-13, atol=0)
    assert dynamics_to_json(dynamics)["name"] == type(dynamics).__name__, "a store would open with another model"


def test_a_subclass_has_no_way_back_that_is_another_models():
    with pytest.raises(ValueError, match="cannot be integrated backward"):
        Halving(sites=N).retreat(states(2), 1)


calls = iter(range(10**6))


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (lambda x: x + 0.1 * torch.randn_like(x), "step= .* gave two answers at the same states"),
        (lambda x: x + 1e-3 * next(calls), "gave two answers .* without random numbers, a clock or a memory"),
        (lambda x: x - x.mean(), r"mixes the states of a batch: .* take sums, means and norms along the last axes"),
        (lambda x: x / x.norm(dim=0), "mixes the states of a batch"),
        (lambda x: x.numpy(), "gave a ndarray for states of shape .*: expected a tensor"),
        (lambda x: None, r"gave a NoneType .*: expected a tensor of shape \(2, 6\)"),
        (lambda x: 1, "gave a int .*: expected a tensor"),
        (lambda x: x[:, :3], r"gave shape \(2, 3\) .*: expected \(2, 6\)"),
        (lambda x: x.sum(-1), r"gave shape \(2,\)"),
        (lambda x: x.float(), "gave torch.float32 on cpu .*: expected torch.float64 on cpu"),
        (lambda x: x.long(), "gave torch.int64"),
        (lambda x: x.to("meta"), "on meta .*: expected torch.float64 on cpu"),
        (lambda x: x @ torch.ones(3, 3), r"cannot take states of torch.float64, shape \(2, 6\), on cpu"),
        (lambda: 0, "failed for states .*TypeError.*expected a torch function"),
        (lambda x: x[0] / {}["rate"], "failed for states .*KeyError.*expected a torch function"),
    ],
)
@pytest.mark.parametrize("part", ["step", "tendency", "rest"])
def test_functions_that_make_no_model_are_refused_before_it_runs(step, message, part):
    parts = {"step": shifted, part: step} if part == "rest" else {part: step}
    with pytest.raises(ValueError, match=message.replace("step=", f"{part}=")):
        model(**{"step": None, **parts}).climatology([0], 0, like=DOUBLE)


def test_a_function_of_single_precision_serves_single_precision():
    matrix = MATRIX.float()
    dynamics = model(lambda x: x @ matrix.T, spin_up_time=0.1)
    start = model(lambda x: x).climatology([0, 1], 0)
    assert_close(dynamics.climatology([0, 1], 0), start @ matrix.T)
    with pytest.raises(ValueError, match=r"cannot take states of torch.float64.* turn its own tensors with .to\(x\)"):
        dynamics.climatology([0, 1], 0, like=DOUBLE)


def test_a_function_is_tried_once():
    counted = []

    def step(x):
        counted.append(len(x))
        return x

    dynamics = model(step)
    dynamics.vet()
    first = len(counted)
    dynamics.vet()
    dynamics.climatology([0], 0)
    assert 0 < first == len(counted)
    refused = model(lambda x: x - x.mean(0))
    for _ in range(2):
        with pytest.raises(ValueError, match="mixes the states"):
            refused.vet()


def test_advance_that_is_another_model_than_step_is_refused():
    class Torn(Written):
        def advance(self, x, steps):
            return x

    with pytest.raises(ValueError, match=r"advance\(\) of the dynamics .* over 2 steps is not what two calls of step"):
        Torn().climatology([0], 0)


@pytest.mark.parametrize(
    ("distance", "message"),
    [
        (lambda a, b: 1.0, "distance= .* gave float: expected a tensor"),
        (lambda a, b: (a - b).abs()[0], r"gave \(6,\): expected a tensor of shape \(1, 6\)"),
        (lambda a, b: a - b, "are no distances: expected real numbers, 0 or more"),
        (lambda a, b: (a - b) / 0.0, "are no distances"),
    ],
)
def test_distances_that_are_none_are_refused(distance, message):
    with pytest.raises(ValueError, match=message):
        model(shifted, distance=distance).distances(torch.tensor([1]))


def rain_in_place(x: torch.Tensor) -> torch.Tensor:
    x[x < 0] = 0
    return x[..., ::2]


@pytest.mark.parametrize("function", [rain_in_place, Buffered(lambda x: x.clamp(min=0)[..., ::2])])
@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
def test_operators_work_on_copies(function, shape):
    h, x = FunctionOperator(function, 3), states(*shape)
    first = h(x)
    h(-x)
    assert torch.equal(x, states(*shape))
    assert torch.equal(first, torch.where(x > 0, x, 0.0)[..., ::2])


def test_derivatives_of_an_operator_in_place():
    h, x = FunctionOperator(lambda x: x.pow_(2)[..., :2], 2), states(2)
    assert_close(h.tangent(x, torch.ones(2, 1, N, dtype=torch.float64))[:, 0], 2 * x[:, :2])
    expected = torch.zeros_like(x)
    expected[:, :2] = 2 * x[:, :2]
    assert_close(h.adjoint(x, torch.ones(2, 2, dtype=torch.float64)), expected)


class Squares(LinearOperator):
    """No longer linear: derivatives and the flag must not be the parent's."""

    def __call__(self, x):
        return super().__call__(x.pow_(2))


def test_a_subclass_of_an_operator_has_derivatives_of_its_own():
    h, x = Squares(torch.eye(N, dtype=torch.float64)), states(2)
    assert not h.linear
    assert_close(h(x), states(2) ** 2)
    assert_close(h.tangent(x, torch.ones(2, 1, N, dtype=torch.float64))[:, 0], 2 * x)
    assert_close(h.adjoint(x, torch.ones_like(x)), 2 * x)
    assert issubclass(Squares, Operator)
