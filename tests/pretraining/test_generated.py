"""Little worlds: what their rows say is true, and what is held out is never learned."""

import re

import numpy as np
import pytest

from graft.errors import DataError
from graft.models.objective import NO_TARGET
from graft.pretraining.generated import GeneratedRows, word_tokenizer
from graft.pretraining.recipe import KeyValue, World
from graft.pretraining.world import LittleWorld
from graft.seeds import generator
from graft.tasks.key_value import KeyValueWorld
from graft.tasks.worlds import Row, one_in

KEYS = KeyValueWorld.of(
    KeyValue(
        keys=60,
        values=10,
        operands=3,
        held_in=0.5,
        parts={"pairs": 1, "values": 1, "substitute": 1, "numbers": 1, "solve": 1},
    )
)
PEOPLE = LittleWorld.of(World(people=30, hops=2, parts={"facts": 1, "questions": 1, "rationales": 1}, held_out=0.2))
WORLDS = {
    "key-value": (KEYS, ("pairs", "values", "substitute", "numbers", "solve")),
    "world": (PEOPLE, ("facts", "questions", "rationales")),
}


def rows_of(name: str, tokens: int = 300, seed: int = 0) -> GeneratedRows:
    world, parts = WORLDS[name]
    vocabulary = word_tokenizer(world.words, 64).get_vocab()
    return GeneratedRows(world, dict.fromkeys(parts, 1.0), vocabulary, 64, tokens, seed)


def value(expression: str) -> int:
    words = [str(KEYS.value_of.get(word, word)) for word in expression.split()]
    assert all(re.fullmatch(r"\d+|[+-]", word) for word in words)
    return int(eval("".join(words)))


def test_every_row_of_key_value_is_true() -> None:
    random = np.random.default_rng(0)
    for part in WORLDS["key-value"][1]:
        for _ in range(100):
            row = KEYS.draw(part, random)
            if part == "values":
                assert row.answer == str(KEYS.value_of[row.prompt])
                continue
            question, sign = row.prompt[:-2].strip(), row.prompt.split()[-1]
            assert sign == ("->" if part == "substitute" else "=")
            assert value(question) == value(row.answer) if part == "substitute" else value(question) == int(row.answer)
            assert any(word in KEYS.value_of for word in question.split()) == (part != "numbers")


def told(sentences: str) -> dict[tuple[str, str], str]:
    """What sentences say: of whom, what, and the answer."""
    found = {}
    for sentence in sentences.split(" ."):
        words = sentence.split()
        if words[:1] == ["the"]:
            found[words[3], words[1]] = words[5]
        elif words[1:3] == ["lives", "in"]:
            found[words[0], "live"] = words[3]
        elif words[1:3] == ["is", "a"]:
            found[words[0], "do"] = words[3]
    return found


def test_every_row_of_the_world_is_true_and_its_reasons_lead_to_the_answer() -> None:
    random = np.random.default_rng(0)
    facts = {**PEOPLE.relatives}
    facts |= {(person, "live"): home for person, home in PEOPLE.homes.items()}
    facts |= {(person, "do"): trade for person, trade in PEOPLE.trades.items()}
    for _ in range(200):
        for key, answer in told(" ".join([(row := PEOPLE.draw("facts", random)).prompt, row.answer])).items():
            assert facts[key] == answer
        why = PEOPLE.draw("rationales", random)
        steps, _, answer = why.answer.rpartition("so ")
        assert told(steps).items() <= facts.items()
        question = why.prompt.removeprefix("why : ")
        path = re.findall(r"the (\w+) of", question)
        kind = {"where": "live", "what": "do", "who": "who"}[question.split()[0]]
        person = question.split()[-2 if kind == "who" else -3]
        assert PEOPLE.question(person, path[::-1], kind) == Row("questions", question, answer)
        for relation in reversed(path):
            person = facts[person, relation]
        assert answer == (person if kind == "who" else facts[person, kind])
        assert len(path) <= 2


@pytest.mark.parametrize("name", WORLDS)
def test_batches_are_a_function_of_their_number_and_hold_nothing_that_is_held_out(name: str) -> None:
    rows = rows_of(name)
    words = {number: word for word, number in rows.vocabulary.items()}
    kept = {row.prompt for row in rows.held_out(200)}
    assert len(kept) >= 100
    seen = []
    for position in range(40):
        batch = rows.batch(position)
        assert batch.equals(rows_of(name).batch(position))
        lengths = batch["length"].to_pylist()
        assert lengths == sorted(lengths, reverse=True)
        assert 150 < lengths[0] * len(lengths) <= 300
        for ids, labels in zip(batch["ids"].to_pylist(), batch["labels"].to_pylist(), strict=True):
            given = labels.count(NO_TARGET) + 1
            assert words[ids[0]] == "<s>"
            assert ids[given:] == labels[given - 1 : -1]
            assert words[labels[-1]] == "</s>"
            seen.append(" ".join(words[number] for number in ids[1:given]))
    assert not kept & set(seen)
    assert not rows.batch(0).equals(rows.batch(1))
    assert not rows.batch(0).equals(rows_of(name, seed=1).batch(0))


def test_names_that_are_not_held_in_are_never_solved_and_all_their_values_occur() -> None:
    random = np.random.default_rng(0)
    rows = [KEYS.draw("solve", random) for _ in range(500)]
    kept = [row for row in rows if KEYS.is_held_out(row)]
    assert kept
    for row in rows:
        inside = set(row.prompt.split()[:-1:2]) <= KEYS.held_in_names
        assert inside or KEYS.is_held_out(row)
    # Of the names that are held in, only a tenth of the expressions.
    within = [row in kept for row in rows if set(row.prompt.split()[:-1:2]) <= KEYS.held_in_names]
    assert 0.02 < np.mean(within) < 0.25
    assert len(KEYS.held_in_names) == 30
    assert {KEYS.value_of[name] for name in KEYS.held_in_names} == set(range(10))
    assert not any(KEYS.is_held_out(KEYS.draw("pairs", random)) for _ in range(100))


def test_worlds_with_one_seed_agree_and_with_another_do_not() -> None:
    same = KeyValueWorld(60, 10, 3, 0.5, 0)
    assert same.value_of == KEYS.value_of
    assert same.fingerprint() == KEYS.fingerprint()
    assert KeyValueWorld(60, 10, 3, 0.5, 1).value_of != KEYS.value_of
    assert LittleWorld(30, 2, 0.2, 0).relatives == PEOPLE.relatives
    assert LittleWorld(30, 2, 0.2, 1).relatives != PEOPLE.relatives


def test_a_share_of_texts_is_chosen_by_what_they_say() -> None:
    chosen = [one_in(0.3, 0, str(text)) for text in range(2000)]
    assert np.mean(chosen) == pytest.approx(0.3, abs=0.03)
    assert chosen == [one_in(0.3, 0, str(text)) for text in range(2000)]
    assert chosen != [one_in(0.3, 1, str(text)) for text in range(2000)]


def test_a_row_longer_than_the_context_is_an_error_and_what_needs_no_relation_is_always_learned() -> None:
    short = GeneratedRows(PEOPLE, {"rationales": 1.0}, rows_of("world").vocabulary, 8, 300, 0)
    with pytest.raises(DataError, match=r"a row has \d+ tokens, model.context is 8; make it longer"):
        short.batch(0)
    nothing = LittleWorld(30, 2, 0.999999, 0)
    questions = GeneratedRows(nothing, {"questions": 1.0}, rows_of("world").vocabulary, 64, 300, 0)
    random = generator(0, "x")
    assert " of " not in questions.row(random).prompt  # what needs no relation is always learned


def test_a_tokenizer_has_a_token_for_each_word_and_writes_them_back() -> None:
    tokenizer = word_tokenizer(KEYS.words, 32)
    row = KEYS.draw("solve", np.random.default_rng(0))
    ids = tokenizer(row.prompt)["input_ids"]
    assert len(ids) == len(row.prompt.split()) + 1
    assert tokenizer.decode(ids, skip_special_tokens=True) == row.prompt
    assert len(tokenizer) == len(set(KEYS.words)) + 4
