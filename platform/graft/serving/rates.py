"""How much a key may ask for in a minute: buckets that are full at first and fill up again evenly."""

import time
from collections.abc import Callable

from graft.serving.keys import Key
from graft.serving.schemas import Refusal

MINUTE_NS = 60 * 10**9

Clock = Callable[[], int]
"""Nanoseconds since any moment, never fewer than before."""


class Bucket:
    """Holds a minute's allowance, which may be used at once.

    It counts in whole parts of one unit, a minute's nanoseconds to each, so that nothing is lost to rounding: who is
    told to wait for so many seconds is let in after them.
    """

    def __init__(self, per_minute: int, clock: Clock = time.monotonic_ns) -> None:
        self.per_minute = per_minute
        self._clock = clock
        self._seen = clock()
        self._parts = per_minute * MINUTE_NS

    def remaining(self) -> int:
        """How many whole units are left; 0 where more was used than there was."""
        self._fill()
        return max(0, self._parts // MINUTE_NS)

    def wait_seconds(self) -> int:
        """Whole seconds until one unit is left; 0 where it is now."""
        self._fill()
        missing = max(0, MINUTE_NS - self._parts)
        # Rounded up: -(-a // b) is the ceiling of a / b.
        return -(-missing // (self.per_minute * 10**9))

    def take(self, units: int) -> None:
        """Use so many, also more than are left: what has been written cannot be taken back."""
        self._fill()
        self._parts -= max(0, units) * MINUTE_NS

    def _fill(self) -> None:
        now = self._clock()
        self._parts = min(self._parts + (now - self._seen) * self.per_minute, self.per_minute * MINUTE_NS)
        self._seen = now


class Allowance:
    """What one key may still ask for: everything, where it has no limits.

    It is kept in memory, so it counts for one process of the HTTP interface and is full after a restart.
    """

    def __init__(self, key: Key, clock: Clock = time.monotonic_ns) -> None:
        limits = {"requests": key.requests_per_minute, "tokens": key.tokens_per_minute}
        self.buckets = {what: Bucket(limit, clock) for what, limit in limits.items() if limit is not None}

    def check(self) -> None:
        """Let a request in while one request and one token are left.

        Raises:
            Refusal: they are not; with the seconds until they will be.
        """
        waits = {what: bucket.wait_seconds() for what, bucket in self.buckets.items()}
        what = max(waits, key=waits.__getitem__, default="")
        if not what or not waits[what]:
            return
        limit, seconds = self.buckets[what].per_minute, waits[what]
        message = f"this key's limit is {limit} {what} per minute; try again in {seconds} seconds"
        raise Refusal(429, message, "rate_limit_exceeded", headers={"Retry-After": str(seconds)})

    def take_request(self) -> None:
        """Count a request that was let in."""
        if "requests" in self.buckets:
            self.buckets["requests"].take(1)

    def spend(self, tokens: int) -> None:
        """Count tokens once they are known, as often as some become known; negative counts are none."""
        if "tokens" in self.buckets:
            self.buckets["tokens"].take(tokens)

    def headers(self) -> dict[str, str]:
        """For the response, as OpenAI names them; only for the limits that there are."""
        found = {}
        for what, bucket in self.buckets.items():
            found[f"x-ratelimit-limit-{what}"] = str(bucket.per_minute)
            found[f"x-ratelimit-remaining-{what}"] = str(bucket.remaining())
        return found
