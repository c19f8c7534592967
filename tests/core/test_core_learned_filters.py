"""Filters of which a part is learned: against the filters that they are with fixed parts, and closed forms."""

import math

import numpy as np
import pytest
import torch
from torch.testing import assert_close

import xdan
from xdan.core.dynamics import Lorenz96
from xdan.core.learning import AcrossMembers
from xdan.core.learning.objectives import RootSquaredError, SquaredError
from xdan.core.learning.rollout import Window
from xdan.core.methods import ETKF, LETKF, method_of
from xdan.core.methods.localised import Localisation
from xdan.core.networks import Committee, ConstantGain, HyperGain, LearnedLETKF, LinearInZeta, network_by_name
from xdan.core.observing import ObservingSystem, Positions
from xdan.core.observing.positions import InterpolationOperator

SITES = 12
MODEL = Lorenz96(SITES)
DOUBLE = torch.zeros((), dtype=torch.float64)


def normals(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def observed_sites(pattern, rows=3):
    observed = torch.zeros(rows, SITES, dtype=torch.bool)
    observed[:, {"all": slice(None), "some": slice(None, None, 4)}[pattern]] = True
    observed[0, 0] = False  # trajectories differ in what is missing
    return observed


def state_of(members, rows=3, seed=0, age=0):
    x = 2.0 + 2.0 * normals(rows, members, SITES, seed=seed)
    whole = torch.full((rows,), age)
    ones = torch.ones(rows, SITES, dtype=torch.float64)
    return {"x": x, "age": whole, "cycle": whole, "label": torch.arange(rows), "consistency": ones, "inflation": ones}


def classical(kind, members, spin_up):
    """A filter with inflation 1.25, a number that float32 has exactly, in its logarithm nearly."""
    if kind == "none":
        return ETKF(members, inflation=1.25, spin_up=spin_up)
    method = LETKF(members, radius=2.0, inflation=1.25, spin_up=spin_up)
    method.dynamics = MODEL
    method._localisation = Localisation(MODEL, None, 2.0)
    return method


def perturbed(network, size=0.3, seed=5):
    """A network with weights away from their start."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in network.parameters():
            weight.add_(size * torch.randn(weight.shape, generator=generator, dtype=weight.dtype))
    return network


@pytest.mark.parametrize("pattern", ["all", "some"])
@pytest.mark.parametrize("members", [2, 7, 15])
@pytest.mark.parametrize("kind", ["none", "fixed"])
@pytest.mark.parametrize("spin_up", [0, 3])
def test_with_fixed_parts_it_is_the_filter_of_that_inflation_and_taper(kind, members, pattern, spin_up):
    """Whichever side of the anomalies is decomposed, and while it spins up."""
    words = {"first_inflation": 1.25, "radius": 2.0, "spin_up": spin_up}
    network = LearnedLETKF(members, inflation_form="fixed", localisation_form=kind, **words).double()
    method = method_of(network).bound(MODEL)
    observed, observing = observed_sites(pattern), ObservingSystem(std=DOUBLE + 0.7)
    state, y = state_of(members), 2.0 + normals(3, SITES, seed=1)
    expected = classical(kind, members, spin_up).analyse(state, y, observed, observing)["x"]
    after = method.analyse(state, y, observed, observing)
    assert_close(after["x"], expected, rtol=0, atol=1e-6)  # the logarithm of the inflation is of single precision
    assert after["age"].tolist() == [1, 1, 1]


def test_a_free_taper_starts_near_that_of_gaspari_and_cohn():
    members, observed, observing = 6, observed_sites("all"), ObservingSystem(std=DOUBLE + 0.7)
    state, y = state_of(members), 2.0 + normals(3, SITES, seed=1)
    expected = classical("fixed", members, 0).analyse(state, y, observed, observing)["x"]
    words = {"first_inflation": 1.25, "radius": 2.0, "farthest": 6.0, "nodes": 7, "spin_up": 0}
    for localisation in ("taper", "state"):
        network = LearnedLETKF(members, inflation_form="state", localisation_form=localisation, **words).double()
        analysis = method_of(network).bound(MODEL).analyse(state, y, observed, observing)["x"]
        # Its least value, 1e-4, and its least slope, 1e-3, tell it from the other.
        assert_close(analysis, expected, rtol=0, atol=0.02)


def test_a_taper_falls_from_one_and_ends():
    taper = perturbed(LearnedLETKF(localisation_form="taper", radius=3.0, farthest=10.0, nodes=11), 2.0).taper
    values = taper(torch.linspace(0.0, 10.0, 101, dtype=torch.float64))
    assert values[0] == 1.0
    assert bool((values.diff() <= 0).all())
    assert bool((values > 0).all())
    assert taper(torch.tensor([10.5])).item() < 1e-10


@pytest.mark.parametrize("pattern", ["all", "some"])
@pytest.mark.parametrize(("inflation", "localisation"), [("state", "none"), ("state", "state"), ("sites", "taper")])
def test_the_order_of_members_changes_nothing(inflation, localisation, pattern):
    members = 6
    network = LearnedLETKF(members, inflation, localisation, sites=SITES, radius=2.0, farthest=6.0, nodes=7)
    method = method_of(perturbed(network.double())).bound(MODEL)
    state, y = state_of(members, age=200), normals(3, SITES, seed=1)
    observed, observing = observed_sites(pattern), ObservingSystem(std=DOUBLE + 0.7)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    after = method.analyse(state, y, observed, observing)
    moved = method.analyse({**state, "x": state["x"][:, order]}, y, observed, observing)
    assert_close(moved["x"], after["x"][:, order])
    assert_close(moved["inflation"], after["inflation"])
    assert_close(moved["consistency"], after["consistency"])
    assert float(after["inflation"].std()) > 1e-3  # it does depend on the state, or the site


def test_a_filter_of_a_ring_turns_with_it():
    network = perturbed(LearnedLETKF(5, radius=2.0, farthest=6.0, nodes=7).double())
    method = method_of(network).bound(MODEL)
    state, y = state_of(5, age=200), normals(3, SITES, seed=1)
    observing = ObservingSystem(std=DOUBLE + 0.7)
    after = method.analyse(state, y, observed_sites("some"), observing)["x"]
    turned = {**state, "x": state["x"].roll(5, -1)}
    again = method.analyse(turned, y.roll(5, -1), observed_sites("some").roll(5, -1), observing)["x"]
    assert_close(again, after.roll(5, -1))


def test_without_observations_the_mean_stays_and_the_anomalies_are_inflated():
    network = perturbed(LearnedLETKF(5, radius=2.0, farthest=6.0, nodes=7).double())
    state = state_of(5, age=200)
    none = torch.zeros(3, SITES, dtype=torch.bool)
    after = method_of(network).bound(MODEL).analyse(state, normals(3, SITES), none, ObservingSystem(std=DOUBLE + 0.7))
    mean = state["x"].mean(1, keepdim=True)
    assert_close(after["x"], mean + after["inflation"][:, None] * (state["x"] - mean))


def test_values_of_what_is_not_observed_do_not_matter():
    network = perturbed(LearnedLETKF(5, radius=2.0, farthest=6.0, nodes=7).double())
    method, observed = method_of(network).bound(MODEL), observed_sites("some")
    state, y, observing = state_of(5, age=200), normals(3, SITES, seed=1), ObservingSystem(std=DOUBLE + 0.7)
    after = method.analyse(state, y, observed, observing)["x"]
    other = method.analyse(state, torch.where(observed, y, 1e3), observed, observing)["x"]
    assert_close(other, after, rtol=0, atol=0)


@pytest.mark.parametrize("members", [4, 9])  # the sides that are decomposed: members, and observations
@pytest.mark.parametrize(("inflation", "localisation"), [("scalar", "none"), ("state", "state"), ("state", "none")])
def test_gradient_through_cycles_by_finite_differences(inflation, localisation, members):
    network = LearnedLETKF(members, inflation, localisation, radius=2.0, farthest=6.0, nodes=4, hidden=2, spin_up=0)
    network = perturbed(network.double(), 0.2)
    method, observing = method_of(network), ObservingSystem(std=DOUBLE + 0.7)
    truth = 2.0 + normals(2, 3, SITES, seed=3)
    observation = truth + 0.7 * normals(2, 3, SITES, seed=4)
    observation[:, :, 1::2] = math.nan
    window = Window(truth, observation, (1, 1, 1))
    state = {name: value for name, value in state_of(members, 2).items() if name not in ("cycle", "label")}

    def result():
        return SquaredError().window_gradient(method, MODEL, observing, window, state)

    gradients = result().gradients
    for weight, gradient in zip(network.parameters(), gradients, strict=True):
        direction = normals(*weight.shape, seed=7)
        losses = []
        for step in (1e-5, -1e-5):
            with torch.no_grad():
                weight.add_(step * direction)
                losses.append(float(result().loss))
                weight.sub_(step * direction)
        slope = (losses[0] - losses[1]) / 2e-5
        assert float((gradient * direction).sum()) == pytest.approx(slope, rel=1e-4, abs=1e-9)


def tiny_record(**words):
    words = {"interval": 0.05, "cycles": 12, "trajectories": 4, "seed": 1, **words}
    return xdan.twin(xdan.Lorenz96(sites=SITES), **words).compute()


TRAINING = {"batch": 4, "window": 3, "steps": 3, "progress": False, "processes": 1}


@pytest.mark.parametrize(
    "network",
    [
        ConstantGain(width=5),
        ConstantGain("symmetric", sites=SITES),
        HyperGain(filters=3, blocks=1, rank=2, radius=2.0),
        LearnedLETKF(5, "sites", "taper", sites=SITES, radius=2.0, farthest=6.0, nodes=4, spin_up=2),
        LearnedLETKF(5, radius=2.0, farthest=6.0, nodes=4, spin_up=2),
    ],
    ids=lambda network: network.name,
)
def test_trained_saved_opened_and_cycled(network, tmp_path):
    net = xdan.train(xdan.Lorenz96(sites=SITES), network, **TRAINING)
    start = network.state_dict()
    assert any(not np.array_equal(net.arrays[name], start[name]) for name, _ in network.named_parameters())
    net.to_zarr(tmp_path / "net.zarr")
    again = xdan.open_network(tmp_path / "net.zarr")
    assert again == net
    record = tiny_record()
    run = record.dan.cycle(again, progress=False)
    cut = record.isel(trajectory=slice(1, 3)).chunk(trajectory=1, time=5).dan.cycle(net, progress=False)
    np.testing.assert_allclose(cut.analysis, run.analysis.isel(trajectory=slice(1, 3)), rtol=0, atol=1e-4)
    assert bool(np.isfinite(run.analysis).all())
    if network.ensemble:
        assert run.inflation.dims == run.analysis.dims


def test_one_network_for_any_number_of_members():
    torch.manual_seed(3)
    network = perturbed(LearnedLETKF(5, radius=2.0, farthest=6.0, nodes=4, spin_up=2))
    network.normalise(2.3, 3.6, 1.0)
    net = xdan.Network.from_module(network, ("x",), {})
    record = tiny_record(observe=xdan.Sites.every(2))
    for members in (2, 9):
        other = net.with_parameters(members=members)
        assert {name: value.tolist() for name, value in other.arrays.items()} == {
            name: value.tolist() for name, value in net.arrays.items()
        }
        run = record.dan.cycle(other, members=True, progress=False)
        assert run.sizes["member"] == members
        assert bool(np.isfinite(run.analysis).all())


def test_presets():
    inflation, localisation = network_by_name("learned-inflation", {}), network_by_name("learned-localisation", {})
    assert (inflation.inflation_form, inflation.localisation_form) == ("state", "none")
    assert (localisation.inflation_form, localisation.localisation_form) == ("fixed", "state")
    assert inflation.name == localisation.name == "learned-letkf"


def test_observations_at_positions():
    """Those at the sites themselves, by an operator with positions, are those of the sites."""
    network = perturbed(LearnedLETKF(5, radius=2.0, farthest=6.0, nodes=4).double())
    method = method_of(network).bound(MODEL)
    state, y = state_of(5, age=200), normals(3, SITES, seed=1)
    every = torch.zeros(3, SITES, dtype=torch.bool)
    every[:, ::4] = True
    expected = method.analyse(state, y, every, ObservingSystem(std=DOUBLE + 0.7))["x"]
    positions = Positions(MODEL.space, {"x": torch.arange(0.0, SITES, 4.0, dtype=torch.float64)})
    operator = InterpolationOperator.at(positions)
    observing = ObservingSystem(std=DOUBLE + 0.7, operator=operator, positions=positions)
    after = method.analyse(state, y[:, ::4], torch.ones(3, SITES // 4, dtype=torch.bool), observing)["x"]
    assert_close(after, expected)


def test_refusals():
    with pytest.raises(ValueError, match="members=1"):
        LearnedLETKF(1)
    with pytest.raises(ValueError, match="inflation_form"):
        LearnedLETKF(5, "constant")
    with pytest.raises(ValueError, match=r"sites=40: the state has 12 sites"):
        xdan.train(xdan.Lorenz96(sites=SITES), LearnedLETKF(5, "sites", "none"), **TRAINING)
    with pytest.raises(ValueError, match="width=21: the state has 12 sites"):
        xdan.train(xdan.Lorenz96(sites=SITES), "constant-gain", **TRAINING)
    correlated = 0.5 * np.eye(SITES) + 0.5
    experiment = xdan.TwinExperiment(xdan.Lorenz96(sites=SITES), error_covariance=correlated)
    with pytest.raises(ValueError, match=r"independent errors.*localisation_form='none'"):
        xdan.train(experiment, LearnedLETKF(5, farthest=6.0), **TRAINING)
    parts = [{"name": "hyper-gain", "parameters": {"filters": 2, "blocks": 1}}] * 2
    with pytest.raises(ValueError, match="knows H and R"):
        Committee(parts)
    net = xdan.Network.from_module(HyperGain(filters=2, blocks=1, radius=2.0), ("x",), {})
    with pytest.raises(ValueError, match="from H and R"):
        tiny_record().dan.gain(net)


# --- gains ---


def test_a_hyper_gain_is_kalmans_with_the_covariance_that_it_makes():
    network = HyperGain(filters=3, blocks=1, rank=3, radius=2.0).double()
    network.normalise(2.3, 3.6, 0.7)
    x, y = 2.0 + normals(2, SITES), normals(2, SITES, seed=1)
    observed = observed_sites("some", 2)
    observing = ObservingSystem(std=DOUBLE + 0.7)
    after = method_of(network).analyse({"x": x}, y, observed, observing)["x"]
    for row in range(2):
        b = network.background(x)[row].detach()
        assert float(torch.linalg.eigvalsh(b)[0]) > -1e-10
        seen = torch.eye(SITES, dtype=torch.float64)[observed[row]]
        gain = b @ seen.T @ torch.linalg.inv(seen @ b @ seen.T + 0.49 * torch.eye(len(seen), dtype=torch.float64))
        assert_close(after[row], x[row] + gain @ (y - x)[row][observed[row]])


def test_a_hyper_gain_makes_its_covariance_as_linear_in_zeta_does():
    words = {"filters": 3, "blocks": 1, "rank": 3, "radius": 2.0}
    network, other = HyperGain(**words), LinearInZeta(**words)
    other.load_state_dict(network.maker.state_dict())
    x = normals(2, SITES).float()
    assert_close(network.background(x), other.covariance(x)[0])
    # Its forward pass is the analysis of a record that is observed everywhere.
    network.normalise(2.3, 3.6, 0.7)
    y = normals(2, SITES, seed=1).float()
    every = torch.ones(2, SITES, dtype=torch.bool)
    observing = ObservingSystem(std=torch.tensor(0.7))
    after = method_of(network).analyse({"x": x}, y, every, observing)["x"]
    assert_close(network(x, (y - x) / 0.49)[0], after, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("form", ["kernel", "matrix", "symmetric"])
def test_a_constant_gain_is_its_matrix(form):
    network = perturbed(ConstantGain(form, width=5, sites=SITES).double())
    network.normalise(2.3, 3.6, 0.7)
    x, zeta = normals(2, SITES), normals(2, SITES, seed=1)
    analysis, _ = network(x, zeta)
    matrix = network.covariance(x)[0]
    assert_close(analysis, x + (matrix @ zeta[..., None])[..., 0])
    assert_close(network.analysis_covariance(x, zeta, None), matrix)
    if form == "symmetric":
        assert_close(matrix[0], matrix[0].T)
    if form == "kernel":
        assert_close(matrix[0].roll((3, 3), (0, 1)), matrix[0])
        assert matrix[0, 0, 3].item() == 0.0  # beyond the kernel


def riccati(model, q, r, h, rounds=500):
    """Steady gain of a Kalman filter, N x P."""
    p = np.eye(len(model))
    for _ in range(rounds):
        p = model @ p @ model.T + q
        gain = p @ h.T @ np.linalg.inv(h @ p @ h.T + r)
        p = p - gain @ h @ p
    return gain


def steady_gain(model, q, r, h, rounds=1000):
    """Gain of a Kalman filter, N x P, after so many rounds of Riccati's recursion."""
    p = np.eye(len(model))
    for _ in range(rounds):
        p = model @ p @ model.T + q
        gain = p @ h.T @ np.linalg.inv(h @ p @ h.T + r)
        p = p - gain @ h @ p
    return gain


@pytest.mark.slow
def test_a_constant_gain_learns_that_of_riccati():
    """Linear model, model errors, one component of four not observed."""
    turned = np.linalg.qr(normals(4, 4).numpy())[0]
    model = 0.95 * turned
    matrix = torch.tensor(model)
    dynamics = xdan.CustomDynamics(step=lambda x: x @ matrix.to(x).T, state={"x": 4}, timestep=1.0, spin_up_time=0.0)
    seen = [0, 1, 3]
    h = np.eye(4)[seen]
    experiment = xdan.TwinExperiment(dynamics, interval=1.0, operator=h, error_std=0.5, model_error_std=0.3)
    network = ConstantGain("matrix", sites=4)
    words = {"objective": "mse", "steps": 300, "window": 6, "batch": 2000, "validate_every": 300}
    net = xdan.train(experiment, network, optimiser=xdan.Optimiser(adam_learning_rate=0.02), **(TRAINING | words))
    learned = net.module().covariance(torch.zeros(1, 4))[0][0].detach().numpy() @ h.T / 0.25
    expected = steady_gain(model, 0.09 * np.eye(4), 0.25 * np.eye(3), h)
    error = np.linalg.norm(learned - expected) / np.linalg.norm(expected)
    print(error)
    assert error < 0.01


def test_training_across_numbers_of_members_is_the_mean_of_trainings_with_each():
    network = perturbed(LearnedLETKF(4, radius=2.0, farthest=6.0, nodes=4, hidden=2, spin_up=1).double(), 0.2)
    network.normalise(2.3, 3.6, 0.7)
    method, observing = method_of(network), ObservingSystem(std=DOUBLE + 0.7)
    truth = 2.0 + normals(2, 6, SITES, seed=3)
    observation = truth + 0.7 * normals(2, 6, SITES, seed=4)
    both = AcrossMembers((3, 5))

    def halves(objective, method):
        """Results of two windows that follow each other."""
        first = Window(truth[:, :3], observation[:, :3], (1, 1, 1))
        second = Window(truth[:, 3:], observation[:, 3:], (1, 1, 1))
        before = objective.window_gradient(method, MODEL, observing, first, None)
        return objective.window_gradient(method, MODEL, observing, second, before.state)

    together = halves(both, method)
    each = [halves(RootSquaredError(), method.with_members(count)) for count in (3, 5)]
    assert together.loss.item() == pytest.approx(np.mean([one.loss.item() for one in each]))
    for gradient, *others in zip(together.gradients, *(one.gradients for one in each), strict=True):
        assert_close(gradient, torch.stack(others).mean(0))
    assert together.state["3-x"].shape == (2, 3, SITES)
    assert_close(together.state["5-x"], each[1].state["x"])


@pytest.mark.slow
def test_training_across_numbers_of_members_is_resumed(tmp_path):
    words = {**TRAINING, "objective": AcrossMembers((3, 5)), "checkpoint": tmp_path / "checkpoint.zarr"}
    network = LearnedLETKF(4, radius=2.0, farthest=6.0, nodes=4, spin_up=2)
    net = xdan.train(xdan.Lorenz96(sites=SITES), network, **words)
    again = xdan.train(xdan.Lorenz96(sites=SITES), network, **words)  # from its end
    assert again == net
    with pytest.raises(ValueError, match="several numbers of members"):
        xdan.train(xdan.Lorenz96(sites=SITES), xdan.EnsembleCNN(3, filters=2, blocks=1), **words)
    with pytest.raises(TypeError, match="expected numbers of members"):
        AcrossMembers(5)
