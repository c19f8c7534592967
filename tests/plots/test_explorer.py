"""The explorer: it opens, every widget moves something, nothing that is not shown is read."""

import shutil
import socket
from urllib.parse import parse_qs, urlparse

import dask.array as da
import numpy as np
import pytest
import xarray as xr

import xdan
from xdan.plots import explorer_states, state_panels

pn = pytest.importorskip("panel")
hv = pytest.importorskip("holoviews")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def ring():
    """Omega_r of the ring, and two of a ring that turns by two."""

    def average(reference, size):
        values = np.random.default_rng(reference).normal(size=(8, 8))
        attributes = {"reference": reference, "group_size": size}
        return xr.DataArray(values, {"i": range(8), "j": range(8)}, ("i", "j"), "gain", attributes)

    return {"all sites": average(4, 8), "every other site": [average(4, 4), average(5, 4)], "observed": average(4, 4)}


@pytest.fixture(scope="module")
def cube():
    rng = np.random.default_rng(0)
    axes = {"interval": [0.05, 0.1, 0.2], "forcing": [6.0, 8.0]}
    dims = ("scheme", *axes, "seed")
    values = rng.uniform(0.2, 0.5, (2, 3, 2, 2))
    return xr.Dataset(
        {
            "crps": (dims, values / 2, {"long_name": "continuous ranked probability score", "units": "1"}),
            "rmse": (dims, values, {"long_name": "analysis RMSE", "units": "1"}),
            "seconds": (dims, values * 100, {"long_name": "time spent cycling", "units": "s"}),
        },
        {"scheme": ["EnKF-N", "network"], **axes, "seed": [0, 1]},
    )


@pytest.fixture
def browser():
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


class Page:
    """An explorer in a browser, and what went wrong there."""

    def __init__(self, app, browser, query=""):
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        self.server = pn.serve(app, port=port, show=False, threaded=True, verbose=False)
        self.browser = browser
        self.wrong = []
        self.address = f"http://localhost:{port}{query}"
        self.page = self.look(self.address)
        self.last = b""
        self.changed()

    def look(self, address):
        """Open an address in a session of its own."""
        page = self.browser.new_page(viewport={"width": 1366, "height": 768})
        page.on("console", lambda m: self.wrong.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda observing: self.wrong.append(str(observing)))
        page.on("requestfailed", lambda request: self.wrong.append(request.url))
        for _ in range(100):
            try:
                page.goto(address)
                break
            except Exception:  # the server is not up yet
                page.wait_for_timeout(100)
        self.wrong.clear()
        page.wait_for_selector("canvas")
        return page

    def changed(self):
        """Wait until the page looks otherwise, and then stays as it is."""
        before = self.last
        for _ in range(100):
            self.page.wait_for_timeout(300)
            now = self.page.screenshot()
            if now == self.last and now != before:
                return True
            self.last = now
        return False

    def close(self):
        self.page.close()
        self.server.stop()


@pytest.fixture
def opened(browser):
    pages = []

    def open_page(app, query=""):
        pages.append(Page(app, browser, query))
        return pages[-1]

    yield open_page
    for page in pages:
        page.close()


@pytest.mark.slow
def test_every_widget_of_a_record_moves_the_picture(twin, run, ring, opened, tmp_path):
    page = opened(twin.dan.explore({"network": run, "other": run + 1}, ring))
    page.page.get_by_label("method").select_option("other")
    assert page.changed()  # one method is shown once
    assert page.page.evaluate("document.documentElement.scrollHeight") <= 768
    page.page.get_by_label("trajectory").fill("1")
    page.page.keyboard.press("Enter")
    assert page.changed()
    page.page.get_by_label("cycles shown").fill("10")
    page.page.keyboard.press("Enter")
    assert page.changed()
    page.page.locator(".noUi-handle").first.focus()
    page.page.keyboard.press("ArrowRight")
    assert page.changed()
    with page.page.expect_download() as download:
        page.page.get_by_text("download what is shown").locator("visible=true").click()
    download.value.save_as(tmp_path / "states.csv")
    seen = np.genfromtxt(tmp_path / "states.csv", delimiter=",", names=True)
    shown = {"trajectory": 1, "time": slice(1, 11)}
    np.testing.assert_allclose(seen["truth"], twin.truth.isel(shown).values.ravel(), rtol=1e-6)
    np.testing.assert_allclose(seen["analysis"], run.analysis.isel(shown).values.ravel() + 1, rtol=1e-6)
    page.page.get_by_text("Marginal gain").click()
    assert page.changed()
    page.page.get_by_label("observing system").select_option("every other site")
    assert page.changed()
    for handle in page.page.locator(".noUi-handle:visible").all():
        handle.focus()
        page.page.keyboard.press("ArrowLeft")
        assert page.changed()
    with page.page.expect_download() as download:
        page.page.get_by_text("download what is shown").locator("visible=true").click()
    download.value.save_as(tmp_path / "gain.csv")
    seen = np.genfromtxt(tmp_path / "gain.csv", delimiter=",", names=True)
    assert set(seen["reference"]) == {3}
    middle = seen["gain"][(seen["i_minus_r"] == 0) & (seen["j_minus_r"] == 1)]
    np.testing.assert_allclose(middle, ring["every other site"][1].sel(i=5, j=6), rtol=1e-6)  # 5 is carried to 3
    page.page.get_by_label("observing system").select_option("observed")
    page.page.get_by_text("No average about site 3 was given").wait_for()
    assert not page.wrong


def address_of(page):
    return {key: values[-1] for key, values in parse_qs(urlparse(page.url).query).items()}


def test_two_browsers_do_not_move_each_other_and_an_address_can_be_shared(twin, run, opened):
    first = opened(twin.dan.explore({"network": run, "other": run + 1}), "?cycles=12&first=3")
    assert first.page.evaluate("document.documentElement.scrollHeight") <= 768
    second = first.look(first.address.split("?")[0])
    first.page.get_by_label("trajectory").fill("2")
    first.page.keyboard.press("Enter")
    first.page.wait_for_url("**trajectory=2**")
    assert second.get_by_label("trajectory").input_value() == "0"
    assert address_of(second).get("trajectory", "0") == "0"
    second.get_by_label("trajectory").fill("9")
    second.keyboard.press("Enter")
    second.get_by_text("9: expected 0 to 3. Still shown: 0.").wait_for()
    assert address_of(second).get("trajectory", "0") == "0"
    second.get_by_label("trajectory").fill("1")
    second.keyboard.press("Enter")
    second.wait_for_url("**trajectory=1**")
    second.get_by_role("alert").wait_for(state="hidden")
    shown = {"method": "network", "beside": "other", "trajectory": "2", "first": "3", "cycles": "12"}
    assert address_of(first.page) == shown
    third = first.look(first.page.url)
    assert third.get_by_label("trajectory").input_value() == "2"
    assert third.get_by_label("cycles shown").input_value() == "12"
    assert not first.wrong


def test_an_address_that_asks_for_what_is_not_there_is_refused_above_the_page(twin, run, opened):
    page = opened(twin.dan.explore(run), "?trajectory=99&cycles=<b>&method=no")
    text = page.page.get_by_text("The address asks for").inner_text()
    assert "trajectory='99': expected a whole number from 0 to 3" in text
    assert "cycles='<b>': expected a whole number" in text
    assert "method='no': expected one of ['run']" in text
    assert not page.wrong


@pytest.fixture
def states(twin, run):
    """Panels of two methods, and their RMSE."""
    page = explorer_states.StatesPage(twin, {"network": run, "other": run + 3}, {})
    pairs = [explorer_states.field_pairs(page._labelled, one, 1)[0] for one in page._runs.values()]
    values = {name: pair.at(slice(2, 20)) for name, pair in zip(page._runs, pairs, strict=True)}
    return page, pairs[0], values


def test_methods_share_one_scale_of_errors(states):
    page, pair, values = states
    scales = state_panels.colours_of(*values.values())
    sizes = np.abs(np.concatenate([one["error"].values.ravel() for one in values.values()]))
    assert scales["error"]["clim"][1] == pytest.approx(np.quantile(sizes, 0.995))
    truth, analysis, error = explorer_states._KINDS[pair.kind](pair, values, page._colours)
    assert [one.range(2) for one in error] == [scales["error"]["clim"]] * 2
    assert len({one.range(2) for one in (*truth, *analysis)}) == 1


def rmse_drawn(ds, run, row, cycles, **words):
    """The curve below the pictures, of the last field."""
    page = explorer_states.StatesPage(ds, {"run": run}, words)
    pair = explorer_states.field_pairs(page._labelled, run, row)[-1]
    (curve,) = page._rmse(pair, {"run": pair.at(cycles)})
    return curve.dimension_values("RMSE")


def test_rmse_below_is_that_of_the_score(twin, run):
    expected = xdan.score(twin, run, dim=()).rmse.isel(trajectory=1, time=slice(2, 20))
    np.testing.assert_allclose(rmse_drawn(twin, run, 1, slice(2, 20)), expected, rtol=1e-6)


def test_rmse_below_is_by_area_and_of_the_chosen_field():
    state = (xdan.Field("u", xdan.Ring(4)), xdan.Field("h", xdan.Sphere(4, 8)))
    model = xdan.CustomDynamics(
        lambda x: {name: -one for name, one in x.items()}, state=state, timestep=0.05, spin_up_time=0.0
    )
    ds = xdan.twin(model, interval=0.05, cycles=5, trajectories=2).compute()
    error = np.arange(4.0)[:, None] + np.zeros(8)
    run = xr.Dataset({f"{stem}_u": ds.truth_u.drop_attrs() for stem in ("forecast", "analysis")})
    run = run.assign({f"{stem}_h": ds.truth_h.drop_attrs() + error for stem in ("forecast", "analysis")})
    edges = np.sin(np.deg2rad([-90, -45, 0, 45, 90]))
    expected = np.sqrt(np.sum(np.diff(edges) / 2 * np.arange(4.0) ** 2))
    np.testing.assert_allclose(rmse_drawn(ds, run, 0, slice(5), dynamics=model), expected, rtol=1e-5)


@pytest.mark.slow
def test_every_widget_of_a_cube_moves_the_picture(cube, opened):
    page = opened(xdan.explore(cube))
    page.page.get_by_label("along").select_option("forcing")
    assert page.changed()
    page.page.get_by_label("score").select_option("seconds")
    assert page.changed()
    page.page.get_by_label("logy").check()
    assert page.changed()
    page.page.locator(".noUi-handle").first.focus()
    page.page.keyboard.press("ArrowRight")
    assert page.changed()
    page.page.get_by_label("a panel for each").select_option("interval")
    assert page.changed()
    page.page.locator(".choices__button").first.click()
    assert page.changed()
    page.page.locator(".choices__button").first.click()
    page.page.get_by_text("Choose at least one scheme").wait_for()
    assert not page.wrong


def test_only_what_is_shown_is_read(twin):
    """Of a hundred blocks along time, those of the first hundred cycles."""
    read = set()

    def block(label):
        def load(block_info=None):
            read.add((label, block_info[None]["chunk-location"]))
            return np.zeros(block_info[None]["chunk-shape"])

        return da.map_blocks(load, chunks=((1,) * 4, (50,) * 100, (8,)), dtype=float, meta=np.empty((0, 0, 0)))

    time = np.arange(5000) * 0.05
    dims = ("trajectory", "time", "x")
    whole = xr.Dataset(
        {name: (dims, block(name)) for name in ("truth", "observation")}, {"time": time, "trajectory": range(4)},
        {**twin.attrs},
    ).assign(observation_error=twin.observation_error)  # fmt: skip
    run = xr.Dataset({"analysis": (dims, block("analysis"))}, {"time": time, "trajectory": range(4)})
    app = whole.dan.explore(run)
    app.view().get_root()
    assert read == {(name, (0, t, 0)) for name in ("truth", "analysis") for t in (0, 1)}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda ds, run, cube, ring: ds.dan.explore(), "nothing to show: expected runs="),
        (lambda ds, run, cube, ring: ds.dan.explore({}), "runs is empty"),
        (
            lambda ds, run, cube, ring: ds.dan.explore(run.isel(time=slice(3))),
            "run 'run' and record differ in time: expected 24",
        ),
        (lambda ds, run, cube, ring: ds.dan.explore(run.assign_coords(time=run.time + 1)), "and record differ in time"),
        (lambda ds, run, cube, ring: ds.dan.explore(run.drop_vars("analysis")), r"the run 'run' lacks \['analysis'\]"),
        (lambda ds, run, cube, ring: ds.drop_vars("truth").dan.explore(run), "the explorer needs the truth"),
        (lambda ds, run, cube, ring: xdan.explore(cube, run), "expected no runs, gains or roles"),
        (lambda ds, run, cube, ring: xdan.explore(cube.isel(interval=0, forcing=0)), "expected an axis beside scheme"),
        (lambda ds, run, cube, ring: ds.dan.explore(gains=run.analysis), "no symmetry average"),
    ],
)
def test_what_cannot_be_shown_is_refused(twin, run, cube, ring, call, message):
    with pytest.raises(ValueError, match=message):
        call(twin, run, cube, ring)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda ds, run: xdan.explore(0), "source=0: expected an xarray.Dataset"),
        (lambda ds, run: xdan.explore(ds, 3), "runs is a int: expected a mapping of name to a run"),
        (lambda ds, run: xdan.explore(ds, {"a": 3}), r"runs\['a'\]=3: expected a run"),
        (lambda ds, run: xdan.explore(ds, gains=3), "gains is a int: expected a mapping of name to a gain"),
        (lambda ds, run: xdan.explore(ds, gains={"a": 3}), r"gains\['a'\]=3: expected a gain"),
        (lambda ds, run: xdan.explore(ds, run, trut="x"), "trut='x': expected no argument beyond"),
    ],
)
def test_wrong_types_are_named(twin, run, call, message):
    with pytest.raises(TypeError, match=message):
        call(twin, run)


def test_gains_of_no_site_are_refused(twin):
    with pytest.raises(ValueError, match=r"gains\['a'\] is empty: expected at least one"):
        xdan.explore(twin, gains={"a": []})
