"""Torch modules as networks from a record to a store, and the blocks of docs/your-network.md, run as a user would."""

import re
import subprocess
import sys
import textwrap
from pathlib import Path

import dask
import numpy as np
import pytest
import torch
from torch import nn

import xdan

PAGE = (Path(__file__).parents[1] / "docs" / "your-network.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE, re.DOTALL | re.M)


class Small(nn.Module):
    """A hidden layer for a ring of eight sites; `sign` changes no shape."""

    def __init__(self, hidden=12, sign=1.0, layer=None):
        super().__init__()
        self.first, self.layer, self.last = nn.Linear(16, hidden), layer or nn.Identity(), nn.Linear(hidden, 8)
        self.sign = sign

    def forward(self, x, zeta):
        hidden = torch.tanh(self.layer(self.first(torch.cat([x, zeta], -1))))
        return x + 0.1 * zeta + self.sign * self.last(hidden)


class Remembering(nn.Module):
    def __init__(self, memory=2):
        super().__init__()
        self.layer = nn.Conv1d(2 + memory, 1 + memory, 3, padding=1, padding_mode="circular")

    def forward(self, x, zeta, memory):
        out = self.layer(torch.cat([torch.stack([x, zeta], 1), memory], 1))
        return x + out[:, 0], torch.tanh(out[:, 1:])


def small(**changes):
    torch.manual_seed(0)
    return Small(**changes)


@pytest.fixture(scope="module")
def mine(single, quick):
    return xdan.train(single, small(), **quick)


@pytest.mark.slow  # ci/docs_blocks.py runs them
def test_blocks_of_the_page_run_one_after_another(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "__main__"}
    for number, block in enumerate(BLOCKS, 1):
        exec(compile(block, f"block {number}", "exec"), names)
    printed = capsys.readouterr().out
    scores = [float(number) for number in re.findall(r"\d+\.\d+", printed)]
    assert np.isfinite(scores).all()
    network, filter_ = (float(number) for number in re.findall(r"RMSE (\d+\.\d+) \+-", printed))
    assert filter_ < network < 1.0  # as the page says: poor, and better than the observations


def test_a_module_is_trained_saved_and_opened(single, twin, quick, tmp_path):
    module = small()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    net = xdan.train(
        single, xdan.ModuleNetwork(module, normalised=True), **{**quick, "steps": 30, "validate_every": 10}
    )
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
    validation = net.history.validation_rmse.dropna("step")
    assert float(validation.min()) < 0.9 * float(validation[0])  # it learns
    run = twin.dan.cycle(net).compute()
    net.to_zarr(tmp_path / "net.zarr")
    again = xdan.open_network(tmp_path / "net.zarr", module=Small())
    assert again == net
    np.testing.assert_array_equal(twin.dan.cycle(again).analysis, run.analysis)
    assert repr(again) == repr(net)
    assert f"module='{__name__}.Small'" in repr(net)
    assert f"<td>{__name__}.Small</td>" in net._repr_html_()
    assert hash(again) == hash(net)


def test_the_run_is_the_same_in_any_chunks_and_under_processes(mine, twin):
    expected = twin.dan.cycle(mine).analysis.compute()
    chunks = twin.chunk(trajectory=1, time=5)
    with dask.config.set(scheduler="threads", num_workers=2):
        np.testing.assert_allclose(chunks.dan.cycle(mine).analysis, expected, rtol=1e-9)


@pytest.mark.slow
def test_a_module_travels_to_processes(mine, twin):
    expected = twin.dan.cycle(mine).analysis.compute()
    with dask.config.set(scheduler="processes", num_workers=2):
        np.testing.assert_allclose(twin.chunk(trajectory=2).dan.cycle(mine).analysis, expected, rtol=1e-9)


@pytest.mark.slow
def test_a_module_of_a_script_works_under_a_client_into_a_store(tmp_path):
    program = """
    import torch, xdan, numpy as np
    from distributed import Client

    class Mine(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(16, 8)

        def forward(self, x, zeta):
            return x + self.layer(torch.cat([x, zeta], -1))

    if __name__ == "__main__":
        ds = xdan.twin(xdan.Lorenz96(sites=8), cycles=12, trajectories=4, seed=0, dtype="float64").compute()
        net = ds.dan.train(Mine(), steps=2, window=2, batch=2, progress=False)
        expected = ds.dan.cycle(net).analysis.compute()
        with Client(n_workers=2, threads_per_worker=1, dashboard_address=None):
            run = ds.chunk(trajectory=2).dan.cycle(net, store="run.zarr", progress=False)
            np.testing.assert_allclose(run.analysis, expected, rtol=1e-9)
        print("travelled")
    """
    (tmp_path / "program.py").write_text(textwrap.dedent(program))
    answer = subprocess.run([sys.executable, "program.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert answer.stdout == "travelled\n", answer.stderr


def test_a_store_holds_weights_and_a_name_and_no_code(mine, tmp_path):
    mine.to_zarr(tmp_path / "net.zarr")
    assert mine.description["parameters"] == {"module": f"{__name__}.Small", "memory": 0, "normalised": False}
    text = "".join(path.read_text() for path in (tmp_path / "net.zarr").rglob("zarr.json"))
    assert f"{__name__}.Small" in text
    assert "def forward" not in text
    assert {path.suffix for path in (tmp_path / "net.zarr").rglob("*") if path.is_file()} <= {"", ".json"}


def test_a_module_that_is_not_the_one_that_was_saved_is_refused(mine, tmp_path):
    store = tmp_path / "net.zarr"
    mine.to_zarr(store)
    line = f"from {__name__} import Small; xdan.open_network"
    with pytest.raises(ValueError, match=rf"weights of the torch module '{__name__}.Small', and no code.*{line}"):
        xdan.open_network(store)
    with pytest.raises(ValueError, match=rf"Remembering: the weights are those of {__name__}.Small: expected an inst"):
        xdan.open_network(store, module=Remembering())
    with pytest.raises(ValueError, match=r"'module.first.weight' has shape \(12, 16\), expected \(9, 16\)"):
        xdan.open_network(store, module=Small(9))
    with pytest.raises(ValueError, match="gives other analyses than the module that was saved"):
        xdan.open_network(store, module=Small(sign=-1.0))  # the same tensors, another function
    with pytest.raises(ValueError, match="holds the network 'committee', which opens by itself: expected no module="):
        xdan.open_network("lorenz96", module=Small())


def test_a_class_that_was_moved_to_another_file_opens_with_a_warning(mine, tmp_path):
    mine.to_zarr(tmp_path / "net.zarr")
    moved = type("Small", (Small,), {"__module__": "elsewhere", "__qualname__": "Small"})
    with pytest.warns(xdan.XdanWarning, match=rf"weights of {__name__}.Small, and module= is of elsewhere.Small"):
        assert xdan.open_network(tmp_path / "net.zarr", module=moved()).digest
    of_a_script = type("Small", (Small,), {"__module__": "__main__", "__qualname__": "Small"})
    xdan.open_network(tmp_path / "net.zarr", module=of_a_script())  # without one


def test_modules_of_other_functions_are_other_networks(single, quick):
    """Their weights may be the same: two that a process keeps must not be exchanged."""
    one, other = (xdan.ModuleNetwork(small(sign=sign)) for sign in (1.0, -1.0))
    for network in (one, other):
        network.check_state(("x",), (8,))
    frozen, changed = (xdan.Network.from_module(network, ("x",), {}) for network in (one, other))
    assert frozen != changed
    run, another = (single.dan.cycle(net).analysis.compute() for net in (frozen, changed))
    assert not np.allclose(run, another)


def test_memory_beside_a_module_is_its_latent_channels(single, twin, quick):
    net = xdan.train(single, Remembering(), memory=2, **quick)
    assert net.memory == 2
    onward = xdan.train(single, net, **quick)
    assert onward.memory == 2
    run = twin.dan.cycle(net).compute()
    assert np.isfinite(run.analysis).all()
    np.testing.assert_allclose(twin.isel(trajectory=[2]).dan.cycle(net).analysis[0], run.analysis[2], rtol=1e-9)


def test_the_same_weights_and_seed_give_the_same_network_and_resume(single, quick, tmp_path):
    nets = [xdan.train(single, small(), checkpoint=tmp_path / "run.zarr", **quick) for _ in range(2)]
    assert nets[0] == nets[1] == xdan.train(single, small(), **quick)
    with pytest.raises(ValueError, match=r"is of another run \(start"):
        xdan.train(single, small().apply(_halved), checkpoint=tmp_path / "run.zarr", **quick)


def _halved(layer):
    if isinstance(layer, nn.Linear):
        with torch.no_grad():
            layer.weight.mul_(0.5)


def test_gains_are_those_of_finite_differences(mine, twin):
    covariance = twin.dan.gain(mine, kind="covariance", every=12).compute()
    module, states = mine.module(torch.float64), torch.from_numpy(twin.truth.values[:, ::12]).flatten(0, 1)
    step, columns = 1e-5, []
    for site in range(8):
        zeta = torch.zeros_like(states)
        zeta[:, site] = step
        columns.append((module(states, zeta)[0] - module(states, -zeta)[0]).detach() / (2 * step))
    np.testing.assert_allclose(covariance.values.reshape(-1, 8, 8), torch.stack(columns, -1), rtol=1e-6, atol=1e-8)


def test_a_committee_and_a_spread_around_a_module_open_with_it(mine, single, twin, quick, tmp_path):
    both = xdan.committee([mine, xdan.train(single, small(), **{**quick, "seed": 5})])
    spread = xdan.calibrate(mine, single, filters=3, blocks=1, **quick)
    mixture = xdan.committee([spread, xdan.calibrate(mine, single, kind="constant")])
    for name, net in {"both": both, "spread": spread, "mixture": mixture}.items():
        net.to_zarr(tmp_path / name)
        with pytest.raises(ValueError, match="holds weights of the torch module"):
            xdan.open_network(tmp_path / name)
        again = xdan.open_network(tmp_path / name, module=Small())
        assert again == net
        np.testing.assert_array_equal(twin.dan.cycle(again).analysis, twin.dan.cycle(net).analysis)
    assert {"spread"} <= set(twin.dan.cycle(mixture)) - set(twin.dan.cycle(both))
    analysis = twin.dan.cycle(mine).analysis
    np.testing.assert_allclose(twin.dan.cycle(mixture).analysis, analysis, rtol=1e-9)  # both have its analyses
    trained = xdan.train(single, mixture, objective="log-score", **quick)
    assert "spread" in twin.dan.cycle(trained)


def test_what_needs_a_class_that_xdan_can_make_anew_is_refused(mine, model):
    with pytest.raises(TypeError, match=r"with_parameters\(\) makes a network anew, and this one holds .*Small"):
        mine.with_parameters(memory=3)
    with pytest.raises(TypeError, match=r"for_space\(\) makes a network anew"):
        mine.for_space(xdan.Lorenz96(16).space)
    with pytest.raises(TypeError, match="holds a torch module, which no sweep can make anew"):
        xdan.sweep(model, {"mine": {"network": xdan.ModuleNetwork(small())}})
    with pytest.raises(TypeError, match="a torch module goes in once it is trained"):
        xdan.sweep(model, {"mine": {"network": small()}})


def test_a_module_of_a_fixed_size_is_refused_on_other_states_before_they_are_read(mine, untouchable):
    other = xdan.twin(xdan.Lorenz96(sites=10), cycles=24, trajectories=4)
    with pytest.raises(ValueError, match="the module Small fails for states of 10 components, and was last used on 8"):
        untouchable(other, "truth", "observation").dan.cycle(mine)


def test_modules_that_would_train_wrong_in_silence_are_refused_or_warned_of(single, quick):
    with pytest.raises(ValueError, match=r"changes its buffers .*as BatchNorm does.*GroupNorm or LayerNorm"):
        xdan.train(single, small(layer=nn.BatchNorm1d(12)), **quick)
    with pytest.warns(xdan.XdanWarning, match="draws random numbers in training mode") as caught:
        net = xdan.train(single, small(layer=nn.Dropout(0.2)), **quick)
    assert caught[0].filename == __file__
    np.testing.assert_array_equal(single.dan.cycle(net).analysis, single.dan.cycle(net).analysis)


@pytest.mark.slow
def test_training_with_several_processes_sends_the_module(single, quick):
    one, two = (xdan.train(single, small(), processes=count, **{**quick, "steps": 2}) for count in (1, 2))
    np.testing.assert_allclose(one.arrays["module.first.weight"], two.arrays["module.first.weight"], atol=1e-6)


def test_a_checkpoint_goes_on_where_another_machine_rounds_otherwise(single, quick, monkeypatch, tmp_path):
    settings = {**quick, "checkpoint": tmp_path / "ck.zarr"}
    xdan.train(single, small(), **settings, on_validation=lambda told: True)
    with pytest.raises(ValueError, match="gives other analyses than the module that was saved: expected the same"):
        xdan.train(single, small(sign=-1.0), **settings)
    exact = xdan.ModuleNetwork.increments
    monkeypatch.setattr(xdan.ModuleNetwork, "increments", lambda self, sites: (1.0 + 1e-6) * exact(self, sites))
    on = xdan.train(single, small(), **settings)
    assert on.history.step.values.tolist() == [4, 8]


def test_settings_that_no_weight_of_a_module_has_are_said(single, quick):
    optimiser = xdan.Optimiser(learning_rate=0.1, weight_decay=0.2)
    with pytest.warns(xdan.XdanWarning, match=r"learning_rate=0.1 and weight_decay=0.2 .* change nothing: .* Adam"):
        xdan.train(single, small(), optimiser=optimiser, **quick)
    xdan.train(single, small(), optimiser=xdan.Optimiser(0.1, 0.001), **quick)  # silent: both rates are set


class Masked(Small):
    """Holds a mask of infinities, as attention does."""

    def __init__(self, persistent):
        super().__init__()
        self.register_buffer("mask", torch.full((8, 8), -torch.inf).triu(1), persistent=persistent)

    def forward(self, x, zeta):
        return super().forward(x, zeta @ torch.softmax(self.mask, -1))


def test_a_mask_of_infinities_stays_out_of_the_weights(single, quick, tmp_path):
    with pytest.raises(ValueError, match=r"\['module.mask'\] are not finite .*buffer\(..., persistent=False\)"):
        xdan.train(single, Masked(True), **quick)
    net = xdan.train(single, Masked(False), **quick)
    net.to_zarr(tmp_path / "net.zarr")
    again = xdan.open_network(tmp_path / "net.zarr", module=Masked(False))
    np.testing.assert_array_equal(single.dan.cycle(again).analysis, single.dan.cycle(net).analysis)
