"""Figures as files: what is written has the labels, lines and colours of the figure."""

import re

import numpy as np
import pytest
import xarray as xr

import xdan
from xdan.plots import saving

hv = pytest.importorskip("holoviews")
pytest.importorskip("matplotlib")
STARTS = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}


@pytest.fixture
def drawn(monkeypatch):
    """The Matplotlib figures that are made."""
    import matplotlib.figure

    made = []

    class Kept(matplotlib.figure.Figure):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            made.append(self)

    monkeypatch.setattr(matplotlib.figure, "Figure", Kept)
    return made


@pytest.fixture(scope="module")
def curves(twin, run, ensemble):
    return xdan.rmse_in_time(twin, {"network": run, "EnKF-N": ensemble}, levels={"floor": 0.155}, log=True)


@pytest.mark.parametrize("ending", STARTS)
def test_a_file_of_each_kind(curves, tmp_path, ending):
    first, again = tmp_path / f"a.{ending}", tmp_path / f"b.{ending}"
    for path in (first, again):
        xdan.save_figure(path, curves, dpi=60)
    assert first.read_bytes().startswith(STARTS[ending])
    assert first.read_bytes() == again.read_bytes()  # no date, no random names
    if ending == "pdf":
        width, height = map(float, re.search(rb"/MediaBox \[ 0 0 ([\d.]+) ([\d.]+)", first.read_bytes()).groups())
        assert width == pytest.approx(17 / 2.54 * 72)
        assert height / width == pytest.approx(320 / 970)  # of the figure on the screen


def test_lines_labels_and_legend_are_those_of_the_figure(twin, run, curves, drawn, tmp_path):
    xdan.save_figure(tmp_path / "a.svg", curves)
    (axis,) = drawn[0].axes
    assert axis.get_xlabel() == "model time"
    assert axis.get_ylabel() == "analysis RMSE"
    assert axis.get_title() == "analysis RMSE, mean over trajectories and its standard error"
    assert axis.get_yscale() == "log"
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["network", "EnKF-N", "floor"]
    network, _, floor = axis.get_lines()
    np.testing.assert_allclose(network.get_ydata(), xdan.score(twin, run, dim="trajectory").rmse)
    assert network.get_color() == "#0072B2"
    assert floor.get_linestyle() == "--"
    low, high = axis.get_ylim()
    ticks = axis.yaxis.get_ticklocs()
    assert len(ticks) >= 3
    assert ((ticks >= low) & (ticks <= high)).all()


def test_maps_keep_their_values_places_and_colours(twin, run, drawn, tmp_path):
    xdan.save_figure(tmp_path / "a.png", xdan.hovmoller(twin, run, cycles=slice(10)), dpi=50)
    truth, _, error = (axis for axis in drawn[0].axes if axis.get_ylabel() == "site on the ring")
    mesh = truth.collections[0]
    np.testing.assert_allclose(mesh.get_array(), twin.truth[0, :10].T)
    bound = float(abs(twin.truth[0, :10]).max())
    assert mesh.get_clim() == pytest.approx((-bound, bound))
    low, high = error.collections[0].get_clim()
    assert low == -high
    edges = mesh.get_coordinates()[0, :, 0]
    np.testing.assert_allclose((edges[1:] + edges[:-1]) / 2, twin.time[:10], atol=1e-9)


def test_heat_maps_and_dates_and_names(twin, run, drawn, tmp_path):
    values = np.arange(64.0).reshape(8, 8) - 20
    omega = xr.DataArray(values, {"i": range(8), "j": range(8)}, ("i", "j"), "gain", {"reference": 4, "group_size": 8})
    xdan.save_figure(tmp_path / "a.png", xdan.gain_map(omega), dpi=50)
    mesh = drawn[0].axes[0].collections[0]
    np.testing.assert_allclose(mesh.get_array(), values / np.abs(values).max())
    named = twin.assign_coords(x=[f"buoy {k}" for k in range(8)])
    named_run = xr.Dataset({"forecast": named.truth, "analysis": named.truth + 0.1})
    xdan.save_figure(tmp_path / "b.png", xdan.hovmoller(named, named_run), dpi=50)
    assert [label.get_text() for label in drawn[1].axes[0].get_yticklabels()][:2] == ["buoy 0", "buoy 1"]
    when = np.datetime64("2020-01-01", "ns") + np.arange(5) * np.timedelta64(1, "D")
    xdan.save_figure(tmp_path / "c.png", hv.Curve((when, np.arange(5.0)), "time", "y"), dpi=50)
    assert "2020-Jan" in drawn[2].axes[0].xaxis.get_offset_text().get_text()


ELEMENTS = {
    "Area": lambda: hv.Area(([0, 1, 2], [1, 2, 3], [0, 1, 1]), "x", ["low", "high"]),
    "Bars": lambda: hv.Bars([("a", 1), ("b", 2)], "x", "y"),
    "ErrorBars": lambda: hv.ErrorBars(([0, 1], [1, 2], [0.1, 0.2])),
    "Histogram": lambda: hv.Histogram(([0, 1, 2], [3, 4])),
    "HLine": lambda: hv.HLine(1.0),
    "HSpan": lambda: hv.HSpan(0.0, 1.0),
    "Image": lambda: hv.Image(np.eye(3)),
    "Points": lambda: hv.Points(([0, 1], [1, 2])),
    "Spread": lambda: hv.Spread(([0, 1], [1, 2], [0.1, 0.2])),
    "Text": lambda: hv.Text(0.0, 0.0, "here"),
    "VLine": lambda: hv.VLine(1.0),
    "VSpan": lambda: hv.VSpan(0.0, 1.0),
}


@pytest.mark.parametrize("kind", ELEMENTS)
def test_every_element_that_is_named_is_drawn(kind, drawn, tmp_path):
    assert kind in saving._DRAW
    xdan.save_figure(tmp_path / "a.png", ELEMENTS[kind]() * hv.Curve([(0, 0), (1, 1)]), dpi=40)
    (axis, *_) = drawn[0].axes
    assert len(axis.get_lines()) + len(axis.collections) + len(axis.patches) + len(axis.texts) > 1


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        ({"path": "a.jpg"}, ValueError, "ends with '.jpg': expected one of"),
        ({"path": 3}, TypeError, "path=3: expected a path"),
        ({"path": "/no/such/a.png"}, FileNotFoundError, "no folder /no/such to save a.png"),
        ({"figure": 3}, TypeError, "figure is a int: expected a picture"),
        ({"figure": "box"}, TypeError, "the figure holds a BoxWhisker: expected some of"),
        ({"width": 0}, ValueError, "width=0: expected centimetres from 3 to 200"),
        ({"width": 0.5}, ValueError, "width=0.5: expected centimetres"),
        ({"dpi": 0.5}, TypeError, "dpi=0.5: expected"),
        ({"font_size": -1.0}, ValueError, "font_size=-1: expected"),
    ],
)
def test_wrong_arguments_are_named(tmp_path, words, error, message):
    figure = words.pop("figure", None)
    figures = {None: hv.Curve([(0, 1)]), "box": hv.BoxWhisker([1.0, 2.0])}
    arguments = {"path": tmp_path / "a.png", "figure": figures.get(figure, figure)} | words
    with pytest.raises(error, match=message):
        xdan.save_figure(**arguments)
