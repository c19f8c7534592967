"""Torch modules of a user as networks: what they are called with, what comes back, copies, and what is refused."""

import copy
import threading

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close

from xdan.core.networks import (
    Committee,
    GaussianCNN,
    ModuleNetwork,
    ResidualCNN,
    check_network,
    how_to_open,
    module_networks,
    named_modules,
    network_by_name,
    with_modules,
)
from xdan.core.spaces import Components, Field, Plane, Ring, StateSpace

SMALL = {"filters": 3, "blocks": 1, "kernel": 3}


def normals(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Affine(nn.Module):
    """x_a = x + A x + B zeta + c, whose derivatives are known; it keeps what it was called with."""

    def __init__(self, sites=5, extra=0.0):
        super().__init__()
        self.a, self.b = (nn.Parameter(0.3 * normals(sites, sites, seed=k).float()) for k in (1, 2))
        self.c, self.extra = nn.Parameter(normals(sites, seed=3).float()), extra
        self.calls = []

    def forward(self, x, zeta):
        self.calls.append((x.detach(), zeta.detach()))
        return x + x @ self.a.T + zeta @ self.b.T + self.c + self.extra


class Remembering(nn.Module):
    """Latent channels that shift by one, and an analysis that they change."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.5))

    def forward(self, x, zeta, memory):
        after = torch.cat([zeta[:, None], memory[:, :-1]], 1)
        return x + self.weight * memory.sum(1), after


class Bilinear(nn.Module):
    """x_a = x + sum_jl T[i, j, l] zeta_j x_l, whose marginal gain is T."""

    def __init__(self, sites=4):
        super().__init__()
        self.t = nn.Parameter(normals(sites, sites, sites, seed=4).float())

    def forward(self, x, zeta):
        return x + torch.einsum("ijl,bj,bl->bi", self.t, zeta, x)


class Layered(nn.Module):
    """A layer that may do what it should not, behind a last layer of zeros."""

    def __init__(self, layer=None, sites=6):
        super().__init__()
        self.first, self.layer, self.last = nn.Linear(2 * sites, 8), layer or nn.Identity(), nn.Linear(8, sites)
        nn.init.zeros_(self.last.weight)

    def forward(self, x, zeta):
        return x + self.last(self.layer(self.first(torch.cat([x, zeta], -1))))


def test_the_module_gets_what_comes_in_and_its_answer_is_the_analysis():
    network, x, zeta = ModuleNetwork(Affine()).double(), normals(3, 5), normals(3, 5, seed=1)
    network.normalise(2.0, 3.0, 0.5)
    analysis, memory = network(x, zeta)
    assert memory is None
    assert_close(analysis, network.module(x, zeta), rtol=0, atol=0)
    assert_close(network.module.calls[0], (x, zeta), rtol=0, atol=0)


def test_a_normalised_module_gets_the_units_of_the_other_networks_and_its_answer_is_brought_back():
    network, x, zeta = ModuleNetwork(Affine(), normalised=True).double(), normals(3, 5), normals(3, 5, seed=1)
    network.normalise(2.0, 3.0, 0.5)
    analysis, _ = network(x, zeta)
    inside, innovation = network.module.calls[0]
    assert_close(inside, (x - 2.0) / 3.0)
    assert_close(innovation, 0.5 * zeta)
    assert_close(analysis, 2.0 + 3.0 * network.module(inside, innovation))  # the inverse of what it got


class InPlace(Affine):
    """Writes its increment into the state that it gets."""

    def forward(self, x, zeta):
        return x.add_(zeta @ self.b.T)


def test_a_normalised_module_that_writes_into_its_state_gives_its_increment_all_the_same():
    network, x, zeta = ModuleNetwork(InPlace(), normalised=True).double(), normals(3, 5), normals(3, 5, seed=1)
    network.normalise(2.0, 3.0, 0.5)
    assert_close(network(x.clone(), zeta)[0], x + 3.0 * 0.5 * zeta @ network.module.b.T)


@given(scale=st.floats(0.01, 100.0), shift=st.floats(-100.0, 100.0))
def test_a_normalised_module_does_not_see_the_units_of_the_state(scale, shift):
    network, x, zeta = ModuleNetwork(Affine(), normalised=True).double(), normals(3, 5), normals(3, 5, seed=1)
    network.normalise(2.0, 3.0, 0.5)
    expected = network(x, zeta)[0] * scale + shift
    network.normalise(2.0 * scale + shift, 3.0 * scale, 0.5 * scale)
    assert_close(network(x * scale + shift, zeta / scale)[0], expected, rtol=1e-9, atol=1e-9 * (scale + abs(shift)))


def test_fields_of_several_units_are_normalised_one_by_one():
    space = StateSpace([Field("a", Plane((2, 3))), Field("b", Components(2))])
    network = ModuleNetwork(Affine(8), normalised=True).made_for(space).double()
    assert network.space == space
    network.normalise([1.0, -4.0], [2.0, 8.0], [0.5, 3.0])
    x, zeta = normals(2, 8), normals(2, 8, seed=1)
    analysis = network(x, zeta)[0]
    mean, std, error = (torch.tensor(pair).double().repeat_interleave(torch.tensor([6, 2])) for pair in PAIRS)
    inside, innovation = network.module.calls[0]
    assert_close((inside, innovation), ((x - mean) / std, zeta * error))
    assert_close(analysis, mean + std * network.module(inside, innovation))


PAIRS = ([1.0, -4.0], [2.0, 8.0], [0.5, 3.0])


def test_the_only_field_of_a_plane_comes_flat_in_c_order():
    class Rows(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3, 1))

        def forward(self, x, zeta):
            plane = zeta.unflatten(-1, (3, 4))
            return x + (self.weight * plane.mean(-1, keepdim=True)).expand(plane.shape).flatten(-2)

    space = StateSpace([Field("a", Plane((3, 4)))])
    network = ModuleNetwork(Rows()).made_for(space).double()
    zeta = normals(2, 12)
    fields = space.unpack(network(torch.zeros_like(zeta), zeta)[0])["a"]
    assert_close(fields, space.unpack(zeta)["a"].mean(-1, keepdim=True).expand(fields.shape))


def test_a_mean_that_is_conserved_stays():
    space = StateSpace([Field("a", Ring(3), conserved=True), Field("b", Ring(2, dim="y"))])
    network = ModuleNetwork(Affine()).made_for(space).double()
    x, zeta = normals(4, 5), normals(4, 5, seed=1)
    change = network(x, zeta)[0] - x
    assert_close(change[:, :3].mean(-1), torch.zeros(4).double())
    free = network.module(x, zeta) - x
    assert_close(change[:, 3:], free[:, 3:])
    assert_close(change[:, :3], free[:, :3] - free[:, :3].mean(-1, keepdim=True))


def test_memory_begins_with_zeros_and_is_carried():
    network = ModuleNetwork(Remembering(), memory=2).double()
    x, first, second = normals(3, 4), normals(3, 4, seed=1), normals(3, 4, seed=2)
    analysis, memory = network(x, first)
    assert_close(analysis, x)
    analysis, memory = network(x, second, memory)
    assert_close(analysis, x + 0.5 * first)
    assert_close(memory, torch.stack([second, first], 1))


def test_derivatives_by_autodiff_are_those_of_the_formula():
    network, x, zeta = ModuleNetwork(Affine()).double(), normals(2, 5), normals(2, 5, seed=1)
    assert_close(network.analysis_covariance(x, zeta, None), network.module.b.expand(2, 5, 5))
    toy, x, zeta = ModuleNetwork(Bilinear()).double(), normals(2, 4), normals(2, 4, seed=1)
    for site in range(4):
        assert_close(toy.marginal_gain(x, zeta, None, site), toy.module.t[..., site].expand(2, 4, 4))


def test_derivatives_of_a_normalised_module_are_in_the_units_of_the_state():
    network = ModuleNetwork(Affine(), normalised=True).double()
    network.normalise(2.0, 3.0, 0.5)
    gain = network.analysis_covariance(normals(1, 5), normals(1, 5, seed=1), None)
    assert_close(gain[0], 3.0 * network.module.b * 0.5)


def test_a_module_is_copied_in_single_precision_with_the_weights_that_it_has():
    mine = Affine().double()
    network = ModuleNetwork(mine)
    assert {one.dtype for one in network.state_dict().values()} == {torch.float32}
    with torch.no_grad():
        mine.a.zero_()
    assert bool(network.module.a.any())
    again = network.made_anew()
    assert again is not network
    assert not network.follows_from_config
    assert all(torch.equal(one, other) for one, other in zip(network.parameters(), again.parameters(), strict=True))
    with torch.no_grad():
        again.module.a.zero_()
    assert bool(network.module.a.any())


def test_what_holds_a_module_is_copied_too():
    inner = ModuleNetwork(Affine(), memory=0)
    around = GaussianCNN(inner, **SMALL)
    assert not around.follows_from_config
    assert torch.equal(around.made_anew().centre.module.a, inner.module.a)
    assert ResidualCNN(**SMALL).follows_from_config
    pair = Committee([inner, ResidualCNN(**SMALL)])
    assert not pair.follows_from_config
    assert pair.config()["networks"][0] == {"name": "module", "parameters": inner.config()}


@pytest.mark.parametrize(
    ("module", "error", "message"),
    [
        (Affine, TypeError, r"module=Affine is a class: expected an instance, Affine\(\.\.\.\)"),
        (None, TypeError, "module=None: expected an instance of torch.nn.Module of yours"),
        ("here.Affine", TypeError, "a name stands for no code, so import the class 'here.Affine'"),
        (ResidualCNN(**SMALL), TypeError, "that is no network of xdan; ResidualCNN is one as it is"),
        (nn.Identity(), ValueError, "the module Identity has no parameters: expected some to train"),
        (nn.LazyLinear(3), ValueError, r"has no shape yet for \['weight', 'bias'\]: expected a module that was called"),
        (nn.Linear(2, 2, dtype=torch.complex64), ValueError, "has complex numbers .* expected pairs of real ones"),
    ],
)
def test_what_is_no_module_to_train_is_refused(module, error, message):
    with pytest.raises(error, match=message):
        ModuleNetwork(module)


def test_a_module_that_cannot_be_copied_is_refused():
    mine = Affine()
    mine.lock = threading.Lock()
    with pytest.raises(ValueError, match=r"the module Affine cannot be copied .*expected one that copy.deepcopy takes"):
        ModuleNetwork(mine)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
def test_a_scripted_module_is_refused():
    with pytest.raises(ValueError, match=r"is what torch.jit gave: expected the module before"):
        ModuleNetwork(torch.jit.script(nn.Bilinear(2, 2, 2)))


class WithExtraState(Affine):
    def get_extra_state(self):
        return {"calls": 0}


def test_a_module_with_more_than_tensors_to_save_is_refused():
    with pytest.raises(ValueError, match=r"the module WithExtraState keeps \['_extra_state'\] beside its tensors"):
        ModuleNetwork(WithExtraState())


class Answer(nn.Module):
    """Gives what a test wants."""

    def __init__(self, answer):
        super().__init__()
        self.weight, self.answer = nn.Parameter(torch.ones(1)), answer

    def forward(self, x, zeta, *memory):
        return self.answer(self.weight * (x + zeta), *memory)


@pytest.mark.parametrize(
    ("answer", "memory", "message"),
    [
        (lambda y: y[:, :3], 0, r"the module Answer gave torch.float32 of shape \(1, 3\): expected the analysis"),
        (lambda y: y[:, None], 0, r"of shape \(1, 1, 6\): expected the analysis, torch.float32 of shape \(1, 6\)"),
        (lambda y: y.double(), 0, r"gave torch.float64 .* turn tensors of its own with .to\(x\)"),
        (lambda y: None, 0, "gave None: expected the analysis"),
        (lambda y: {"analysis": y}, 0, "gave a dict: expected the analysis"),
        (lambda y: (y, y, y), 0, "gave a tuple of 3: expected the analysis"),
        (lambda y: (y, y), 0, "beside the analysis: expected .* for latent channels pass memory="),
        (lambda y, m: y, 2, r"gave None as its memory: expected a pair: .* the new memory of shape \(1, 2, 6\)"),
        (lambda y, m: (y, m[:, :1]), 2, r"of shape \(1, 1, 6\) as its memory: expected a pair"),
        (lambda y, m: (y, m.double()), 2, "gave torch.float64 .* as its memory"),
        (lambda y: y, 2, "fails for states of 6 components .* expected forward.x, zeta, memory., as memory=2"),
        (lambda y, m: (y, m), 0, r"fails .*TypeError.*expected forward\(x, zeta\), or memory= and forward"),
        (lambda y: y @ torch.ones(5, 5), 0, r"fails for states of 6 components .*takes x and zeta of shape \(B, 6\)"),
    ],
)
def test_an_answer_that_is_no_analysis_is_refused_before_training(answer, memory, message):
    with pytest.raises(ValueError, match=message):
        ModuleNetwork(Answer(answer), memory).check_state(("x",), (6,))


def test_a_module_of_a_fixed_number_of_sites_says_which_it_was_used_on():
    network = ModuleNetwork(Affine(5))
    network.check_state(("x",), (5,))
    with pytest.raises(ValueError, match="fails for states of 7 components, and was last used on 5"):
        network.check_state(("x",), (7,))


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (Layered(nn.BatchNorm1d(8)), r"changes its buffers \['module.layer.num_batches_tracked', .*as BatchNorm does"),
        (Answer(lambda y: y - y.mean(0)), "mixes the states of a batch: one gives"),
        (Answer(lambda y: y.detach()), "torch sees no derivative of the module Answer by its weights"),
        (Answer(lambda y: y + torch.randn_like(y)), "gave two analyses of the same states"),
        (InPlace(6), "writes into its forecast, its projected innovation or its memory: expected new tensors"),
        (Answer(lambda y, m: (y, m.add_(1.0))), "writes into its forecast, its projected innovation or its memory"),
    ],
)
def test_a_module_that_cannot_be_trained_is_refused(module, message):
    network = ModuleNetwork(module, memory=int(message.endswith("or its memory")))
    with pytest.raises(ValueError, match=message):
        check_network(network, 6)


class InTraining(Layered):
    """Takes the mean of the batch away, where it trains."""

    def forward(self, x, zeta):
        analysis = super().forward(x, zeta)
        return analysis - analysis.mean(0) if self.training else analysis


def test_a_module_that_mixes_states_in_training_mode_alone_is_refused():
    with pytest.raises(ValueError, match="mixes the states of a batch in training mode"):
        check_network(ModuleNetwork(InTraining()), 6)


def test_dropout_warns_behind_a_last_layer_of_zeros_too_and_draws_nothing_from_the_user():
    network = ModuleNetwork(Layered(nn.Dropout(0.5)))
    before = torch.get_rng_state()
    with pytest.warns(UserWarning, match="the module Layered draws random numbers in training mode, as dropout does"):
        check_network(network, 6)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_trial_leaves_the_network_as_it_was():
    network = ModuleNetwork(Layered(nn.Sequential(nn.LayerNorm(8), nn.Dropout(0.0))))
    network.module.layer.eval()
    kept = copy.deepcopy(network.state_dict())
    check_network(network, 6)
    assert network.training
    assert all(torch.equal(kept[name], value) for name, value in network.state_dict().items())
    broken = ModuleNetwork(Layered(nn.BatchNorm1d(8)))
    kept = copy.deepcopy(broken.state_dict())
    with pytest.raises(ValueError, match="BatchNorm"):
        check_network(broken, 6)
    assert all(torch.equal(kept[name], value) for name, value in broken.state_dict().items())


def test_a_description_names_the_module_and_a_name_makes_none():
    network = ModuleNetwork(Remembering(), memory=3, normalised=True)
    name = f"{__name__}.Remembering"
    assert network.config() == {"module": name, "memory": 3, "normalised": True}
    with pytest.raises(TypeError, match="a name stands for no code"):
        network_by_name("module", network.config())


def shapes(network):
    return {label: tuple(value.shape) for label, value in network.state_dict().items()}


def described(network):
    return {"name": network.name, "parameters": network.config()}


NESTED = {
    "alone": lambda: ModuleNetwork(Affine(), normalised=True),
    "with a spread": lambda: GaussianCNN(ModuleNetwork(Affine()), **SMALL),
    "committee": lambda: Committee([ModuleNetwork(Affine()), ResidualCNN(**SMALL), ModuleNetwork(Affine())]),
    "committee of spreads": lambda: Committee([GaussianCNN(ModuleNetwork(Affine()), **SMALL) for _ in range(2)]),
}


@pytest.mark.parametrize("name", NESTED)
def test_a_description_and_modules_make_the_network(name):
    network = NESTED[name]()
    count = len(module_networks(network))
    assert named_modules(described(network)) == [f"{__name__}.Affine"] * count
    for modules in (Affine(), [Affine() for _ in range(count)]):
        again = with_modules(described(network), modules, shapes(network))
        assert again.config() == network.config()
        again.load_state_dict(network.state_dict())
        x, zeta = normals(2, 5).float(), normals(2, 5, seed=1).float()
        assert torch.equal(again(x, zeta)[0], network(x, zeta)[0])


def test_modules_of_another_class_or_other_tensors_or_another_number_are_refused():
    pair = Committee([ModuleNetwork(Affine()), ModuleNetwork(Remembering())])
    with pytest.raises(ValueError, match=r"Remembering: the weights are those of .*Affine: expected an instance of"):
        with_modules(described(pair), [Remembering(), Affine()], shapes(pair))
    with pytest.raises(ValueError, match="module= holds 1 modules: expected 2"):
        with_modules(described(pair), [Affine()], shapes(pair))
    with pytest.raises(ValueError, match=r"'networks.0.module.a' has shape \(5, 5\), expected \(6, 6\)"):
        with_modules(described(pair), [Affine(6), Remembering()], shapes(pair))
    with pytest.raises(TypeError, match=r"module\[1\]=Affine is a class"):
        with_modules(described(pair), [Affine(), Affine], shapes(pair))


def test_a_module_is_known_again_by_its_analyses():
    network = ModuleNetwork(Affine(), normalised=True)
    assert network.seen() is None  # it has seen no states
    network.check_state(("x",), (5,))
    seen = network.seen()
    assert seen["sites"] == 5
    assert len(seen["increments"]) == 5
    same, other = (ModuleNetwork(Affine(extra=extra), normalised=True) for extra in (0.0, 0.05))
    same.check_seen(seen)
    with pytest.raises(ValueError, match="gives other analyses than the module that was saved: expected the same"):
        other.check_seen(seen)
    with pytest.raises(ValueError, match="gives other analyses"):
        ModuleNetwork(Affine()).check_seen({**seen, "increments": seen["increments"][:4]})


def test_a_module_that_changes_nothing_yet_is_known_again_where_rounding_differs():
    network = ModuleNetwork(Affine(), normalised=True)
    for one in network.parameters():
        one.data.zero_()
    network.check_state(("x",), (5,))
    seen = network.seen()
    network.check_seen({**seen, "increments": [value + 1e-6 for value in seen["increments"]]})


@pytest.mark.parametrize(
    ("names", "lines"),
    [
        (["a.b.Mine"], "from a.b import Mine; xdan.open_network('net.zarr', module=Mine(...))"),
        (["__main__.Mine"] * 2, "run the code that defines Mine; xdan.open_network('net.zarr', module=Mine(...))"),
        (
            ["a.Mine", "b.f.<locals>.Yours"],
            "from a import Mine; run the code that defines Yours; "
            "xdan.open_network('net.zarr', module=[Mine(...), Yours(...)])",
        ),
    ],
)
def test_how_to_open(names, lines):
    assert how_to_open(names, "net.zarr") == lines
