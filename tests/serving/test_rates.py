"""A key's minute: what is let in, what is told to wait, and for how long."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graft.serving.keys import Key, hash_key
from graft.serving.rates import Allowance, Bucket
from graft.serving.schemas import Refusal


class Hands:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.now = 7

    def __call__(self) -> int:
        return self.now

    def pass_seconds(self, seconds: float) -> None:
        self.now += round(seconds * 10**9)


def key(**limits: int) -> Key:
    return Key("anna", hash_key("a"), **limits)


def refused(check: Callable[[], None]) -> Refusal:
    with pytest.raises(Refusal) as caught:
        check()
    return caught.value


def test_a_minutes_allowance_may_be_used_at_once_and_comes_back_evenly() -> None:
    hands = Hands()
    bucket = Bucket(6, hands)
    for left in (5, 4, 3, 2, 1, 0):
        assert bucket.wait_seconds() == 0
        bucket.take(1)
        assert bucket.remaining() == left
    assert bucket.wait_seconds() == 10
    hands.pass_seconds(9.999)
    assert (bucket.remaining(), bucket.wait_seconds()) == (0, 1)
    hands.pass_seconds(0.001)
    assert (bucket.remaining(), bucket.wait_seconds()) == (1, 0)
    hands.pass_seconds(10**6)
    assert bucket.remaining() == 6


def test_what_was_used_beyond_the_allowance_has_to_come_back_first() -> None:
    hands = Hands()
    bucket = Bucket(60, hands)
    bucket.take(90)
    assert (bucket.remaining(), bucket.wait_seconds()) == (0, 31)
    hands.pass_seconds(31)
    assert (bucket.remaining(), bucket.wait_seconds()) == (1, 0)
    bucket.take(-5)
    assert bucket.remaining() == 1


STEPS = st.lists(st.tuples(st.integers(0, 10**12), st.integers(0, 5000)), max_size=30)


@given(st.integers(1, 10**6), STEPS)
def test_who_waits_as_told_is_let_in_and_not_a_second_later_than_needed(
    per_minute: int, steps: list[tuple[int, int]]
) -> None:
    hands = Hands()
    bucket = Bucket(per_minute, hands)
    for passed, units in steps:
        hands.now += passed
        bucket.take(units)
    wait = bucket.wait_seconds()
    if wait:
        hands.pass_seconds(wait - 1)
        assert bucket.remaining() == 0
        hands.pass_seconds(1)
    assert bucket.remaining() >= 1
    assert bucket.wait_seconds() == 0


@given(st.integers(1, 1000), st.lists(st.integers(0, 10**10), max_size=200))
def test_no_more_is_let_in_than_a_minutes_allowance_and_what_came_back(per_minute: int, pauses: list[int]) -> None:
    hands = Hands()
    bucket, admitted, start = Bucket(per_minute, hands), 0, hands.now
    for pause in pauses:
        hands.now += pause
        if bucket.wait_seconds() == 0:
            bucket.take(1)
            admitted += 1
    assert admitted <= per_minute + (hands.now - start) * per_minute / (60 * 10**9)


def test_a_key_without_limits_may_do_everything() -> None:
    allowance = Allowance(key(), Hands())
    for _ in range(1000):
        allowance.check()
        allowance.take_request()
        allowance.spend(10**9)
    assert allowance.headers() == {}


def test_the_limit_that_takes_longer_is_named() -> None:
    hands = Hands()
    allowance = Allowance(key(requests_per_minute=60, tokens_per_minute=600), hands)
    allowance.check()
    allowance.spend(700)
    for _ in range(60):
        allowance.take_request()
    refusal = refused(allowance.check)
    assert (refusal.status, refusal.code, refusal.headers) == (429, "rate_limit_exceeded", {"Retry-After": "11"})
    assert "600 tokens per minute" in str(refusal)
    hands.pass_seconds(0.5)
    allowance.spend(-1)
    assert refused(allowance.check).headers == {"Retry-After": "10"}
    hands.pass_seconds(10)
    allowance.check()
    for _ in range(10):
        allowance.take_request()
    allowance.take_request()
    assert "60 requests per minute" in str(refused(allowance.check))


def test_the_headers_say_what_is_left() -> None:
    allowance = Allowance(key(requests_per_minute=3, tokens_per_minute=50), Hands())
    allowance.take_request()
    allowance.spend(20)
    allowance.spend(40)
    assert allowance.headers() == {
        "x-ratelimit-limit-requests": "3",
        "x-ratelimit-remaining-requests": "2",
        "x-ratelimit-limit-tokens": "50",
        "x-ratelimit-remaining-tokens": "0",
    }
    assert list(Allowance(key(tokens_per_minute=5), Hands()).headers()) == [
        "x-ratelimit-limit-tokens",
        "x-ratelimit-remaining-tokens",
    ]
