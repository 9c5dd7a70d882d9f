"""Tiny random networks of many families of transformers, whose outputs differ clearly from token to token."""

from typing import Any

VOCABULARY = 60


def config_of(family: str) -> Any:
    """The configuration of a network of four blocks."""
    import transformers as t

    short = {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 4, "n_head": 4}
    sizes = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4}
    dense = {**sizes, "intermediate_size": 64, "max_position_embeddings": 64}
    grouped = {**dense, "num_key_value_heads": 2}
    attention = [[["global", "local"], 2]]
    configs = {
        "llama": lambda: t.LlamaConfig(**grouped),
        "mistral": lambda: t.MistralConfig(**grouped, sliding_window=6),
        "qwen2": lambda: t.Qwen2Config(**grouped),
        "qwen3": lambda: t.Qwen3Config(**grouped, head_dim=8),
        "gemma": lambda: t.GemmaConfig(**grouped, head_dim=8),
        "gemma2": lambda: t.Gemma2Config(**grouped, head_dim=8),
        "gemma3": lambda: t.Gemma3TextConfig(**grouped, head_dim=8),
        "gpt_neox": lambda: t.GPTNeoXConfig(**dense),
        "gpt2": lambda: t.GPT2Config(**short, n_positions=64),
        "gptj": lambda: t.GPTJConfig(**short, n_positions=64, rotary_dim=4),
        "gpt_neo": lambda: t.GPTNeoConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            num_layers=4,
            num_heads=4,
            attention_types=attention,
            max_position_embeddings=64,
            intermediate_size=64,
        ),
        "opt": lambda: t.OPTConfig(**sizes, ffn_dim=64, word_embed_proj_dim=32, max_position_embeddings=64),
        "bloom": lambda: t.BloomConfig(vocab_size=VOCABULARY, hidden_size=32, n_layer=4, n_head=4),
        "phi": lambda: t.PhiConfig(**dense),
        "phi3": lambda: t.Phi3Config(**grouped, pad_token_id=0),
        "falcon": lambda: t.FalconConfig(**sizes),
        "mpt": lambda: t.MptConfig(vocab_size=VOCABULARY, d_model=32, n_layers=4, n_heads=4, max_seq_len=64),
        "olmo2": lambda: t.Olmo2Config(**grouped),
        "mixtral": lambda: t.MixtralConfig(**grouped, num_local_experts=2),
        "mamba": lambda: t.MambaConfig(vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=4, state_size=4),
        "bert": lambda: t.BertConfig(**dense),
        "t5": lambda: t.T5Config(
            vocab_size=VOCABULARY, d_model=32, d_kv=8, d_ff=64, num_layers=4, num_heads=4, decoder_start_token_id=0
        ),
    }
    return configs[family]()


def network(family: str, seed: int = 0, vocabulary: int | None = None, **changes: Any) -> Any:
    """A network in evaluation mode, never ending by itself."""
    import torch
    import transformers as t

    config = config_of(family)
    config.vocab_size = vocabulary or config.vocab_size
    for name, value in changes.items():
        setattr(config, name, value)
    kind = {"bert": t.AutoModel, "t5": t.AutoModelForSeq2SeqLM}.get(family, t.AutoModelForCausalLM)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        found = kind.from_config(config).eval()
        for weight in found.parameters():
            if weight.ndim > 1:
                weight.data *= 4  # the usual 0.02 leaves all tokens alike
    if hasattr(found, "generation_config") and found.generation_config is not None:
        found.generation_config.pad_token_id, found.generation_config.eos_token_id = 0, None
        found.generation_config.bos_token_id = 1
    return found


def lively(composed: Any, seed: int = 0) -> Any:
    """Bridges that change what the anchor says, as trained ones do."""
    import torch

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for name, weight in composed.bridges.named_parameters():
            if weight.ndim > 1 and "distance" not in name:
                torch.nn.init.normal_(weight, std=0.5 if "query" in name else 0.3)
    return composed
