import re

import holoviews as hv
import numpy as np
import pytest

import xdan


def rendered(figure):
    """Bokeh's own description of a figure, as text."""
    from bokeh.embed import json_item

    return str(json_item(hv.render(figure, backend="bokeh")))


def test_hovmoller_shows_truth_analysis_and_their_difference(twin, run):
    figure = xdan.hovmoller(twin, run, trajectory=2, cycles=slice(4, 20), title="network")
    truth, analysis, error = figure
    np.testing.assert_array_equal(truth.dimension_values(2, flat=False), twin.truth[2, 4:20].T.values)
    np.testing.assert_array_equal(analysis.dimension_values(2, flat=False), run.analysis[2, 4:20].T.values)
    difference = (run.analysis - twin.truth)[2, 4:20].T.values
    np.testing.assert_allclose(error.dimension_values(2, flat=False), difference, atol=1e-14)
    text = rendered(figure)
    for label in ("model time", "site", "truth", "analysis of network", "error of network"):
        assert label in text


def test_truth_and_analysis_share_a_colour_scale(twin, run):
    figure = xdan.hovmoller(twin, run)
    mappers = [hv.renderer("bokeh").get_plot(panel).handles["color_mapper"] for panel in figure]
    limits = [(mapper.low, mapper.high) for mapper in mappers]
    assert limits[0] == limits[1]
    assert limits[0][0] == -limits[0][1]
    assert limits[2][1] < limits[0][1]


def test_rmse_in_time_is_the_score_at_each_time(twin, run, ensemble):
    figure = xdan.rmse_in_time(twin, {"network": run, "EnKF-N": ensemble}, cycles=slice(2, None))
    assert [curve.label for curve in figure] == ["network", "EnKF-N"]
    expected = xdan.score(twin, ensemble, dim="trajectory").rmse[2:]
    np.testing.assert_allclose(next(c for c in figure if c.label == "EnKF-N").dimension_values(1), expected)
    assert "analysis RMSE" in rendered(figure)


def test_training_history_of_one_and_of_several(net):
    assert len(list(xdan.training_history(net.history))) == 2
    figure = xdan.training_history({"one": net.history, "two": net.history})
    assert {curve.label for curve in figure} == {
        f"{name}, {what}" for name in ("one", "two") for what in ("validation", "training")
    }
    assert "training time (minutes)" in rendered(figure)


def test_a_page_needs_no_network(twin, run, net, tmp_path):
    path = tmp_path / "page.html"
    sections = {"Space and time": xdan.hovmoller(twin, run), "Training": xdan.training_history(net.history)}
    xdan.save_page(path, sections, title="a title", notes="some *notes*")
    text = path.read_text()
    assert "a title" in text
    assert "Space and time" in text
    assert not re.findall(r"<script[^>]+src=[\"']?https?://", text)
    assert not re.findall(r"<link[^>]+stylesheet[^>]+https?://", text)


def test_hovmoller_needs_a_truth(twin, run):
    with pytest.raises(ValueError, match="a picture of the error needs the truth"):
        xdan.hovmoller(twin.drop_vars("truth"), run)
