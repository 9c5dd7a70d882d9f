"""Rows read behind others: computed once where prompts share a beginning, and equal to computing each prompt whole."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from graft import models
from graft.errors import ModelError
from graft.models.in_context import Block, InContext, as_block
from graft.spec import ModelSource

TEXTS = [
    "the cat sat on the mat",
    "a moving and beautiful film",
    "stock markets fell on Monday",
    "the rain",
    "a dull film without a story, and far too long for what it says",
    "what is the capital of France?",
]


SMALL = {"hidden_size": 32, "num_attention_heads": 4, "initializer_range": 0.2}
OTHERS: dict[str, dict[str, Any]] = {
    "GPTNeo": {**SMALL, "num_layers": 2, "num_heads": 4, "attention_types": [[["global"], 2]]},
    "Bloom": {**SMALL, "n_layer": 2, "n_head": 4},
    "Falcon": {**SMALL, "num_hidden_layers": 2, "alibi": True, "new_decoder_architecture": False},
    "GPTNeoX": {**SMALL, "num_hidden_layers": 2, "intermediate_size": 64},
}
"""Positions as biases, and attention that is not torch's own: what packs must not be made of."""


@pytest.fixture(scope="module", params=["tiny_llama", "tiny_gpt2", *OTHERS])
def model(request: pytest.FixtureRequest, tiny_causal: Any) -> models.Model:
    if request.param not in OTHERS:
        return models.load(str(request.getfixturevalue(request.param)))
    return models.load(str(tiny_causal(request.param, **OTHERS[request.param])))


def blocks(model: models.Model, texts: list[str]) -> list[Block]:
    return [as_block(model, f"Input: {text}\nLabel: good\n\n", 7, 7 + len(text)) for text in texts]


def test_a_block_counts_the_tokens_of_its_own_text(model: models.Model) -> None:
    text = "Input: the cat sat on the mat\nLabel: good\n\n"
    block = as_block(model, text, 7, 29)
    said = model.tokenizer.decode(block.ids[block.begin : block.end])
    assert said.strip() == "the cat sat on the mat"
    assert model.tokenizer.decode(block.ids) == text
    assert block.cut().ids == block.ids[: block.end]
    with pytest.raises(ModelError, match="has no token; drop empty texts"):
        as_block(model, "Input: \nLabel: good", 7, 7)


def test_what_is_shared_equals_computing_every_prompt_whole(model: models.Model) -> None:
    shown = blocks(model, TEXTS[:5])
    asked = blocks(model, TEXTS)
    shared, whole = InContext(model, shown), InContext(model, shown, share=False)
    assert shared.share
    np.testing.assert_allclose(shared.asked(asked), whole.asked(asked), atol=2e-5)
    exact = shared.left_out(exact=True)
    np.testing.assert_allclose(exact, whole.left_out(exact=True), atol=2e-5)
    assert np.abs(exact - shared.beside()).max() > 1e-3
    np.testing.assert_allclose(exact[-1], shared.beside()[-1], atol=2e-5)  # the last one stands last anyway


@pytest.mark.parametrize(("family", "packs"), [("tiny_llama", True), ("tiny_gpt2", True), ("Falcon", False)])
def test_asked_rows_are_read_in_one_pass_where_a_mask_keeps_them_apart(
    family: str, packs: bool, request: pytest.FixtureRequest, tiny_causal: Any
) -> None:
    folder = tiny_causal(family, **OTHERS[family]) if family in OTHERS else request.getfixturevalue(family)
    model = models.load(str(folder))
    shown, asked = blocks(model, TEXTS[:5]), blocks(model, TEXTS)
    reader = InContext(model, shown)
    reader.asked(asked[:1])  # now what is shown is known
    passes: list[None] = []
    hook = model.body.register_forward_pre_hook(lambda *_: passes.append(None))
    found = reader.asked(asked)
    hook.remove()
    assert model.packs_prompts == packs
    assert len(passes) == (1 if packs else len(asked))
    np.testing.assert_allclose(found, InContext(model, shown, share=False).asked(asked), atol=2e-5)


def test_divided_every_block_stands_behind_all_the_others(model: models.Model) -> None:
    shown = blocks(model, TEXTS[:4])
    found = InContext(model, shown).left_out(exact=False)
    whole = InContext(model, shown, share=False)
    for place, others in ((0, (2, 3, 1)), (1, (2, 3, 0)), (2, (0, 1, 3)), (3, (0, 1, 2))):
        expected = whole._whole([shown[other] for other in others], shown[place])
        np.testing.assert_allclose(found[place], expected, atol=2e-5)


def test_who_asks_again_pays_for_its_own_tokens(model: models.Model) -> None:
    shown, asked = blocks(model, TEXTS[:5]), blocks(model, TEXTS)
    first = InContext(model, shown).asked(asked)
    before = model.usage.tokens
    again = InContext(model, shown).asked(asked[:1])
    assert model.usage.tokens - before == len(asked[0].cut().ids)
    np.testing.assert_allclose(again[0], first[0], atol=2e-5)


def test_sharing_costs_fewer_tokens(tiny_llama: Path) -> None:
    model = models.load(str(tiny_llama))
    shown = blocks(model, TEXTS * 4)
    asked = blocks(model, TEXTS * 4)
    costs = {}
    for name, share, exact in (("whole", False, True), ("exact", True, True), ("divided", True, False)):
        reader = InContext(model, shown, share=share)
        before = model.usage.tokens
        reader.left_out(exact)
        costs[name] = model.usage.tokens - before
        before = model.usage.tokens
        reader.asked(asked)
        costs[f"{name} asked"] = model.usage.tokens - before
    assert costs["exact"] < 0.6 * costs["whole"]
    assert costs["divided"] < 0.35 * costs["whole"]
    assert costs["divided asked"] < 0.15 * costs["whole asked"]


def test_what_the_first_block_reads_knows_its_place(tiny_gpt2: Path) -> None:
    """Learned positions are added to it, and no keys or values tell how many tokens came before."""
    model = models.load(ModelSource(source=str(tiny_gpt2), layer=0))
    found = InContext(model, blocks(model, TEXTS[:4]))
    whole = InContext(model, found.shown, share=False)
    asked = blocks(model, TEXTS)
    np.testing.assert_allclose(found.asked(asked), whole.asked(asked), atol=2e-5)
    for exact in (True, False):
        np.testing.assert_allclose(found.left_out(exact), whole.left_out(True), atol=2e-5)
    alone = InContext(model, found.shown[:1])
    assert np.abs(alone.asked(asked) - found.asked(asked)).max() > 1e-3


def test_another_layer_is_read_behind_others_too(tiny_llama: Path) -> None:
    model = models.load(ModelSource(source=str(tiny_llama), layer=1))
    shown = blocks(model, TEXTS[:4])
    found = InContext(model, shown)
    whole = InContext(model, shown, share=False)
    np.testing.assert_allclose(found.asked(shown), whole.asked(shown), atol=2e-5)
    np.testing.assert_allclose(found.left_out(True), whole.left_out(True), atol=2e-5)
    last = InContext(models.load(str(tiny_llama)), shown)
    assert np.abs(last.asked(shown) - found.asked(shown)).max() > 1e-3
