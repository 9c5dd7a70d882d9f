"""Laws of a composed model, over pairs of families that share their tokens."""

from typing import Any

import pytest
import torch
from families import lively, network

from graft import CalmForCausalLM

PAIRS = [
    ("llama", "gpt2"),
    ("gpt_neox", "llama"),
    ("gpt2", "qwen2"),
    ("qwen3", "gpt_neox"),
    ("gemma", "opt"),
    ("gemma3", "bloom"),
    ("opt", "gemma"),
    ("bloom", "llama"),
    ("falcon", "mistral"),
    ("gpt_neo", "phi"),
    ("mistral", "mixtral"),
    ("llama", "mpt"),
    ("phi3", "gptj"),
    ("mpt", "olmo2"),
    ("olmo2", "gemma2"),
    ("gptj", "falcon"),
    ("llama", "mamba"),
    ("mamba", "llama"),
]
"""Anchor and augmenting model: blocks that give tensors and tuples, windows, ALiBi, learned positions, experts."""

CONNECTIONS = [(2, 1), (4, 3), (0, 0)]

IDS = torch.tensor([[0, 0, 0, 5, 9, 14, 7, 8, 20], [0, 31, 12, 5, 9, 14, 7, 8, 21], [3, 31, 12, 5, 9, 40, 7, 8, 22]])
MASK = (IDS > 0).long()


@pytest.fixture(scope="module", params=PAIRS, ids=lambda pair: "<-".join(pair))
def composed(request: pytest.FixtureRequest) -> Any:
    anchor, augmenting = request.param
    return lively(CalmForCausalLM(network(anchor), network(augmenting, seed=1), CONNECTIONS, distance_bias=True).eval())


def logits(model: Any, ids: torch.Tensor = IDS, mask: torch.Tensor | None = MASK, **more: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=ids, attention_mask=mask, **more).logits
    return found


def positions(model: Any) -> dict[str, Any]:
    from graft.models.local import accepted

    return accepted(model, position_ids=(MASK.cumsum(-1) - 1).clamp(min=0))


@pytest.mark.parametrize("pair", PAIRS, ids="<-".join)
def test_untrained_it_is_the_anchor(pair: tuple[str, str]) -> None:
    anchor = network(pair[0])
    alone = logits(anchor, **positions(anchor))
    model = CalmForCausalLM(anchor, network(pair[1], seed=1), CONNECTIONS)
    assert torch.equal(logits(model)[MASK.bool()], alone[MASK.bool()])
    assert torch.equal(logits(model.train(), use_cache=False)[MASK.bool()], alone[MASK.bool()])
    changed = logits(lively(model.eval()))
    assert (changed - alone)[MASK.bool()].abs().max() > 0.05
    # Afterwards the anchor is what it was.
    assert torch.equal(logits(anchor, **positions(anchor)), alone)


def test_what_follows_does_not_reach_what_comes_before(composed: Any) -> None:
    whole = logits(composed)
    for place in range(3, 9):
        other = IDS.clone()
        other[:, place] = (other[:, place] + 11) % 50 + 3
        found = logits(composed, other)
        keep = MASK[:, :place].bool()
        torch.testing.assert_close(found[:, :place][keep], whole[:, :place][keep], rtol=0, atol=1e-5)
        assert not torch.allclose(found[:, place], whole[:, place], atol=1e-3)


def test_padding_changes_nothing(composed: Any) -> None:
    whole = logits(composed)
    alone = logits(composed, IDS[:1, 3:], None)
    torch.testing.assert_close(whole[0, 3:], alone[0], rtol=0, atol=1e-4)
    right = torch.cat([IDS[:1, 3:], torch.zeros(1, 2, dtype=torch.long)], 1)
    masked = logits(composed, right, (right > 0).long())
    torch.testing.assert_close(masked[0, :6], alone[0], rtol=0, atol=1e-4)


def test_in_parts_with_a_cache_it_is_what_it_is_at_once(composed: Any) -> None:
    if composed._stateful:
        pytest.skip("no cache of keys and values")
    whole, cache, parts = logits(composed), composed.new_cache(), []
    for start, stop in [(0, 5), (5, 6), (6, 8), (8, 9)]:
        parts.append(logits(composed, IDS[:, start:stop], MASK[:, :stop], past_key_values=cache, use_cache=True))
    torch.testing.assert_close(torch.cat(parts, 1)[MASK.bool()], whole[MASK.bool()], rtol=0, atol=2e-4)


def greedy(model: Any, row: list[int], count: int) -> list[int]:
    """By the definition: the most likely token after the whole text, again and again."""
    for _ in range(count):
        row = [*row, int(logits(model, torch.tensor([row]), None, use_cache=False)[0, -1].argmax())]
    return row


def test_what_is_written_is_what_is_most_likely(composed: Any) -> None:
    written = composed.generate(IDS, attention_mask=MASK, max_new_tokens=6, do_sample=False)
    for row, ids, mask in zip(written.tolist(), IDS.tolist(), MASK.tolist(), strict=True):
        text = [token for token, real in zip(ids, mask, strict=True) if real]
        assert row[len(ids) :] == greedy(composed, text, 6)[len(text) :]


def test_beams_take_their_caches_along(composed: Any) -> None:
    options = {"attention_mask": MASK, "max_new_tokens": 5, "num_beams": 3, "do_sample": False}
    with_cache = composed.generate(IDS, **options, num_return_sequences=2)
    assert torch.equal(with_cache, composed.generate(IDS, **options, num_return_sequences=2, use_cache=False))


def test_only_bridges_have_gradients(composed: Any) -> None:
    composed.zero_grad()
    composed.train()(input_ids=IDS, attention_mask=MASK, labels=IDS, use_cache=False).loss.backward()
    composed.eval()
    names = {name for name, value in composed.named_parameters() if value.grad is not None}
    assert names == {name for name, _ in composed.named_parameters() if name.startswith("bridges.")}
    assert names == {name for name, value in composed.named_parameters() if value.requires_grad}
