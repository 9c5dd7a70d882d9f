"""What the benchmarks of the server count by: percentiles, growth, and answers that are lost, doubled or wrong."""

import asyncio
import dataclasses
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import linregress

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import figures
from exchange import Reply, exchange
from load import Asked, Point, read
from questions import Question, is_right
from soak_page import Kill, Outcome, Sample, Soak, save

HEAD = b"HTTP/1.1 200 OK\r\nX-Request-ID: a\r\n"
WHOLE = HEAD + b"Content-Length: 2\r\n\r\n{}"


def test_percentiles_and_ratios_of_turns() -> None:
    assert figures.percentile([4.0, 1.0, 3.0, 2.0], 50) == 2.5
    assert math.isnan(figures.percentile([], 99))
    assert figures.spread([3.0, 1.0, 1234.5]) == "3.0 (1.0–1,234.5)"
    # Turn by turn: a turn on a slow machine is slow on both sides.
    assert figures.ratio([8.0, 4.0, 9.0], [2.0, 1.0, 3.0]) == "4.00 (3.00–4.00)x"


def test_a_slope_is_found_and_noise_is_none() -> None:
    random = np.random.default_rng(0)
    seconds = np.arange(0, 900, 10.0)
    noise = random.normal(size=len(seconds))
    grows = figures.slope(seconds, 100 + 2 * seconds / 60 + noise)
    assert grows.low < 2 < grows.high
    assert not grows.flat
    assert grows.last - grows.first == pytest.approx(20, abs=1)
    assert figures.slope(seconds, 100 + noise).flat
    assert figures.slope(seconds, np.full(len(seconds), 7.0)).flat


def test_the_interval_knows_that_neighbours_resemble_each_other() -> None:
    """Memory wanders; a line through it taken for independent noise seems to have a slope two times out of five."""
    random = np.random.default_rng(1)
    seconds = np.arange(0, 900, 10.0)
    sees_zero = {"ours": 0, "plain": 0}
    for _ in range(200):
        wander = [0.0]
        for step in random.normal(size=len(seconds) - 1):
            wander.append(0.7 * wander[-1] + step)
        ours, plain = figures.slope(seconds, wander), linregress(seconds, wander)
        sees_zero["ours"] += ours.low <= 0 <= ours.high
        sees_zero["plain"] += abs(plain.slope) <= 1.99 * plain.stderr
    assert sees_zero["ours"] > 175 > 145 > sees_zero["plain"]


def test_a_point_counts_what_was_answered_in_its_window() -> None:
    found = [Asked(0, 0.0, 1.0, 200, "a", 5), Asked(1, 1.0, 2.0, 200, "b", 7), Asked(2, 1.0, 3.0, 503)]
    point = Point.of([*found, Asked(3, 2.0, 6.0, 200, "c", 9)], begin=1.5, end=3.5)
    assert (point.p50_ms, point.requests_per_second, point.units_per_second) == (1000.0, 0.5, 3.5)
    assert point.statuses == {"200": 1, "503": 1}
    assert point.answers == {"0": "a", "1": "b", "3": "c"}


def test_answers_are_read_from_both_shapes() -> None:
    assert read("/v1/completions", {"choices": [{"text": " a b "}], "usage": {"completion_tokens": 3}}) == ("a b", 3)
    assert read("/v1/classify", {"data": [{"label": "x"}, {"label": "y"}]}) == ("x|y", 2)


@pytest.mark.parametrize(
    ("sent", "status", "responses", "content"),
    [
        (WHOLE, 200, 1, b"{}"),
        (WHOLE + WHOLE, 200, 2, b"{}"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n", 200, 1, b"{}"),
        (WHOLE[:-1], 0, 0, b""),
        (HEAD[:20], 0, 0, b""),
        (b"", 0, 0, b""),
    ],
)
def test_responses_are_counted_to_the_end_of_a_connection(
    sent: bytes, status: int, responses: int, content: bytes
) -> None:
    async def answered() -> Reply:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"body")
            writer.write(sent)
            await writer.drain()
            writer.close()

        async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            return await exchange("127.0.0.1", port, "/", {}, b"body", seconds=10)

    reply = asyncio.run(answered())
    assert (reply.status, reply.responses, reply.content) == (status, responses, content)
    assert bool(reply.problem) is not bool(status)


def test_an_answer_to_another_question_is_wrong() -> None:
    asked = Question("probe", "run", "/v1/classify", b"", {"x": 0.7, "y": 0.3})

    def scored(share: float, label: str = "x") -> bytes:
        return json.dumps({"data": [{"label": label, "scores": {"x": share, "y": 1 - share}}]}).encode()

    assert is_right(asked, scored(0.7001))
    assert not is_right(asked, scored(0.72))
    assert not is_right(asked, scored(0.7, "y"))
    assert not is_right(asked, b"{}")
    text = Question("completions", "run", "/v1/completions", b"", "a wood")
    assert is_right(text, b'{"choices": [{"text": " a wood\\n\\nthe end"}]}')
    assert not is_right(text, b'{"choices": [{"text": " a mill"}]}')


@pytest.fixture
def soak() -> Soak:
    """Ten minutes, a kill in the middle, and one of everything that must not happen."""

    def outcome(
        number: int, status: int = 200, seconds: float = 0.1, responses: int = 1, right: bool = True
    ) -> Outcome:
        fine = right if status == 200 else None
        return Outcome(f"{number}", "probe", float(number), number + seconds, status, fine, responses, None)

    outcomes = [outcome(number) for number in range(600)]
    outcomes[300] = outcome(300, 503, 0.2)
    outcomes[301] = outcome(301, 503, 2.0)
    outcomes[302] = outcome(302, 500)
    outcomes[303] = outcome(303, 0, 120.0, 0)
    outcomes[304] = outcome(304, responses=2)
    outcomes[305] = outcome(305, right=False)
    outcomes[306] = dataclasses.replace(outcome(306), echoed=False)
    samples = [Sample(at, {"embed": 500.0, "ray": 900 + at / 60}, {"embed": 1}) for at in range(0, 600, 10)]
    samples[31] = Sample(310, {"ray": 900.0}, {})
    users = {"embed": {"probe"}}
    return Soak(0.0, 10.0, 1.0, users, outcomes, [Kill(299.5, "embed", 7)], samples, 600.0)


def test_every_fault_of_a_soak_is_counted(soak: Soak) -> None:
    assert set(soak.faults().values()) == {1}
    assert soak.back(soak.kills[0]) == pytest.approx(304.1 - 299.5)
    assert all(one.replicas == {"embed": 1} and one.at >= 59 for one in soak.steady())
    text = soak.page("here")
    assert "| ray | " in text
    assert "+1.00 (+1.00 to +1.00)" in text


def test_a_soak_is_saved_with_its_picture(soak: Soak, tmp_path: Path) -> None:
    save(soak, "text", tmp_path / "out")
    assert (tmp_path / "out" / "soak.svg").stat().st_size > 1000
    assert len((tmp_path / "out" / "requests.csv").read_text().splitlines()) == 601
    assert "299.5,embed,7" in (tmp_path / "out" / "kills.csv").read_text()


def test_a_soak_that_was_stopped_at_once_says_so() -> None:
    assert "nothing was asked" in Soak(0.0).page("here")
