"""From a folder to a frozen model in memory, with transformers."""

import contextlib
import copy
import importlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

from graft.errors import ModelError
from graft.models import folders
from graft.models.language import CausalModel
from graft.models.local import LocalModel, Weights
from graft.models.model import Kind
from graft.models.pooling import read_readout
from graft.models.seq2seq import Seq2SeqModel
from graft.models.sources import refuse_if_changed
from graft.models.writing import make_greedy
from graft.spec import ModelSource

CLASSES: dict[Kind, type[LocalModel]] = {"encoder": LocalModel, "causal": CausalModel, "seq2seq": Seq2SeqModel}

_alone = threading.Lock()
"""Transformers changes settings of the whole process while it loads."""


def resolve_device(device: str) -> str:
    """`cpu` or `cuda:N` for what the spec calls a device.

    Raises:
        ModelError: a GPU is asked for and there is none.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        return device
    index = int(device.partition(":")[2] or 0)
    if index >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise ModelError(f"scaling.device: got {device!r}, but this machine has {count} usable GPUs; use auto or cpu")
    return f"cuda:{index}"


def open_folder(source: ModelSource, folder: Path, device: str, mark: str) -> LocalModel:
    """A handle whose weights are loaded at its first use.

    Args:
        source: how it is to be read.
        folder: its folder, checked.
        device: `cpu` or `cuda:N`.
        mark: its fingerprint.

    Raises:
        ModelError: transformers cannot read its configuration or tokenizer, or it cannot be used as asked.
    """
    inner = folders.transformer_folder(folder)
    options = {"trust_remote_code": source.trust_remote_code, "local_files_only": True}
    with _as_model_errors(source), quiet():
        config = transformers.AutoConfig.from_pretrained(inner, **options)
        tokenizer = transformers.AutoTokenizer.from_pretrained(inner, **options)
        kind = kind_of(config)
        context_tokens = _context_tokens(source, folder, config, tokenizer, kind)
    readout = read_readout(source, folder, int(config.get_text_config().hidden_size))
    dtype = source.dtype or ("float32" if device == "cpu" else "bfloat16")
    placement = {"dtype": getattr(torch, dtype), **_placement(source, device)}

    def open_network() -> nn.Module:
        refuse_if_changed(source, folder, mark)
        network = _network(source, inner, config, kind, {**placement, **options})
        if kind != "encoder":
            make_greedy(network, tokenizer)
        return network if "device_map" in placement else network.to(device)

    weights = Weights(open_network, folders.parameters(folder), torch.device(device), f"torch.{dtype}")
    return CLASSES[kind](source, mark, config, tokenizer, readout, context_tokens, weights)


def kind_of(config: Any) -> Kind:
    """What a model is, from its configuration: a head that its weights lack cannot be used."""
    names = config.architectures or []
    causal = set(transformers.models.auto.modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())
    if any(name.endswith("EncoderModel") for name in names):
        return "encoder"
    if config.is_encoder_decoder:
        return "seq2seq"
    return "causal" if any(name in causal or name.endswith("ForCausalLM") for name in names) else "encoder"


def _network(source: ModelSource, folder: Path, config: Any, kind: Kind, options: dict[str, Any]) -> nn.Module:
    """The frozen network.

    Raises:
        ModelError: transformers cannot load it, or weights are missing.
    """
    with _as_model_errors(source), quiet():
        network, info = _class(config, kind).from_pretrained(
            folder, config=config, use_safetensors=True, output_loading_info=True, **options
        )
    # A pooler that the checkpoint lacks is never read; any other missing weight would be random.
    missing = sorted(name for name in info["missing_keys"] if "pooler" not in name)
    if missing:
        raise ModelError(
            f"{source.source}: {len(missing)} weights are not in {folder} ({missing[0]}, ...); copy it again"
        )
    return network.eval().requires_grad_(False)


def open_network(kind: Kind, folder: Path, trust_remote_code: bool = False) -> nn.Module:
    """A network that graft has tuned and saved, float32 on the CPU.

    Raises:
        ModelError: transformers cannot load it.
    """
    source = ModelSource(source=str(folder))
    options = {"local_files_only": True, "trust_remote_code": trust_remote_code}
    config = transformers.AutoConfig.from_pretrained(folder, **options)
    return _network(source, folder, config, kind, {"dtype": torch.float32, **options})


def _class(config: Any, kind: Kind) -> Any:
    names = [name for name in config.architectures or [] if name.endswith("EncoderModel")]
    if names and hasattr(transformers, names[0]):
        return getattr(transformers, names[0])
    auto = {"encoder": "AutoModel", "causal": "AutoModelForCausalLM", "seq2seq": "AutoModelForSeq2SeqLM"}
    return getattr(transformers, auto[kind])


def _placement(source: ModelSource, device: str) -> dict[str, Any]:
    """Where the weights go, and in which form, as `from_pretrained` wants to be told."""
    if source.quantization is None:
        return {"device_map": source.device_map} if source.device_map else {}
    where = f"models.ROLE.quantization: got {source.quantization} for {source.source}"
    if device == "cpu":
        raise ModelError(f"{where}, which needs a GPU; leave it null on a CPU")
    try:
        importlib.import_module("bitsandbytes")
    except ImportError:
        raise ModelError(f"{where}, which needs bitsandbytes; pip install bitsandbytes, or leave it null") from None
    bits = {"8bit": {"load_in_8bit": True}, "4bit": {"load_in_4bit": True, "bnb_4bit_compute_dtype": torch.bfloat16}}
    config = transformers.BitsAndBytesConfig(**bits[source.quantization])
    return {"quantization_config": config, "device_map": source.device_map or {"": device}}


def _context_tokens(source: ModelSource, folder: Path, config: Any, tokenizer: Any, kind: Kind) -> int | None:
    """What the folder says for sentences, else the smaller of what the positions and the tokenizer allow."""
    rows = _position_rows(source, config, kind)
    settings = folders.transformer_folder(folder) / "sentence_bert_config.json"
    stated = folders.read_json(settings).get("max_seq_length") if settings.is_file() else None
    if not stated:
        rows = rows or getattr(config.get_text_config(), "max_position_embeddings", None)
    limits = (stated or tokenizer.model_max_length, rows)
    # Tokenizers write 10^30 for a limit that nobody set.
    return min((int(limit) for limit in limits if limit and 0 < limit < 10**9), default=None)


def _position_rows(source: ModelSource, config: Any, kind: Kind) -> int | None:
    """Tokens that a position table with a padding row has room for, as the first token comes after that row.

    RoBERTa and its relatives have one, and some do not take the row from their configuration: the architecture is
    built without weights and asked. None for other models; rotary positions have no table at all.
    """
    text = config.get_text_config()
    if getattr(text, "rope_parameters", None) or not getattr(text, "max_position_embeddings", None):
        return None
    wanted, config = _class(config, kind), copy.deepcopy(config)
    with torch.device("meta"):
        if hasattr(wanted, "from_config"):
            network = wanted.from_config(config, trust_remote_code=source.trust_remote_code)
        else:
            network = wanted(config)
    tables = (part for name, part in network.named_modules() if "position" in name and isinstance(part, nn.Embedding))
    return min((t.num_embeddings - t.padding_idx - 1 for t in tables if t.padding_idx is not None), default=None)


@contextlib.contextmanager
def _as_model_errors(source: ModelSource) -> Iterator[None]:
    """The many ways in which a folder is not a model, as one line."""
    try:
        yield
    except (OSError, ValueError, RuntimeError, ImportError, KeyError, AttributeError, TypeError) as error:
        if "trust_remote_code" in str(error):
            cure = "if you trust it, set models.ROLE.trust_remote_code: true"
            raise ModelError(f"{source.source}: needs Python code of its own; {cure}") from error
        reason = " ".join(str(error).split())[:300]
        raise ModelError(f"{source.source}: transformers cannot load it: {type(error).__name__}: {reason}") from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No progress bar and no report of unused heads: what matters is checked and raised. One thread at a time."""
    log = transformers.utils.logging
    with _alone:
        level, bar = log.get_verbosity(), log.is_progress_bar_enabled()
        log.set_verbosity_error()
        log.disable_progress_bar()
        try:
            yield
        finally:
            log.set_verbosity(level)
            if bar:
                log.enable_progress_bar()
