"""Texts written for many at once, against the same model writing each by itself."""

import contextlib
import dataclasses
import itertools
import random
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import graft.models
from graft.errors import ModelError
from graft.models import continuous
from graft.models.continuous import Continuous
from graft.models.decoding import Asked, Piece, Remote, check, writer_for
from graft.models.model import Model, Sampling, Written
from graft.models.prefixes import PrefixCaches
from graft.models.together import Together

PROMPTS = [
    "Once upon a time",
    "The cat",
    "",
    "Review: a dull film without a story. Label:",
    "Die Katze saß auf der Matte; 东京",
    "Question: what is the capital of France? Answer: Paris. Question: what is the capital of Germany? Answer:",
]
FAMILIES = ["tiny_llama", "tiny_gpt2", "tiny_t5", "tiny_bart"]


class Line:
    """Who asks: each joins once so many questions for more were put, and hears its pieces."""

    def __init__(self, several: Iterable[tuple[int, Asked]]) -> None:
        self.coming = sorted(several, key=lambda one: one[0])
        self.told: dict[Asked, list[Piece]] = {asked: [] for _, asked in self.coming}
        self.questions = 0
        self.most = 0

    def more(self, room: int) -> Sequence[Asked]:
        self.questions += 1
        # Nobody is asked again once nothing is being written: time passes at once then.
        self.questions = max(self.questions, self.coming[0][0] if self.coming and self.idle else 0)
        now = [asked for at, asked in self.coming if at <= self.questions][:room]
        self.coming = self.coming[len(now) :]
        return now

    @property
    def idle(self) -> bool:
        waiting = {asked for _, asked in self.coming}
        return not any(self.writing(asked) for asked in self.told if asked not in waiting)

    def writing(self, asked: Asked) -> bool:
        return not asked.gone and (not self.told[asked] or self.told[asked][-1].finish is None)

    def emit(self, asked: Asked, piece: Piece | Exception) -> None:
        assert isinstance(piece, Piece)
        assert not self.told[asked] or self.told[asked][-1].finish is None
        self.told[asked].append(piece)


def run(model: Model, several: Iterable[tuple[int, Asked]], max_sequences: int = 4, writer: Any = None) -> Line:
    line = Line(several)
    for asked in line.told:
        check(model, asked)
    (writer or writer_for(model, max_sequences)).write([], line.more, line.emit)
    return line


def whole(pieces: Sequence[Piece]) -> Piece:
    """All pieces as one."""
    return Piece(
        "".join(one.text for one in pieces),
        sum(one.tokens for one in pieces),
        tuple(itertools.chain.from_iterable(one.logprobs for one in pieces)),
        pieces[-1].finish,
        pieces[0].prompt_tokens,
    )


def alone(model: Model, asked: Asked) -> Written:
    sampling = Sampling(asked.temperature, [asked.seed]) if asked.temperature else None
    return model.write([asked.prompt], asked.max_new_tokens, asked.stop, sampling)[0]


def check_equal(model: Model, line: Line) -> None:
    """Everyone was told what the model writes for them alone, in as many tokens."""
    for asked, pieces in line.told.items():
        before = model.usage.forward_passes
        written, told = alone(model, asked), whole(pieces)
        assert (told.text, told.finish) == (written.text, "stop" if written.whole else "length")
        assert told.tokens == model.usage.forward_passes - before <= asked.max_new_tokens
        assert not any(piece.prompt_tokens for piece in pieces[1:])
        assert told.prompt_tokens == len(model.rows_to_write([asked.prompt], asked.max_new_tokens)[0])


def variants() -> list[Asked]:
    """Lengths, draws and stop strings of many kinds."""
    kinds: list[dict[str, Any]] = [
        {"max_new_tokens": 14},
        {"max_new_tokens": 1},
        {"max_new_tokens": 40, "temperature": 0.8, "seed": 3},
        {"max_new_tokens": 25, "temperature": 1.5, "seed": 4},
        {"max_new_tokens": 30, "stop": ("e", " a")},
    ]
    return [Asked(prompt, **kinds[(place + turn) % 5]) for turn in range(2) for place, prompt in enumerate(PROMPTS)]


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("apart", [0, 1, 5])
def test_each_text_is_what_the_model_writes_alone(request: pytest.FixtureRequest, name: str, apart: int) -> None:
    model = graft.models.load(str(request.getfixturevalue(name)))
    line = run(model, [(place * apart, asked) for place, asked in enumerate(variants())])
    check_equal(model, line)
    assert max(map(len, line.told.values())) > 3


def test_which_way_of_writing_a_model_needs(request: pytest.FixtureRequest) -> None:
    ways = {"tiny_llama": Continuous, "tiny_gpt2": Continuous, "tiny_t5": Together, "tiny_mistral": Together}
    for name, way in ways.items():
        assert type(writer_for(graft.models.load(str(request.getfixturevalue(name))), 2)) is way
    with pytest.raises(ModelError, match="an encoder model cannot generate"):
        writer_for(graft.models.load(str(request.getfixturevalue("tiny_bert"))), 2)


def test_a_sliding_window_is_written_together(tiny_mistral: Path) -> None:
    model = graft.models.load(str(tiny_mistral))
    check_equal(model, run(model, [(0, asked) for asked in variants()]))


@pytest.mark.parametrize("name", FAMILIES)
def test_stop_strings_are_never_told_nor_begun(request: pytest.FixtureRequest, name: str) -> None:
    model = graft.models.load(str(request.getfixturevalue(name)))
    (text,) = model.generate(PROMPTS[:1], 30)
    for start, length in itertools.product(range(len(text) - 4), (1, 2, 4)):
        stop = text[start : start + length]
        asked = Asked(PROMPTS[0], 30, stop=("never written", stop))
        line = run(model, [(0, asked)])
        told = whole(line.told[asked])
        assert (told.text, told.finish) == (text[: text.index(stop)], "stop")
        assert told.tokens < 30 or text.index(stop) > len(text) - 8


@pytest.mark.parametrize("name", FAMILIES)
def test_what_was_told_stays_so(request: pytest.FixtureRequest, name: str) -> None:
    """No half characters: the pieces of every random text, many of which are broken bytes, add up exactly."""
    model = graft.models.load(str(request.getfixturevalue(name)))
    line = run(model, [(0, Asked(PROMPTS[4], 60, temperature=2.0, seed=seed)) for seed in range(12)], 12)
    check_equal(model, line)
    texts = [whole(pieces).text for pieces in line.told.values()]
    assert any(not text.isascii() for text in texts)


@pytest.mark.parametrize("name", FAMILIES)
def test_log_probabilities_are_the_models_own(request: pytest.FixtureRequest, name: str) -> None:
    model = graft.models.load(str(request.getfixturevalue(name)))
    drawn = Asked("The cat", 9, temperature=0.7, top_p=0.9, seed=1, logprobs=3)
    plain = Asked("Once upon a time", 9, logprobs=0)
    none = Asked("It", 5)
    line = run(model, [(0, drawn), (2, plain), (3, none)])
    assert all(not piece.logprobs for piece in line.told[none])
    for asked in (drawn, plain):
        told = whole(line.told[asked])
        ids = tokens_of(model, asked, told)
        with torch.no_grad():
            logits = logits_after(model, asked.ids or [], ids)
        expected = logits.log_softmax(-1)
        assert len(told.logprobs) == told.tokens == len(ids)
        for token, one, row in zip(ids, told.logprobs, expected, strict=True):
            assert one.logprob == pytest.approx(row[token].item(), abs=1e-4)
            assert [value for _, value in one.top] == pytest.approx(row.topk(asked.logprobs).values.tolist(), abs=1e-4)


def tokens_of(model: Any, asked: Asked, told: Piece) -> list[int]:
    """The tokens of a text, found again from their log-probabilities by walking the model."""
    found: list[int] = []
    for one in told.logprobs:
        with torch.no_grad():
            row = logits_after(model, asked.ids or [], [*found, 0])[-1].log_softmax(-1)
        found.append(int((row - one.logprob).abs().argmin()))
    return found


def logits_after(model: Any, prompt: list[int], new: list[int]) -> torch.Tensor:
    """Logits at each new token's place, by one plain forward pass without any cache."""
    if model.kind == "seq2seq":
        ids = torch.tensor([[*model.decoder_start, *new[:-1]]])
        logits = model.network(input_ids=torch.tensor([prompt]), decoder_input_ids=ids).logits
        return logits[0, len(model.decoder_start) - 1 :]
    return model.network(input_ids=torch.tensor([[*prompt, *new[:-1]]])).logits[0, len(prompt) - 1 :]


@pytest.mark.parametrize("name", ["tiny_llama", "tiny_t5"])
def test_top_p_keeps_the_likeliest_only(request: pytest.FixtureRequest, name: str) -> None:
    model = graft.models.load(str(request.getfixturevalue(name)))
    asked = [Asked("The cat", 1, temperature=1.3, top_p=0.3, seed=seed, logprobs=50) for seed in range(200)]
    line = run(model, [(0, one) for one in asked], 200)
    with torch.no_grad():
        row = logits_after(model, asked[0].ids or [], [0])[-1]
    chances = (row / 1.3).softmax(-1).sort(descending=True)
    before = chances.values.cumsum(-1) - chances.values
    nucleus = chances.indices[before < 0.3]
    allowed = row.log_softmax(-1)[nucleus].tolist()
    drawn = [pieces[-1].logprobs[0].logprob for pieces in line.told.values()]
    counts = [sum(one == pytest.approx(value, abs=1e-5) for one in drawn) for value in allowed]
    assert sum(counts) == 200
    expected = chances.values[: len(nucleus)] / chances.values[: len(nucleus)].sum()
    for count, share in zip(counts, expected.tolist(), strict=True):
        assert abs(count / 200 - share) < 4 * (share * (1 - share) / 200) ** 0.5 + 1e-3
    greedy = [Asked("The cat", 8, temperature=0.0, top_p=0.1, seed=5), Asked("The cat", 8, temperature=1.0, top_p=1e-9)]
    line = run(model, [(0, one) for one in greedy])
    assert {whole(pieces).text for pieces in line.told.values()} == set(model.generate(["The cat"], 8))


@pytest.mark.parametrize("name", FAMILIES)
def test_who_goes_leaves_the_others_as_they_are(request: pytest.FixtureRequest, name: str) -> None:
    model = graft.models.load(str(request.getfixturevalue(name)))
    stays, goes = Asked("Once upon a time", 40), Asked("Review: a moving and beautiful film. Label:", 40)
    never = Asked("The cat", 40, gone=True)
    line = Line([(0, stays), (0, goes), (0, never)])
    for asked in line.told:
        check(model, asked)
    tell = line.emit

    def emit(asked: Asked, piece: Piece | Exception) -> None:
        tell(asked, piece)
        # The other's next token is written already.
        if asked is stays and line.told[goes] and not goes.gone:
            goes.gone = True
            heard.append(len(line.told[goes]))

    heard: list[int] = []
    before = model.usage.forward_passes
    writer_for(model, 3).write([], line.more, emit)
    assert [len(line.told[goes])] == heard
    assert line.told[never] == []
    written = sum(piece.tokens for piece in itertools.chain(*line.told.values()))
    assert model.usage.forward_passes - before <= written + 8
    del line.told[goes], line.told[never]
    check_equal(model, line)


def test_the_same_tokens_are_counted_as_when_written_alone(tiny_llama: Path) -> None:
    model = graft.models.load(str(tiny_llama))
    asked = [Asked(prompt, 12) for prompt in PROMPTS[:4]]
    counts = []
    for write in (lambda: run(model, enumerate(asked)), lambda: [alone(model, one) for one in asked]):
        before = dataclasses.replace(model.usage)
        write()
        counts.append((model.usage.tokens - before.tokens, model.usage.forward_passes - before.forward_passes))
    assert counts[0] == counts[1]
    assert counts[0][0] > 4 * 12


SHARED = "Once upon a time there was a little girl named Lily. She loved to play outside with her big red ball. "


@pytest.mark.parametrize("apart", [0, 3])
@pytest.mark.parametrize("name", ["tiny_llama", "tiny_gpt2"])
def test_a_shared_beginning_is_read_once(request: pytest.FixtureRequest, name: str, apart: int) -> None:
    model = graft.models.load(str(request.getfixturevalue(name)))
    asked = [Asked(SHARED + end, 6) for end in ("One day", "Her mom", "It", "Then they all", "A cat")]
    before = model.usage.tokens
    model.prefixes = PrefixCaches()  # other tests have asked the same
    line = run(model, [(place * apart, one) for place, one in enumerate(asked)])
    shared = len(model.tokenizer(SHARED.rstrip())["input_ids"])
    everything = sum(len(one.ids or []) for one in asked) + 6 * len(asked)
    assert model.usage.tokens - before < everything - (len(asked) - 1) * (shared - 1)
    check_equal(model, line)


HEADS = {"num_hidden_layers": 2, "num_attention_heads": 4}
LLAMA = {"hidden_size": 32, "intermediate_size": 64, "num_key_value_heads": 2, "initializer_range": 0.2, **HEADS}
BART = {"d_model": 32, "decoder_layers": 2, "decoder_attention_heads": 4, "decoder_ffn_dim": 64, "init_std": 0.2}
EXPERTS = {"head_dim": 8, "num_local_experts": 2, "num_experts_per_tok": 1, "block_size": 16}
MIXED = {"layer_types": ["linear_attention", "full_attention"]}
KINDS: dict[str, dict[str, Any]] = {
    "Bart": {**BART, "is_decoder": True, "is_encoder_decoder": False, "max_position_embeddings": 256},
    "Rwkv": {"hidden_size": 32, "attention_hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 64},
    "MiniMax": {**LLAMA, **EXPERTS, **MIXED},
    "Mamba": {"hidden_size": 32, "state_size": 8, "num_hidden_layers": 2, "initializer_range": 0.2},
    "OpenAIGPT": {"head": "LMHeadModel", "n_embd": 32, "n_layer": 2, "n_head": 4, "initializer_range": 0.2},
    "Bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4, "initializer_range": 0.2},
    "GPTNeo": {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "window_size": 8, "initializer_range": 0.2}
    | {"attention_types": [[["global", "local"], 1]], "max_position_embeddings": 256},
    "Mpt": {"d_model": 32, "n_layers": 2, "n_heads": 4, "expansion_ratio": 2, "initializer_range": 0.2},
}
"""Causal networks that keep track of positions and of what was read in ways of their own."""


@pytest.mark.parametrize(
    ("kind", "mixes", "way"),
    [
        ("Bart", False, Together),  # counts columns
        ("Rwkv", False, Together),  # reads padding
        ("MiniMax", False, Together),  # reads padding when it goes on from its cache
        ("Mamba", True, Together),
        ("OpenAIGPT", True, Together),  # has no cache
        ("Bloom", True, Continuous),
        ("GPTNeo", True, Together),  # has windows of columns
        ("Mpt", True, Together),  # counts distances by the column: a shared beginning stands before padding
    ],
)
def test_neighbours_of_another_length_change_nothing(tiny_causal: Any, kind: str, mixes: bool, way: type) -> None:
    model = graft.models.load(str(tiny_causal(kind, **KINDS[kind])))
    before = model.usage.tokens
    assert type(writer_for(model, 4)) is way
    assert (model.mixes_lengths, model.usage.tokens) == (mixes, before)
    check_equal(model, run(model, [(0, asked) for asked in variants()]))
    prompts = [*PROMPTS, *(SHARED + end for end in ("One day", "Her mom", "It", "Then they all", "A cat"))]
    assert model.generate(prompts, 8) == [model.generate([one], 8)[0] for one in prompts]
    labels = [" cat", " a label of several words"]
    np.testing.assert_allclose(
        model.score(prompts, labels), np.concatenate([model.score([one], labels) for one in prompts]), atol=1e-5
    )


def test_who_does_not_fit_waits_for_room(tiny_llama: Path) -> None:
    model = graft.models.load(str(tiny_llama))
    asked = [Asked(prompt, new) for prompt, new in zip(PROMPTS, (30, 5, 60, 9, 20, 8), strict=True)]
    with watched(model, "attention_mask") as masks:
        line = run(model, [(0, one) for one in asked], writer=Continuous(model, 4, max_positions=150))
    assert 100 < max(rows * columns for rows, columns in masks) <= 150
    check_equal(model, line)


def test_a_batch_is_as_wide_as_those_who_are_left(tiny_llama: Path) -> None:
    model = graft.models.load(str(tiny_llama))
    long, short = Asked(SHARED, 2), Asked("The cat", 20)
    with watched(model, "attention_mask") as masks:
        line = run(model, [(0, short), (3, long)])
    check_equal(model, line)
    alone_tokens = len(short.ids or []) + 20
    assert max(columns for _, columns in masks) >= len(long.ids or [])
    assert all(columns <= alone_tokens for rows, columns in masks[12:20] if rows == 1)
    assert [rows for rows, _ in masks[14:19]] == [1] * 5


def test_a_long_prompt_is_read_in_parts_while_others_are_written(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(continuous, "PROMPT_TOKENS_PER_STEP", 40)
    model = graft.models.load(str(tiny_llama))
    long, short = Asked(SHARED * 3 + "The end", 20), Asked("The cat", 30)
    model.prefixes = PrefixCaches()
    with watched(model, "input_ids") as shapes:
        line = run(model, [(0, short), (2, long)])
    check_equal(model, line)
    widths = [columns for _, columns in shapes]
    parts = [place for place, width in enumerate(widths) if width > 20]
    assert len(parts) >= 4
    assert max(widths) <= 40
    assert all(1 in widths[one:other] for one, other in itertools.pairwise(parts))
    monkeypatch.setattr(PrefixCaches, "keep", lambda *_: None)
    model.prefixes = PrefixCaches()
    check_equal(model, run(model, [(0, dataclasses.replace(long))]))


@contextlib.contextmanager
def watched(model: Any, name: str) -> Iterator[list[tuple[int, int]]]:
    """Shapes of this input of every forward pass."""
    shapes: list[tuple[int, int]] = []

    def see(_network: Any, _args: Any, kwargs: dict[str, Any]) -> None:
        shapes.append(tuple(kwargs[name].shape))

    hook = model.body.register_forward_pre_hook(see, with_kwargs=True)
    yield shapes
    hook.remove()


def test_a_bad_question_is_refused_before_it_meets_others(tiny_llama: Path, tiny_t5: Path) -> None:
    model = graft.models.load(str(tiny_llama))
    with pytest.raises(ModelError, match=r"prompt with max_new_tokens has 30\d tokens, its context holds 256"):
        check(model, Asked("cat", 300))
    with pytest.raises(ModelError, match="max_new_tokens: got 0"):
        check(graft.models.load(str(tiny_t5)), Asked("cat", 0))
    for bad in ({"top_p": 0.0}, {"temperature": -1.0}):
        with pytest.raises(ModelError, match="temperature, top_p"):
            check(model, dataclasses.replace(Asked("cat", 3), **bad))


@pytest.mark.parametrize("name", ["tiny_llama", "tiny_gpt2"])
def test_texts_that_fill_the_context_beside_others(request: pytest.FixtureRequest, name: str) -> None:
    """Rows that are over go on being computed in a static batch: they must not run out of the context."""
    model = graft.models.load(str(request.getfixturevalue(name)))
    long = SHARED * 3
    room = 256 - len(model.rows_to_write([long], 1)[0])
    asked = [Asked(long, room), Asked("The cat", 200), Asked("It", 3)]
    check_equal(model, run(model, [(0, one) for one in asked]))
    check_equal(model, run(model, [(0, dataclasses.replace(one)) for one in asked], writer=Together(model, 4)))


def test_a_decoder_that_starts_with_two_tokens_has_room_for_one_less(tiny_bart: Path) -> None:
    model = graft.models.load(str(tiny_bart))
    assert (len(model.decoder_start), model.context_tokens) == (2, 64)
    with pytest.raises(ModelError, match=r"longest answer has 65 tokens, its context holds 64"):
        check(model, Asked("The cat", 64))
    assert model.excess(["The cat"], max_new_tokens=64).tolist() == [1]
    # An end token would hide that the last position is there.
    asked = [Asked("The cat", 63, temperature=2.0, seed=seed) for seed in range(8)] + [Asked("Once upon a time", 62)]
    line = run(model, [(0, one) for one in asked], len(asked))
    check_equal(model, line)
    assert any(whole(pieces).finish == "length" for pieces in line.told.values())


def test_a_real_model_and_a_tokenizer_that_drops_spaces(stories: Path) -> None:
    model = graft.models.load(str(stories))
    prompts = ["Once upon a time", "The little dog was very", "Tom and Lily 东京 é", " ", "One day, a big"]
    asked = [Asked(one, 60) for one in prompts] + [Asked(one, 50, temperature=1.2, seed=7) for one in prompts]
    asked.append(Asked(prompts[0], 60, stop=(".", "Lily")))
    line = run(model, [(place * 2, one) for place, one in enumerate(asked)])
    check_equal(model, line)
    assert whole(line.told[asked[-1]]).text == ", there was a little girl named "
    first = [piece.text for piece in line.told[asked[0]]]
    assert len(first) > 40
    assert "".join(first).startswith(", there was a little girl named Lily. She loved to play")


def test_a_stop_string_of_bytes_ends_a_text_at_its_token(stories: Path) -> None:
    """Llama's tokenizers write a line's end as a byte, and only the next token says what bytes spell together."""
    model = graft.models.load(str(stories))
    plain, drawn = (Asked("Once upon a time", 150, stop=("\n",), temperature=one, seed=1) for one in (0.0, 1.0))
    line = run(model, [(0, plain), (0, drawn)])
    check_equal(model, line)
    assert {whole(pieces).finish for pieces in line.told.values()} == {"stop"}
    prompt = plain.ids or []
    for stop, new in dictated(model.tokenizer):
        asked = Asked(plain.prompt, len(new), stop=stop)
        with dictating(model, len(prompt), new):
            line = run(model, [(0, asked)])
            check_equal(model, line)


def dictated(tokenizer: Any) -> Iterator[tuple[tuple[str, ...], list[int]]]:
    """Stop strings, and tokens many of which are bytes that spell them, or would but for what comes before or after."""
    line, *octets = tokenizer.convert_tokens_to_ids(["<0x0A>", "<0xE4>", "<0xBD>", "<0xA0>"])
    a, b = tokenizer.convert_tokens_to_ids(["a", "b"])
    lily = tokenizer(" Lily", add_special_tokens=False)["input_ids"]
    yield ("\n",), [line] * 20
    yield ("\n",), [line, octets[0], *lily]
    yield ("\n",), [octets[0], line, *lily]
    yield ("a\n",), [a, line, octets[0], b]
    # A run of bytes is read as a whole, however long it is.
    yield ("\n",), [*octets * 5, line, *lily]
    yield ("\n",), [*octets * 5, line, octets[0], *lily]
    yield ("\n",), [octets[0], *octets * 5, line, *lily]
    draw = random.Random(5)
    for _ in range(24):
        new: list[int] = []
        for _ in range(4):
            new += draw.choice([[line], [line, *octets], [*octets, line], octets[:2], [line, octets[0]], [*octets] * 2])
            new += draw.choice([[a], [b], lily])
        yield draw.choice([("\n",), ("你",), ("\n\n", "b你\n"), ("a\n", "你a"), ("b\n你",)]), new


@contextlib.contextmanager
def dictating(model: Any, prompt_tokens: int, new: Sequence[int]) -> Iterator[None]:
    """The model writes these tokens after a prompt that it reads alone."""

    def prefer(_network: Any, _args: Any, output: Any) -> None:
        output.logits[:, -1, new[output.past_key_values.get_seq_length() - prompt_tokens]] += 1000.0

    hook = model.network.register_forward_hook(prefer)
    yield
    hook.remove()


class Elsewhere(Model):
    """A model behind a server."""

    kind, remote = "endpoint", True

    def write(self, prompts: Sequence[str], *args: Any, **kwargs: Any) -> list[Written]:
        if prompts[0] == "bad":
            raise ModelError("refused")
        return [Written(f"after {one}", True) for one in prompts]


def test_a_model_elsewhere_gives_one_piece_each() -> None:
    from graft.spec import ModelSource

    model = Elsewhere(ModelSource(source="endpoint:http://host/v1#m"), "")
    told: dict[str, Any] = {}
    asked = [Asked(one, 5) for one in ("a", "bad", "b")]
    Remote(model, 2).write(asked, lambda _room: [], lambda one, piece: told.update({one.prompt: piece}))
    assert told["a"] == Piece("after a", 0, finish="stop")
    assert told["b"] == Piece("after b", 0, finish="stop")
    assert str(told["bad"]) == "refused"
    with pytest.raises(ModelError, match="gives no probabilities"):
        check(model, Asked("a", 5, logprobs=1))
    with pytest.raises(ModelError, match="top_p"):
        check(model, Asked("a", 5, temperature=1.0, top_p=0.5))


def test_who_has_gone_from_a_server_that_does_not_answer_keeps_no_place() -> None:
    from graft.spec import ModelSource

    answered, waited, both = threading.Event(), list[bool](), threading.Barrier(2)

    class Hanging(Elsewhere):
        def write(self, prompts: Sequence[str], *args: Any, **kwargs: Any) -> list[Written]:
            if prompts[0] == "leaves":
                both.wait()
                for asked in leave:
                    asked.gone = True
                waited.append(answered.wait(20))
            return super().write(prompts, *args, **kwargs)

    def emit(asked: Asked, _piece: Piece | Exception) -> None:
        told.append(asked.prompt)
        answered.set()

    leave, new, told = [Asked("leaves", 5) for _ in range(2)], [Asked("new", 5)], list[str]()
    model = Hanging(ModelSource(source="endpoint:http://host/v1#m"), "")
    Remote(model, 2).write(leave, lambda _room: [new.pop()] if new else [], emit)
    assert told == ["new"]
    assert waited == [True, True]
