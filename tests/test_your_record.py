"""The blocks of docs/your-record.md, run one after another as a user would."""

import re

import numpy as np
import pytest
import xarray as xr
from page_blocks import blocks_of

pytestmark = pytest.mark.slow  # ci/docs_blocks.py runs the blocks, too

BLOCKS = [block.code for block in blocks_of("your-record")]


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """What the blocks print, and the names that they leave behind; those of a calendar only where there is cftime."""
    folder, names, printed = tmp_path_factory.mktemp("record"), {}, []
    names["print"] = lambda *words: printed.append(words)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for block in BLOCKS:
            if "import cftime" in block:
                pytest.importorskip("cftime")
            exec(compile(block, "docs/your-record.md", "exec"), names)
            names.setdefault("runs", []).append(names.get("run"))
    return folder, names, printed


def test_the_page_has_these_blocks():
    assert len(BLOCKS) == 10
    assert len(BLOCKS[1].strip().splitlines()) == 5  # from the file to a score


def test_the_file_is_packed_and_has_a_gap(ran):
    folder, _, _ = ran
    raw = xr.open_dataset(folder / "record.nc", mask_and_scale=False, decode_times=False)
    assert raw.observation.dtype == raw.truth.dtype == np.int16
    assert raw.observation.dims == ("time", "x")
    assert "dynamics" not in raw.attrs
    gaps = np.diff(xr.open_dataset(folder / "record.nc").time.values)
    assert sorted(set(gaps.astype("m8[h]").astype(int))) == [6, 30 * 24 + 6]


def test_what_the_page_prints(ran):
    _, names, printed = ran

    (rmse, last), (ratios,), (shipped,), (interval, trained), unknown, (warning,), (both,), (leap,) = printed
    assert 0.15 < rmse < 0.5  # 0.19 without the gap and with all sites
    assert last == names["ds"].time.values[-1]
    assert ratios.shape == (4,)
    assert shipped < 0.6  # the network has not seen such gaps
    variance, departures = unknown
    assert 1.0 < variance < 4.0  # of a poor network; the observation error alone gives 1
    assert 1.0 < departures[0] < departures[1]
    assert interval == 0.05  # the gap is in no segment
    assert trained < 3.0  # the climate's deviation is 3.6
    assert re.match(r"4\d\d of 519 intervals of time are no whole number of the lorenz96 time step 0.05", str(warning))
    np.testing.assert_array_equal(both, names["late"].time.values[:2])
    assert str(leap) == "2012-03-01 00:00:00"


def test_a_record_that_holds_its_words_needs_none(ran):
    _, names, _ = ran
    run = names["runs"][[block.startswith("model = words") for block in BLOCKS].index(True)]
    with_words = names["runs"][1]
    np.testing.assert_array_equal(run.analysis, with_words.analysis)


def test_figures_for_a_paper_are_pdf(ran):
    folder, _, _ = ran
    assert (folder / "record.pdf").read_bytes()[:5] == b"%PDF-"
