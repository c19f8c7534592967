"""Whether a truth follows the dynamics that its record names."""

import pytest

import xdan
from xdan.records import following
from xdan.records.record import read


def test_truth_that_does_not_follow_warns(twin):
    shuffled = twin.assign(truth=twin.truth[:, ::-1].assign_coords(time=twin.time))
    with pytest.warns(xdan.XdanWarning, match=r"does not follow Lorenz96\(.*Check dynamics= and the time units"):
        following.check_follows(read(shuffled))


def test_truth_that_follows_is_quiet(twin, single):
    following.check_follows(read(twin))
    following.check_follows(read(single))
