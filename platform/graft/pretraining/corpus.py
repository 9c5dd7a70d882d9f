"""Documents as tokens: read, divided, and a byte-level BPE learned from those that are learned.

path ─► documents ─► learned ─► tokenizer ─► one long row of tokens, a start token before each document
                └──► held out, by what they say: the same whatever their order
"""

import dataclasses
import functools
import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graft import hashing
from graft.errors import DataError
from graft.pretraining.recipe import Text
from graft.tasks import columns
from graft.tasks.reading import column_of, read_tables

START, END, PAD, MASK = "<s>", "</s>", "<pad>", "<mask>"
SPECIAL = (PAD, START, END, MASK)
"""Tokens that no text becomes; the first is number 0."""
PART_CHARACTERS = 4000
"""Of a part of a single text."""

Tokens = NDArray[np.int32]


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Documents, divided."""

    learned: tuple[str, ...]
    held_out: tuple[str, ...]

    @functools.cached_property
    def fingerprint(self) -> str:
        """Identity by content, in the order in which the documents are learned."""
        return hashing.digest(list(self.learned), list(self.held_out))


def read(data: Text) -> Corpus:
    """The documents of a recipe, blank ones left out and equal ones kept once.

    Raises:
        DataError: there are none, or not enough to hold one out.
    """
    documents = list(dict.fromkeys(text for text in _texts(data) if text.strip()))
    if len(documents) == 1:
        documents = _parts(documents[0])
    if len(documents) < 2:
        raise DataError(
            f"data.path: {data.path} has {len(documents)} texts: some are learned and some held out: give 2"
        )
    return Corpus(*divided(tuple(documents), data.held_out))


def _parts(text: str) -> list[str]:
    """A single long text as several, cut between paragraphs."""
    found: list[str] = []
    for paragraph in re.split(r"(?<=\n\n)", text):
        if found and len(found[-1]) + len(paragraph) <= PART_CHARACTERS:
            found[-1] += paragraph
        elif paragraph.strip():
            found.append(paragraph)
    return list(dict.fromkeys(found))


def divided(texts: tuple[str, ...], share: float) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Texts, and a share of them (one at least) that their hashes choose: the same whatever their order."""
    order = sorted(range(len(texts)), key=lambda at: hashlib.blake2b(texts[at].encode()).digest())
    kept = set(order[: min(len(texts) - 1, max(1, round(len(texts) * share)))])
    return tuple(text for at, text in enumerate(texts) if at not in kept), tuple(texts[at] for at in sorted(kept))


def _texts(data: Text) -> Iterator[str]:
    """The documents as they lie, with the lines of a paragraph joined where that is asked for."""
    for text in _documents(data):
        yield re.sub(r"(?<=\S)[ \t]*\r?\n[ \t]*(?=\S)", " ", text) if data.join_lines else text


def _documents(data: Text) -> Iterator[str]:
    path = Path(data.path).expanduser()
    files = sorted(path.rglob("*.txt")) if path.is_dir() else [path] if path.suffix.lower() == ".txt" else []
    if files:
        for file in files:
            yield _read(file)
        return
    for name, table in read_tables(data.path).items():
        where = f"data: {data.path}{f' ({name})' if name else ''}"
        for value in columns.text(column_of(table, data.column, where), f"{where} column {data.column}").to_pylist():
            yield value or ""


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise DataError(f"data.path: {file}: no such file (looked in {Path.cwd()})") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"data.path: {file}: cannot be read as UTF-8 text: {error}") from error


def learn_tokenizer(texts: tuple[str, ...], vocabulary: int, context: int) -> Any:
    """A byte-level BPE as transformers' fast tokenizer: it puts a start token before a text, and splits digits.

    Raises:
        DataError: the texts do not hold enough different pairs for so large a vocabulary.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    # Digits one by one: numbers are then read by their places, not as thousands of words.
    digits = pre_tokenizers.Split(Regex(r"\d"), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        min_frequency=2,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    if (got := tokenizer.get_vocab_size()) < vocabulary:
        raise DataError(
            f"data.vocabulary: got {vocabulary}; the corpus supports {got} tokens: lower it, or give more text"
        )
    return finished(tokenizer, context)


def finished(tokenizer: Any, context: int) -> Any:
    """A transformers tokenizer around one of the tokenizers library: it puts the start token first."""
    from tokenizers import processors
    from transformers import PreTrainedTokenizerFast

    start = tokenizer.token_to_id(START)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{START} $A", pair=f"{START} $A {START} $B", special_tokens=[(START, start)]
    )
    names = {"pad_token": PAD, "bos_token": START, "eos_token": END, "mask_token": MASK}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=context, clean_up_tokenization_spaces=False, **names
    )


def encode(tokenizer: Any, texts: tuple[str, ...]) -> Tokens:
    """All documents in one row, int32 [N]: a start token before each, an end token after it."""
    ends = [tokenizer.eos_token_id]
    # What a text says is never a special token, even where it is written like one.
    found = [ids + ends for ids in tokenizer(list(texts), verbose=False, split_special_tokens=True)["input_ids"]]
    return np.concatenate([np.asarray(ids, np.int32) for ids in found])
