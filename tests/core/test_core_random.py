"""Counter-based random numbers: published vectors, keys and moments."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from xdan.core.random import Purpose, normal, philox, uniform

LABEL = st.integers(0, 2**31)
LABELS = st.lists(LABEL, min_size=1, max_size=6, unique=True)

# Random123, examples/kat_vectors: counter, key and result of philox4x32 with 10 rounds.
PUBLISHED = {
    "zeros": (
        "00000000 00000000 00000000 00000000",
        "00000000 00000000",
        "6627e8d5 e169c58d bc57ac4c 9b00dbd8",
    ),
    "ones": (
        "ffffffff ffffffff ffffffff ffffffff",
        "ffffffff ffffffff",
        "408f276d 41c83b0e a20bc7c6 6d5451fd",
    ),
    "pi": ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
}


def words(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


def integers(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int64)


@pytest.mark.parametrize("name", PUBLISHED)
def test_philox_gives_the_published_words(name):
    counter, key, expected = (words(text) for text in PUBLISHED[name])
    assert philox(integers(*counter), tuple(key)).tolist() == expected


def test_philox_treats_every_counter_by_itself():
    counters = torch.tensor([words(PUBLISHED[name][0]) for name in ("zeros", "ones", "pi")]).T
    together = philox(counters, (5, 6))
    alone = [philox(counter, (5, 6)) for counter in counters.T]
    assert torch.equal(together, torch.stack(alone, 1))


@pytest.mark.parametrize("draw", [uniform, normal])
@settings(max_examples=40, deadline=None)
@given(trajectory=LABELS, time=LABELS, size=st.integers(1, 9), seed=st.integers(0, 2**32 - 1), data=st.data())
def test_numbers_depend_on_labels_alone(draw, trajectory, time, size, seed, data):
    whole = draw(seed, Purpose.ENSEMBLE, integers(*trajectory), integers(*time), size, 3)
    rows = data.draw(st.lists(st.integers(0, len(trajectory) - 1), min_size=1, max_size=8))
    columns = data.draw(st.lists(st.integers(0, len(time) - 1), min_size=1, max_size=8))
    some = draw(
        seed,
        Purpose.ENSEMBLE,
        integers(*(trajectory[i] for i in rows)),
        integers(*(time[k] for k in columns)),
        size,
        3,
    )
    assert torch.equal(some, whole[rows][:, columns])


def test_numbers_of_a_large_request_are_those_of_small_ones():
    # More counters than one internal block holds.
    trajectory, time = torch.arange(50), torch.arange(40)
    whole = uniform(1, Purpose.NETWORK, trajectory, time, 80)
    assert whole[0, 0].numel() * 50 * 40 / 4 > 1 << 15
    last = uniform(1, Purpose.NETWORK, trajectory[-1:], time[-1:], 80)
    assert torch.equal(whole[-1:, -1:], last)


def test_no_two_labels_share_a_number():
    labels = itertools.product((0, 1, 2), Purpose, (0, 1, 7))
    three = torch.arange(3)
    draws = [uniform(seed, purpose, three, three, 6, stream) for seed, purpose, stream in labels]
    numbers = torch.stack(draws).flatten()
    assert len(numbers.unique()) == len(numbers)


def test_trajectory_and_time_are_not_interchangeable():
    numbers = uniform(0, Purpose.NETWORK, torch.arange(5), torch.arange(5), 4)
    upper = torch.triu_indices(5, 5, offset=1)
    assert not (numbers == numbers.transpose(0, 1))[upper[0], upper[1]].any()


def test_uniform_numbers_are_uniform():
    numbers = uniform(0, Purpose.NETWORK, torch.arange(20), torch.arange(50), 100).flatten()
    assert stats.kstest(numbers.numpy(), "uniform").pvalue > 0.01


def test_normal_numbers_are_normal():
    numbers = normal(0, Purpose.NETWORK, torch.arange(20), torch.arange(50), 100).flatten()
    assert stats.kstest(numbers.numpy(), "norm").pvalue > 0.01


def test_moments_of_normal_numbers():
    z = normal(3, Purpose.NETWORK, torch.arange(100), torch.arange(100), 100).flatten()
    root = len(z) ** 0.5
    # Standard deviations of the sample moments: 1, sqrt(2), sqrt(15) and sqrt(96) over the root.
    assert abs(z.mean()) < 4 / root
    assert abs(z.var() - 1) < 4 * 2**0.5 / root
    assert abs((z**3).mean()) < 4 * 15**0.5 / root
    assert abs((z**4).mean() - 3) < 4 * 96**0.5 / root


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_neighbouring_normal_numbers_are_independent(axis):
    z = normal(4, Purpose.NETWORK, torch.arange(60), torch.arange(60), 60)
    first, second = z.narrow(axis, 0, 59).flatten(), z.narrow(axis, 1, 59).flatten()
    for power in (1, 2):
        correlation = torch.corrcoef(torch.stack([first**power, second**power]))[0, 1]
        assert abs(correlation) < 4 / len(first) ** 0.5


@pytest.mark.parametrize("draw", [uniform, normal])
@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_that_does_not_fit_32_bits_is_refused(draw, seed):
    with pytest.raises(ValueError, match=f"seed={seed}"):
        draw(seed, Purpose.NETWORK, integers(0), integers(0), 4)


def test_the_largest_seed_is_its_own():
    low, high = (uniform(seed, Purpose.NETWORK, integers(0), integers(0), 4) for seed in (0, 2**32 - 1))
    assert not (low == high).any()
