"""Every example of a system, from its options to its page, at a small size."""

import sys
from importlib import import_module
from pathlib import Path

import pytest

import xdan

EXAMPLES = Path(__file__).parents[1] / "examples"
SMALL = ["--cycles", "3", "--burn-in", "2", "--trajectories", "2", "--archive", "64", "--batch", "4", "--steps", "2"]


@pytest.mark.filterwarnings("ignore:tuning", "ignore:.* have lost the truth")  # records of 5 cycles
@pytest.mark.parametrize(
    ("name", "methods", "model", "options"),
    [
        pytest.param("kuramoto_sivashinsky", 2, "KuramotoSivashinsky", [], marks=pytest.mark.slow),
        ("lorenz63", 4, "Lorenz63", []),
        pytest.param("two_scale", 3, "TwoScaleLorenz96", [], marks=pytest.mark.slow),
        pytest.param("shallow_water", 2, "RollWaves", ["--points", "24"], marks=pytest.mark.slow),
        pytest.param("barotropic_vorticity", 2, "BarotropicVorticity", ["--points", "16"], marks=pytest.mark.slow),
    ],
)
def test_runs_to_its_page(name, methods, model, options, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    example = import_module(name)
    monkeypatch.setattr(getattr(xdan, model, None) or getattr(example, model), "spin_up_time", 3.0)
    monkeypatch.setattr("xdan.training.twin_source.VALIDATION_CYCLES", 60)
    monkeypatch.setattr("xdan.training.twin_source.VALIDATION_LANES", 4)
    # What is tuned or trained in earnest has tests of its own.
    quick = {"inflation": 1.05, "background": "climatology", "scale": 0.2}
    for label, (method, parameters) in example.METHODS.items():
        changed = {key: quick[key] for key in (*parameters, *(["scale"] if method == "3d-var" else [])) if key in quick}
        kept = {key: value for key, value in parameters.items() if key != "candidates"}
        monkeypatch.setitem(example.METHODS, label, (method, {**kept, **changed}))
    monkeypatch.setattr("shutil.which", lambda name: None)  # no browser: the page without its picture
    monkeypatch.setattr(sys, "argv", [name, *SMALL, *options, "--out", str(tmp_path / "out")])
    example.main()
    table = (tmp_path / "out" / "table.md").read_text().splitlines()
    assert table[0].startswith("| method | RMSE")
    errors = [float(row.split("|")[2]) for row in table[2:]]
    assert len(errors) == methods + 1  # the network too
    assert max(errors) < 5
    assert next((tmp_path / "out").glob("*.html")).stat().st_size > 10_000
    assert len((EXAMPLES / f"{name}.py").read_text().splitlines()) <= 150


@pytest.mark.filterwarnings("ignore:tuning", "ignore:.* have lost the truth", "ignore:the network is used out of")
@pytest.mark.slow
@pytest.mark.parametrize(("figure", "methods"), [("seasonal", 5 + 7), ("two-halves", 6)])
def test_heterogeneous_systems_run_to_their_pages(figure, methods, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    example = import_module("heterogeneous")
    monkeypatch.setattr("xdan.training.twin_source.VALIDATION_CYCLES", 10)
    monkeypatch.setattr("xdan.training.twin_source.VALIDATION_LANES", 4)
    monkeypatch.setattr("shutil.which", lambda name: None)  # no browser: the page without its picture
    monkeypatch.setattr(example, "BURN_IN", 2)
    monkeypatch.setattr(example, "PERIOD", 0.3)  # six cycles
    monkeypatch.setitem(example.METHODS, "LETKF, 20 members", ("letkf", {"members": 4, "radius": 5.0}))
    small = ["--minutes", "0.01", "--cycles", "6", "--trajectories", "2", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["heterogeneous", figure, *small])
    example.main()
    errors, agreement = (tmp_path / figure / "table.md").read_text().split("\n\n")
    assert len(errors.splitlines()) == 2 + methods
    assert "network" in agreement
    assert (tmp_path / figure / f"{figure}.html").stat().st_size > 10_000


@pytest.fixture
def systems(monkeypatch):
    """The command, with one small system beside the others."""
    monkeypatch.syspath_prepend(EXAMPLES)
    monkeypatch.setattr("xdan.training.twin_source.VALIDATION_CYCLES", 10)
    monkeypatch.setattr("xdan.training.twin_source.VALIDATION_LANES", 4)
    monkeypatch.setattr("shutil.which", lambda name: None)  # no browser: the page without its picture
    command, networks, figures = map(import_module, ("systems", "system_networks", "system_figures"))
    ring = xdan.Lorenz96(12)
    network = xdan.ResidualCNN(filters=4, blocks=1, kernel=3, space=ring.space)
    quick = {"window": 2, "batch": 2}
    small = networks.System(
        "a small ring",
        xdan.TwinExperiment(ring),
        {"ETKF, 5 members": ("etkf", {"members": 5, "inflation": 1.05})},
        {"network": networks.Member(None, network, quick)},
        burn_in=4,
        states=32,
    )
    monkeypatch.setitem(networks.SYSTEMS, "small", small)
    dissected = figures.Dissected("ETKF, 5 members", {"a site": 6}, 6, 2, scales=(0.5, 2.0), within=(3.0,))
    monkeypatch.setitem(figures.DISSECTED, "small", dissected)
    monkeypatch.setitem(figures.LARGER, "small", xdan.Lorenz96(20))
    return command


@pytest.mark.filterwarnings("ignore:tuning", "ignore:.* have lost the truth", "ignore:the network is used out of")
@pytest.mark.parametrize(
    ("figure", "words"),
    [
        ("table", ["| ETKF, 5 members |", "| network |"]),
        ("anatomy", ["correlation of P[j, j] in time", "| r(0.5) |", "| share of the squared gain within 3, a site |"]),
        ("transfer", ["Lorenz96(sites=20", "| network |"]),
    ],
)
def test_systems_have_figures(figure, words, systems, tmp_path, monkeypatch, capsys):
    options = ["--minutes", "0.01", "--cycles", "6", "--trajectories", "2", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["systems", "small", figure, *options])
    systems.main()
    printed = capsys.readouterr().out
    text = (tmp_path / "small" / figure / f"{figure}.md").read_text()
    assert text in printed
    assert all(word in text for word in words)
    systems.main()  # what is there is not made again
    assert text in capsys.readouterr().out


def test_a_figure_that_a_system_has_not_is_refused(systems, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["systems", "lorenz63", "table"])
    with pytest.raises(SystemExit):
        systems.main()
    assert "lorenz63 has the figures ['ball'], not 'table'" in capsys.readouterr().err


def test_networks_that_do_not_come_with_xdan_need_minutes(systems, tmp_path):
    small = import_module("system_networks").SYSTEMS["small"]
    with pytest.raises(SystemExit, match="'network' does not come with xdan: give --minutes"):
        small.network("network", tmp_path, 0.0)


def test_systems_name_networks_that_come_with_xdan(systems):
    for system in import_module("system_networks").SYSTEMS.values():
        for member in system.members.values():
            if member.shipped is not None:
                description = xdan.open_network(member.shipped).description["parameters"]
                known = member.network.config()
                assert {name: description[name] for name in known} == known


@pytest.mark.filterwarnings("ignore:tuning", "ignore:.* have lost the truth", "ignore:the truth does not follow")
@pytest.mark.parametrize(("figure", "schemes"), [("forcing", 13), ("noise", 12)])
@pytest.mark.slow
def test_networks_of_wrong_models_run_to_their_tables(figure, schemes, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    command, example = import_module("imperfect"), import_module("imperfect_networks")
    monkeypatch.setattr(example, "BURN_IN", 2)
    monkeypatch.setattr(example, "MODEL_ERRORS", (0.1, 0.2))
    monkeypatch.setattr(example, "TUNED", {"members": 8, "inflation": 1.1})  # tuning has tests of its own
    monkeypatch.setattr(example, "WEAK", {"window": 1, "scale": 0.1})
    monkeypatch.setattr(example, "EXTENDED", {"inflation": 1.05})
    small = ["networks", figure, "--cycles", "8", "--trajectories", "2", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["imperfect", *small])
    command.main()
    rows = (tmp_path / "networks" / figure / "table.md").read_text().splitlines()
    assert len(rows) == 2 + schemes
    monkeypatch.setattr(example, "_small", None)  # a second call makes nothing
    command.main()
    assert (tmp_path / "networks" / figure / "table.md").read_text().splitlines() == rows
    monkeypatch.setattr(sys, "argv", ["imperfect", *small, "--seed", "5"])
    with pytest.raises(SystemExit, match="choose another --out"):
        command.main()


@pytest.mark.filterwarnings("ignore::xdan.XdanWarning")  # the records are short
@pytest.mark.parametrize(("figure", "rows"), [("correction", 3), ("two-scale", 11), ("surrogate", 2)])
@pytest.mark.slow
def test_corrected_models_and_surrogates_run_to_their_tables(figure, rows, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    command, example = import_module("imperfect"), import_module("imperfect_models")
    monkeypatch.setattr(example, "BURN_IN", 20)
    monkeypatch.setattr("shutil.which", lambda name: None)  # no browser: the page without its picture
    small = ["models", figure, "--cycles", "110", "--trajectories", "2", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["imperfect", *small])
    command.main()
    heading, table = (tmp_path / "models" / figure / "table.md").read_text().split("\n\n")
    assert heading.startswith("enkf-n; 2 trajectories")
    assert len(table.splitlines()) == 2 + rows


@pytest.mark.slow
def test_verdicts_on_ensembles_run_to_their_page(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    monkeypatch.setattr("shutil.which", lambda name: None)  # no browser: the page without its picture
    small = ["scores", "verdicts", "--cycles", "20", "--trajectories", "4", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["methods", *small])
    import_module("methods").main()
    rows = (tmp_path / "scores" / "verdicts" / "verdicts.md").read_text().splitlines()
    assert len(rows) == 2 + 3
    assert (tmp_path / "scores" / "verdicts" / "verdicts.html").stat().st_size > 10_000


@pytest.mark.slow
def test_memory_runs_to_its_page(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    example = import_module("memory")
    for name, value in {"TRAJECTORIES": 9, "CYCLES": 60, "BURN_IN": 20}.items():
        monkeypatch.setattr(example, name, value)
    monkeypatch.setattr(sys, "argv", ["memory", "--out", str(tmp_path)])
    example.main()
    assert (tmp_path / "memory.md").read_text().count("EnKF-N's") == 3
    assert (tmp_path / "memory.html").stat().st_size > 10_000


@pytest.mark.filterwarnings("ignore::xdan.XdanWarning")  # the trainings are short
@pytest.mark.slow
def test_the_quickstart_runs_to_its_page(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(EXAMPLES)
    example = import_module("quickstart")
    whole = xdan.twin

    def short(*arguments, cycles, trajectories, **settings):
        return whole(*arguments, cycles=cycles // 10, trajectories=trajectories // 16, **settings)

    monkeypatch.setattr(xdan, "twin", short)
    monkeypatch.setattr(example, "BURN_IN", 20)
    monkeypatch.setattr(sys, "argv", ["quickstart", "--minutes", "0.01", "--out", str(tmp_path)])
    example.main()
    assert (tmp_path / "table.txt").read_text().strip() in capsys.readouterr().out
    assert all(name in (tmp_path / "table.txt").read_text() for name in example.NETWORKS)
    assert (tmp_path / "quickstart.html").stat().st_size > 10_000
