"""A little world of people and places, told in sentences, with questions whose answers are known to be true.

    facts       bako lives in tilo .
    questions   where does the mother of bako live ?  tilo
    rationales  why : where does the mother of bako live ?  the mother of bako is lemi . lemi lives in tilo . so tilo

In the manner of PhantomWiki (Gong et al. 2025, arXiv:2502.20377): a question follows one to three relations, and
only who has learned every fact on the way, and how to join them, can answer it.
"""

import dataclasses
import functools
from typing import Self

from graft import hashing
from graft.pretraining.recipe import World
from graft.seeds import generator
from graft.tasks.worlds import Random, Row, names, one_in

RELATIONS = ("mother", "father", "friend", "teacher")
TRADES = ("baker", "smith", "weaver", "healer", "sailor", "farmer", "mason", "singer")
PEOPLE_PER_PLACE = 8
ASKED = {"live": ("where does", "live ?"), "do": ("what does", "do ?"), "who": ("who is", "?")}
"""How a question begins and ends."""


@dataclasses.dataclass(frozen=True)
class LittleWorld:
    """People with relatives, homes and trades.

    Args:
        people: how many.
        hops: most relations that a question follows.
        held_out: share of the questions that are never learned.
        seed: of all that.
    """

    people: int
    hops: int
    held_out: float
    seed: int

    @classmethod
    def of(cls, data: World) -> Self:
        """What a recipe says."""
        return cls(data.people, data.hops, data.held_out, data.world)

    @functools.cached_property
    def named(self) -> tuple[str, ...]:
        """All people."""
        return tuple(names(self.people, generator(self.seed, "people")))

    @functools.cached_property
    def places(self) -> tuple[str, ...]:
        """All places."""
        count = max(2, self.people // PEOPLE_PER_PLACE)
        return tuple(names(count, generator(self.seed, "places"), taken=self.named))

    @functools.cached_property
    def relatives(self) -> dict[tuple[str, str], str]:
        """Who is what to whom: person and relation to person."""
        random = generator(self.seed, "relatives")
        return {
            (person, relation): self.named[other + (other >= at)]
            for at, person in enumerate(self.named)
            for relation, other in zip(RELATIONS, random.integers(self.people - 1, size=len(RELATIONS)), strict=True)
        }

    @functools.cached_property
    def homes(self) -> dict[str, str]:
        """Where everyone lives."""
        drawn = generator(self.seed, "homes").integers(len(self.places), size=self.people)
        return {person: self.places[at] for person, at in zip(self.named, drawn, strict=True)}

    @functools.cached_property
    def trades(self) -> dict[str, str]:
        """What everyone does."""
        drawn = generator(self.seed, "trades").integers(len(TRADES), size=self.people)
        return {person: TRADES[at] for person, at in zip(self.named, drawn, strict=True)}

    @property
    def words(self) -> tuple[str, ...]:
        """Every word."""
        told = "the a of is lives in . so why : where does live ? what do who"
        return (*told.split(), *RELATIONS, *TRADES, *self.places, *self.named)

    def draw(self, part: str, random: Random) -> Row:
        """A row of one kind."""
        person = self.named[random.integers(self.people)]
        if part == "facts":
            return self._fact(person, random)
        path = [RELATIONS[at] for at in random.integers(len(RELATIONS), size=random.integers(self.hops + 1))]
        kind = list(ASKED)[random.integers(2 if not path else 3)]
        question = self.question(person, path, kind)
        return question if part == "questions" else self.explained(person, path, kind)

    def _fact(self, person: str, random: Random) -> Row:
        """Something that is true of a person alone: what questions are made of."""
        about = random.integers(len(RELATIONS) + 2)
        if about < len(RELATIONS):
            relation = RELATIONS[about]
            return Row("facts", f"the {relation} of {person} is", f"{self.relatives[person, relation]} .")
        if about == len(RELATIONS):
            return Row("facts", f"{person} lives in", f"{self.homes[person]} .")
        return Row("facts", f"{person} is a", f"{self.trades[person]} .")

    def question(self, person: str, path: list[str], kind: str) -> Row:
        """Where or what somebody is, whom relations lead to from a person."""
        begin, end = ASKED[kind]
        whom = " ".join([f"the {relation} of" for relation in reversed(path)] + [person])
        return Row("questions", f"{begin} {whom} {end}", self._answer(self._follow(person, path)[-1], kind))

    def explained(self, person: str, path: list[str], kind: str) -> Row:
        """The same question, answered step by step."""
        asked = self.question(person, path, kind)
        met = self._follow(person, path)
        steps = [f"the {relation} of {a} is {b} ." for relation, a, b in zip(path, met, met[1:], strict=False)]
        if kind != "who":
            end = f"{met[-1]} lives in" if kind == "live" else f"{met[-1]} is a"
            steps.append(f"{end} {asked.answer} .")
        return Row("rationales", f"why : {asked.prompt}", " ".join([*steps, "so", asked.answer]))

    def _follow(self, person: str, path: list[str]) -> list[str]:
        """Everyone on the way, the person first."""
        met = [person]
        for relation in path:
            met.append(self.relatives[met[-1], relation])
        return met

    def _answer(self, person: str, kind: str) -> str:
        return {"live": self.homes, "do": self.trades}[kind][person] if kind != "who" else person

    def is_held_out(self, row: Row) -> bool:
        """A share of the questions that follow a relation, with their rationales. Facts are all learned."""
        asked = row.prompt.removeprefix("why : ")
        return row.part != "facts" and " of " in asked and one_in(self.held_out, self.seed, asked)

    def fingerprint(self) -> str:
        """Identity by content."""
        return hashing.digest("world", *dataclasses.astuple(self))
