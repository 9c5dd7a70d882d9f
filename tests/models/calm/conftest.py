"""Tiny networks of many families, and a second tokenizer."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parent)]

from conftest import SENTENCES, tiny_tokenizer  # noqa: E402


@pytest.fixture(scope="session")
def tiny() -> Any:
    """Byte-level BPE."""
    return tiny_tokenizer()


@pytest.fixture(scope="session")
def other_tokenizer() -> Any:
    """BPE that writes spaces as signs and unknown characters as bytes, as SentencePiece does; a begin token."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    special = ["<unk>", "<s>", "</s>"]
    octets = [f"<0x{value:02X}>" for value in range(256)]
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    trainer = trainers.BpeTrainer(vocab_size=220, special_tokens=special, show_progress=False)
    learner.train_from_iterator(SENTENCES, trainer)
    content = json.loads(learner.to_str())["model"]
    words = [word for word, _ in sorted(content["vocab"].items(), key=lambda item: item[1])]
    vocabulary = {word: place for place, word in enumerate([*special, *octets, *words[len(special) :]])}
    merges = [tuple(pair) for pair in content["merges"]]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Sequence(
        [decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="first"), decoders.Fuse()]
    )
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in special])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
