"""The report's first words: which arm to use, how sure that is, and what it costs."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from graft.results.comparisons import BASELINES, Comparison
from graft.results.outcomes import Outcome
from graft.results.prices import PRICES, Priced
from graft.results.tables import number
from graft.results.words import Sentence, cost_text, limits, names, p_text, plural, sentence, signed, strong


@dataclass(frozen=True)
class Standing:
    """The best arm with one number of examples, and how surely it is ahead of each other."""

    examples: int
    best: Outcome
    others: tuple[Comparison, ...]
    """The best against each other arm that has a seed in common with it, nearest first."""

    def than(self, verdict: str) -> list[str]:
        """The arms that it has this verdict against."""
        return [comparison.other for comparison in self.others if comparison.verdict == verdict]


def answer(
    standing: Standing, against_baseline: Sequence[Comparison], prices: Mapping[str, Priced], arms: int
) -> tuple[Sentence, ...]:
    """What a reader who reads nothing else should take along.

    Args:
        standing: with the most examples.
        against_baseline: of the same column, as `compare_with_baseline` gives them.
        prices: arm to what a run of it costs with as many examples.
        arms: that were compared.
    """
    best, cell = standing.best, standing.best.cell
    interval = best.interval()
    known = f", 95 % interval {limits(interval)}" if limits(interval) else ""
    score = f"{cell.metric.replace('_', ' ')} {number(interval.mean)}{known}"
    with_examples = f"with {plural(cell.examples, 'labelled example')}"
    if not standing.others:
        alone = "is the only arm with results" if arms == 1 else "has no other arm beside it with the same seeds"
        found = [sentence(strong(cell.arm), f" {alone} {with_examples}: {score}.")]
    else:
        verb = "Use" if standing.than("better") or standing.than("equivalent") else "If one has to be picked, use"
        found = [sentence(f"{verb} ", strong(cell.arm), f": {with_examples} it has the best mean, {score}.")]
    found += _against_baseline(standing, against_baseline)
    found += _against_others(standing)
    return (*found, *_costs(standing, prices))


def is_baseline(outcome: Outcome, baselines: Collection[str] = BASELINES) -> bool:
    """Whether it is one of the simple methods that any other should beat."""
    return bool({outcome.method, outcome.cell.arm} & set(baselines))


def _against_baseline(standing: Standing, comparisons: Sequence[Comparison]) -> list[Sentence]:
    own = next((one for one in comparisons if one.arm == standing.best.cell.arm), None)
    if is_baseline(standing.best):
        return [sentence("It is itself a simple baseline: nothing that was tried here has a better mean.")]
    if own is None:
        return [sentence("No simple baseline has results beside it, so what it gains over one is not known.")]
    known = f", 95 % interval {limits(own.difference, sign=True)}" if limits(own.difference) else ""
    p = "" if own.corrected_p is None else f", corrected p {p_text(own.corrected_p)}"
    word = {"better": "better than", "worse": "worse than", "equivalent": "equivalent to"}
    return [
        sentence(
            "It is ",
            strong(word.get(own.verdict, "undecided against")),
            f" the strongest simple baseline, {own.other}: difference {signed(own.difference.mean)}{known}{p}.",
        )
    ]


def _against_others(standing: Standing) -> list[Sentence]:
    if not standing.others:
        return []
    words = {"better": "better than", "equivalent": "equivalent to", "undecided": "undecided against"}
    pieces: list[str | tuple[str, bool]] = ["Among all arms it is "]
    for verdict, phrase in words.items():
        if found := standing.than(verdict):
            pieces += ["; " if len(pieces) > 1 else "", strong(phrase), f" {names(found)}"]
    found_sentences = [sentence(*pieces, ".")]
    unseen = [one.detectable for one in standing.others if one.verdict == "undecided" and one.detectable is not None]
    if unseen:
        found_sentences.append(
            sentence(
                "Undecided means that these seeds and test items do not tell: a true difference below about "
                f"{number(min(unseen))} would probably have gone unseen."
            )
        )
    return found_sentences


def _costs(standing: Standing, prices: Mapping[str, Priced]) -> list[Sentence]:
    own = prices.get(standing.best.cell.arm)
    if own is None:
        return []
    found = [sentence(f"A run of it costs {_price(own)}.")]
    near = {one.other: one.verdict for one in standing.others if one.verdict in ("equivalent", "undecided")}
    cheapest: dict[str, list[str]] = {}
    for column, words in PRICES.items():
        arms = [arm for arm in near if arm in prices and prices[arm].costs[column] < own.costs[column]]
        if arms:
            cheapest.setdefault(min(arms, key=lambda arm: (prices[arm].costs[column], arm)), []).append(words)
    for arm, spared in cheapest.items():
        standing_of = "is equivalent to it" if near[arm] == "equivalent" else "may be as good (undecided)"
        found.append(
            sentence(f"Fewer {' and '.join(spared)}: ", strong(arm), f" {standing_of} and costs {_price(prices[arm])}.")
        )
    if near and not cheapest:
        found.append(sentence("No arm that may be as good costs less."))
    return found


def _price(priced: Priced) -> str:
    parts = [f"{cost_text(priced.costs['seconds'])} seconds"]
    if priced.costs["teacher_calls"]:
        parts.append(f"{cost_text(priced.costs['teacher_calls'])} answers of a teacher")
    parts.append(f"{cost_text(priced.costs['parameters_trainable'])} trainable parameters")
    return ", ".join(parts)
