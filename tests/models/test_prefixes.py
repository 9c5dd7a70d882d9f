"""Which prompts share a beginning, and what is kept of it."""

from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st

from graft.models import prefixes
from graft.models.prefixes import MIN_SHARED_TOKENS, Group, PrefixCaches, groups

tokens = st.lists(st.integers(0, 2), min_size=1, max_size=12)


@given(contexts=st.lists(st.builds(lambda head, tail: [7] * head + tail, st.integers(0, 80), tokens), min_size=1))
def test_groups_hold_every_prompt_once_and_share_what_they_say(contexts: list[list[int]]) -> None:
    found = groups(contexts)
    assert sorted(index for group in found for index in group.members) == list(range(len(contexts)))
    for group in found:
        assert group.shared_tokens == 0 or group.shared_tokens >= MIN_SHARED_TOKENS
        beginnings = {tuple(contexts[index][: group.shared_tokens]) for index in group.members}
        assert len(beginnings) == 1
        assert all(len(contexts[index]) > group.shared_tokens for index in group.members)


def test_demonstrations_make_groups_and_an_accidental_longer_match_does_not_split_them() -> None:
    same, other = [1] * 50, [2] * 60
    contexts = [[*same, 3, 4], [*other, 5], [*same, 3, 5], [*same, 6], [9], [*other, 6]]
    found = {tuple(sorted(group.members)): group.shared_tokens for group in groups(contexts)}
    assert found == {(0, 2, 3): 50, (1, 5): 60, (4,): 0}


def test_one_prompt_keeps_its_last_token_for_itself() -> None:
    assert groups([[1] * 50]) == [Group([0], 49)]
    assert groups([[1] * 5]) == [Group([0], 0)]


def cache_of(ids: list[int]) -> Any:
    """A cache whose keys are the token ids themselves."""
    from transformers import DynamicCache

    cache = DynamicCache()
    keys = torch.tensor(ids, dtype=torch.float32)[None, None, :, None]
    cache.update(keys, keys, 0)
    return cache


def test_the_longest_known_beginning_is_found_and_cropped() -> None:
    kept = PrefixCaches()
    first = [1] * 40 + [2] * 10
    kept.keep(first, cache_of(first))
    cache, known = kept.nearest([1] * 40 + [3] * 5)
    assert known == 40
    assert cache.layers[0].keys.flatten().tolist() == [1.0] * 40
    assert kept.nearest([5] * 40) == (None, 0)
    assert kept.nearest([1] * 10) == (None, 0)


def test_growing_a_copy_leaves_the_kept_cache_alone() -> None:
    kept = PrefixCaches()
    first = [1] * 40
    kept.keep(first, cache_of(first))
    for _ in range(2):
        cache, known = kept.nearest([*first, 9])
        assert (known, cache.get_seq_length()) == (40, 40)
        cache.update(torch.ones(1, 1, 3, 1), torch.ones(1, 1, 3, 1), 0)


def test_longer_replaces_its_beginning_and_the_oldest_goes() -> None:
    kept = PrefixCaches()
    kept.keep([1] * 40, cache_of([1] * 40))
    kept.keep([1] * 50, cache_of([1] * 50))
    kept.keep([1] * 45, cache_of([1] * 45))
    assert len(kept) == 1
    for name in range(2, prefixes.MAX_ENTRIES + 1):
        kept.keep([name] * 40, cache_of([name] * 40))
    kept.nearest([1] * 50)
    kept.keep([99] * 40, cache_of([99] * 40))
    assert len(kept) == prefixes.MAX_ENTRIES
    assert kept.nearest([1] * 50)[1] == 50
    assert kept.nearest([2] * 40) == (None, 0)
