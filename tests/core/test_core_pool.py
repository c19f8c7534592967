"""Buffers that are used again: never by two at a time."""

import pickle

from xdan.core.pool import Pool


def test_buffers_in_use_are_not_given_again():
    pool: Pool[list] = Pool()
    one, two = pool.lease("a", list), pool.lease("a", list)
    assert one.value is not two.value


def test_buffers_come_back_when_nothing_refers_to_the_lease():
    pool: Pool[list] = Pool()
    lease = pool.lease("a", list)
    buffers, alias = lease.value, lease
    del lease
    assert pool.lease("a", list).value is not buffers
    del alias
    assert any(pool.lease("a", list).value is buffers for _ in range(2))


def test_keys_have_buffers_of_their_own():
    pool: Pool[list] = Pool()
    buffers = pool.lease("a", list).value
    assert pool.lease("b", list).value is not buffers


def test_a_pickled_pool_is_empty():
    pool: Pool[list] = Pool()
    pool.lease("a", lambda: [0.0] * 1000)
    copy = pickle.loads(pickle.dumps(pool))
    assert copy.lease("a", list).value == []


def test_buffers_of_the_keys_used_last_are_kept():
    pool: Pool[list] = Pool(most=2)
    waiting = pool.lease("a", list)  # in use while its key is forgotten
    first, second = (pool.lease(key, list).value for key in "bc")
    del waiting
    assert pool.lease("b", list).value is first
    pool.lease("d", list)  # takes the place of "c", which was used before "b"
    assert pool.lease("b", list).value is first
    assert pool.lease("c", list).value is not second
