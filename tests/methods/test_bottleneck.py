"""Bottleneck adapters over the families of transformers, and against their equations spelled out."""

import copy
import gc
import random
import threading
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from graft.errors import ModelError
from graft.hashing import digest
from graft.methods.bottleneck import Adapter, Kind, insert

WIDTH, BOTTLENECK, LAYERS, VOCABULARY = 16, 3, 2, 40
KINDS = ("serial", "parallel")

STANDARD = {
    "hidden_size": WIDTH,
    "intermediate_size": 24,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
}
NO_DROPOUT = {"hidden_dropout": 0.0, "attention_dropout": 0.0}
OPT = {"hidden_size": WIDTH, "word_embed_proj_dim": WIDTH, "ffn_dim": 24, "num_hidden_layers": LAYERS, "init_std": 0.2}
BART = {"d_model": WIDTH, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "init_std": 0.2, "max_position_embeddings": 64}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "Llama": ("LlamaForCausalLM", STANDARD),
    "GPT2": (
        "GPT2LMHeadModel",
        {"n_embd": WIDTH, "n_layer": LAYERS, "n_head": 2, "n_positions": 64, "initializer_range": 0.2}
        | {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
    ),
    "T5": (
        "T5ForConditionalGeneration",
        {"d_model": WIDTH, "d_kv": 8, "d_ff": 24, "num_layers": LAYERS, "num_heads": 2, "dropout_rate": 0.0}
        | {"decoder_start_token_id": 0},
    ),
    "OPT": ("OPTForCausalLM", OPT | {"num_attention_heads": 2, "max_position_embeddings": 64, "dropout": 0.0}),
    "Bart": (
        "BartForConditionalGeneration",
        BART
        | {"encoder_layers": LAYERS, "decoder_layers": LAYERS, "dropout": 0.0, "forced_eos_token_id": None}
        | {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "decoder_start_token_id": 0},
    ),
    "GPTNeoX": ("GPTNeoXForCausalLM", STANDARD | NO_DROPOUT),
    "GPTNeo": (
        "GPTNeoForCausalLM",
        {"hidden_size": WIDTH, "num_layers": LAYERS, "attention_types": [[["global", "local"], 1]], "num_heads": 2}
        | {"max_position_embeddings": 64, "initializer_range": 0.2},
    ),
    "GPTJ": (
        "GPTJForCausalLM",
        {"n_embd": WIDTH, "n_layer": LAYERS, "n_head": 2, "rotary_dim": 4, "n_positions": 64, "initializer_range": 0.2},
    ),
    "Qwen2": ("Qwen2ForCausalLM", STANDARD),
    "Mistral": ("MistralForCausalLM", STANDARD | {"sliding_window": 4}),
    "Phi": ("PhiForCausalLM", STANDARD | {"num_key_value_heads": 2}),
    "Bloom": ("BloomForCausalLM", {"hidden_size": WIDTH, "n_layer": LAYERS, "n_head": 2, "initializer_range": 0.2}),
    "Falcon": ("FalconForCausalLM", STANDARD),
    "Mpt": ("MptForCausalLM", {"d_model": WIDTH, "n_layers": LAYERS, "n_heads": 2, "initializer_range": 0.2}),
    "Gemma2": ("Gemma2ForCausalLM", STANDARD | {"head_dim": 8, "sliding_window": 4}),
    "Mixtral": ("MixtralForCausalLM", STANDARD | EXPERTS),
    "GptOss": ("GptOssForCausalLM", STANDARD | EXPERTS | {"head_dim": 8, "sliding_window": 4}),
    "Qwen3_5": (
        "Qwen3_5ForCausalLM",
        STANDARD
        | {"head_dim": 8, "layer_types": ["linear_attention", "full_attention"], "linear_num_value_heads": 2}
        | {"linear_num_key_heads": 1, "linear_key_head_dim": 8, "linear_value_head_dim": 8},
    ),
    "Bert": (
        "BertForMaskedLM",
        {key: value for key, value in STANDARD.items() if key != "num_key_value_heads"}
        | {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
    ),
}
ENCODER_DECODERS = ("T5", "Bart")
WRITERS = [
    pytest.param(family, marks=() if family in ("Llama", "GPT2", "T5", "OPT") else pytest.mark.slow)
    for family in FAMILIES
    if family != "Bert"
]
"""Families that generate; together they take more than five seconds."""
EVERY = pytest.mark.parametrize("family", FAMILIES)
BOTH = pytest.mark.parametrize("kind", KINDS)
THREE = pytest.mark.parametrize("family", ["Llama", "GPT2", "T5"])


def frozen(family: str) -> Any:
    """A tiny random network as the method gets it: in evaluation mode, nothing requires gradients."""
    name, settings = FAMILIES[family]
    network_class = getattr(transformers, name)
    tokens = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return network_class(network_class.config_class(**settings, **tokens)).eval().requires_grad_(False)


def trained(network: nn.Module, names: list[str]) -> None:
    """Give the adapters weights as after some training."""
    noise = torch.Generator().manual_seed(1)
    parameters = dict(network.named_parameters())
    with torch.no_grad():
        for name in names:
            parameters[name].add_(torch.randn(parameters[name].shape, generator=noise) * 0.3)


def inputs(family: str) -> dict[str, Tensor]:
    ids = torch.randint(3, VOCABULARY, (2, 9), generator=torch.Generator().manual_seed(2))
    return {"input_ids": ids} | ({"decoder_input_ids": ids.flip(1)} if family in ENCODER_DECODERS else {})


def logits(network: Any, family: str) -> Tensor:
    return network(**inputs(family)).logits


def loss(network: Any, family: str) -> Tensor:
    labels = torch.randint(3, VOCABULARY, (2 * 9,), generator=torch.Generator().manual_seed(3))
    return functional.cross_entropy(logits(network, family).flatten(0, 1).float(), labels)


def weights_hash(network: nn.Module, without: list[str]) -> str:
    return digest({name: p.detach().numpy() for name, p in network.named_parameters() if name not in without})


@EVERY
@BOTH
def test_an_untrained_adapter_changes_nothing(family: str, kind: Kind) -> None:
    network = frozen(family)
    before = logits(network, family)
    known = {name for name, _ in network.named_parameters()}
    names = insert(network, kind, BOTTLENECK, seed=0)
    assert torch.equal(logits(network, family), before)
    assert {name for name, _ in network.named_parameters()} - known == set(names)
    assert {name for name, p in network.named_parameters() if p.requires_grad} == set(names)
    trained(network, names)
    assert not torch.allclose(logits(network, family), before, atol=1e-3)


@EVERY
@BOTH
def test_their_number_is_the_papers(family: str, kind: Kind) -> None:
    network = frozen(family).requires_grad_(True)
    names = insert(network, kind, BOTTLENECK, seed=0)
    assert {name for name, p in network.named_parameters() if p.requires_grad} == set(names)
    blocks = LAYERS * (2 if family in ENCODER_DECODERS else 1)
    adapters = blocks * (2 if kind == "serial" else 1)
    numbers = sum(network.get_parameter(name).numel() for name in names)
    assert numbers == adapters * (2 * WIDTH * BOTTLENECK + WIDTH + BOTTLENECK)
    assert len(names) == 4 * adapters
    assert all(network.get_parameter(name).dtype == torch.float32 for name in names)
    assert not any("EncDecAttention" in name or "encoder_attn" in name for name in names)


@EVERY
@BOTH
def test_gradients_reach_every_adapter_and_nothing_else(family: str, kind: Kind) -> None:
    network = frozen(family)
    names = insert(network, kind, BOTTLENECK, seed=0)
    unchanged = weights_hash(network, without=names)
    optimizer = torch.optim.SGD([network.get_parameter(name) for name in names], lr=0.1)
    for step in range(2):
        optimizer.zero_grad()
        loss(network, family).backward()
        assert {name for name, p in network.named_parameters() if p.grad is not None} == set(names)
        moved = {name for name in names if network.get_parameter(name).grad.any()}
        # W_down can only move once W_up is not zero.
        assert moved == {name for name in names if ".up." in name or step}
        optimizer.step()
    assert weights_hash(network, without=names) == unchanged


@pytest.mark.parametrize("family", WRITERS)
@BOTH
def test_generation_with_a_cache_is_generation_without(family: str, kind: Kind) -> None:
    network = frozen(family)
    trained(network, insert(network, kind, BOTTLENECK, seed=0))
    prompt = inputs(family)["input_ids"]
    written, scores = [], []
    for use_cache in (True, False):
        answer = network.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=8,
            min_new_tokens=8,
            do_sample=False,
            use_cache=use_cache,
            output_logits=True,
            return_dict_in_generate=True,
        )
        written.append(answer.sequences)
        scores.append(torch.stack(answer.logits))
    assert torch.equal(*written)
    torch.testing.assert_close(*scores, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["Llama", "GPT2", "T5", "OPT", "GptOss"])
@BOTH
def test_a_deep_copy_stands_alone(family: str, kind: Kind) -> None:
    network = frozen(family)
    names = insert(network, kind, BOTTLENECK, seed=0)
    trained(network, names)
    expected = logits(network, family)
    other = copy.deepcopy(network)
    with torch.no_grad():
        for name in names:
            network.get_parameter(name).zero_()
    assert torch.equal(logits(other, family), expected)
    assert not torch.allclose(logits(network, family), expected, atol=1e-3)
    gone = [weakref.ref(module) for module in network.modules()]
    del network
    gc.collect()
    assert not [module for module in gone if module() is not None]
    assert torch.equal(logits(other, family), expected)


@pytest.mark.parametrize("family", ["Llama", "T5", "OPT"])
@BOTH
def test_what_shares_only_weights_with_the_adapted_network_is_not_adapted(family: str, kind: Kind) -> None:
    base = frozen(family)
    expected = logits(base, family)
    shared = {id(parameter): parameter for parameter in base.parameters()}
    network = copy.deepcopy(base, dict(shared))
    trained(network, insert(network, kind, BOTTLENECK, seed=0))
    assert {id(parameter) for parameter in network.parameters()} >= set(shared)
    assert torch.equal(logits(base, family), expected)
    assert not any(isinstance(module, Adapter) for module in base.modules())


@pytest.mark.parametrize("family", ["Llama", "GPT2", "T5", "OPT", "Bart"])
@BOTH
def test_gradient_checkpointing_gives_the_same_gradients(family: str, kind: Kind) -> None:
    network = frozen(family).train()
    network.config.use_cache = False
    names = insert(network, kind, BOTTLENECK, seed=0)
    trained(network, names)
    gradients = []
    for _ in range(2):
        network.zero_grad()
        loss(network, family).backward()
        gradients.append([network.get_parameter(name).grad.clone() for name in names])
        network.activation_checkpointing_enable()
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-7)
    assert not any(module._entered for module in network.modules() if isinstance(module, Adapter))


@BOTH
def test_the_seed_alone_decides_the_beginning(kind: Kind) -> None:
    def beginning(seed: int) -> list[Tensor]:
        network = frozen("Llama")
        return [network.get_parameter(name) for name in insert(network, kind, BOTTLENECK, seed=seed)]

    torch.manual_seed(5)
    states = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    first = beginning(0)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (np.random.get_state()[1].tolist(), random.getstate()) == states[1:]
    torch.manual_seed(6)
    assert all(map(torch.equal, first, beginning(0)))
    other = beginning(1)
    assert [torch.equal(*pair) for pair in zip(first, other, strict=True)] == [False, True, True, True] * (
        len(first) // 4
    )
    # No two adapters begin alike.
    assert len({digest(weight.detach().numpy()) for weight in first[::4]}) == len(first) // 4


def recorded(network: Any, *paths: str) -> dict[str, tuple[Tensor, Tensor]]:
    """What entered and left modules in one forward pass, as float64."""
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    def hook(path: str) -> Any:
        def keep(_module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            entered = args[0] if args else kwargs["hidden_states"]
            left = output[0] if isinstance(output, tuple) else output
            seen[path] = entered.double(), left.double()

        return keep

    handles = [network.get_submodule(path).register_forward_hook(hook(path), with_kwargs=True) for path in paths]
    with torch.no_grad():
        logits(network, "Llama")
    for handle in handles:
        handle.remove()
    return seen


def bottleneck(network: Any, host: str, states: Tensor, activation: Any) -> Tensor:
    """W_up f(W_down x + b_down) + b_up, as float64."""
    matrices = {
        name.removeprefix(f"{host}.adapter."): p.double()
        for name, p in network.named_parameters()
        if name.startswith(host)
    }
    inner = activation(states @ matrices["down.weight"].T + matrices["down.bias"])
    return inner @ matrices["up.weight"].T + matrices["up.bias"]


@BOTH
def test_a_block_computes_the_equation(kind: Kind) -> None:
    network = frozen("Llama")
    trained(network, insert(network, kind, BOTTLENECK, seed=0))
    for index in range(LAYERS):
        block, attention, mlp = (f"model.layers.{index}{part}" for part in ("", ".self_attn.o_proj", ".mlp"))
        down = f"{mlp}.down_proj"
        seen = recorded(network, block, attention, mlp, down)
        attended = seen[attention][0] @ network.get_submodule(attention).weight.double().T
        written = seen[down][0] @ network.get_submodule(down).weight.double().T
        if kind == "serial":
            attended = attended + bottleneck(network, attention, attended, functional.gelu)
            written = written + bottleneck(network, down, written, functional.gelu)
        else:
            written = written + 4 * bottleneck(network, down, seen[mlp][0], functional.relu)
        torch.testing.assert_close(seen[block][1], seen[block][0] + attended + written, rtol=1e-5, atol=1e-5)


@THREE
@BOTH
def test_a_half_precision_network_keeps_its_dtype(family: str, kind: Kind) -> None:
    network = frozen(family).to(torch.bfloat16)
    before = logits(network, family)
    names = insert(network, kind, BOTTLENECK, seed=0)
    assert torch.equal(logits(network, family), before)
    trained(network, names)
    assert logits(network, family).dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        loss(network, family).backward()
    gradients = [network.get_parameter(name).grad for name in names]
    assert all(gradient.dtype == torch.float32 and gradient.any() for gradient in gradients)
    network.to(torch.float64)
    assert all(network.get_parameter(name).dtype == torch.float64 for name in names)
    assert logits(network, family).dtype == torch.float64


@THREE
@BOTH
def test_saved_adapters_answer_the_same_in_another_network(family: str, kind: Kind, tmp_path: Path) -> None:
    network = frozen(family)
    names = insert(network, kind, BOTTLENECK, seed=0)
    trained(network, names)
    state = network.state_dict()
    save_file({name: state[name] for name in names}, tmp_path / "adapter.safetensors")
    other = frozen(family)
    assert insert(other, kind, BOTTLENECK, seed=9) == names
    assert other.load_state_dict(load_file(tmp_path / "adapter.safetensors"), strict=False).unexpected_keys == []
    assert torch.equal(logits(other, family), logits(network, family))


@pytest.mark.parametrize("family", ["Llama", "OPT"])
def test_two_threads_may_be_inside_at_once(family: str) -> None:
    network = frozen(family)
    trained(network, insert(network, "parallel", BOTTLENECK, seed=0))
    texts = inputs(family)["input_ids"].split(1)
    alone = [network(ids).logits for ids in texts]
    # Both have entered each feed-forward before either leaves it.
    together = threading.Barrier(2)

    def meet(_module: nn.Module, _inputs: Any, _output: Any) -> None:
        together.wait()

    for name, module in network.named_modules():
        if name.endswith(("mlp.gate_proj", "fc1")):
            module.register_forward_hook(meet)
    found: list[Tensor | None] = [None, None]

    def read(index: int) -> None:
        try:
            found[index] = network(texts[index]).logits
        except BaseException:
            together.abort()
            raise

    threads = [threading.Thread(target=read, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(map(torch.equal, found, alone))


def attention_free() -> Any:
    sizes = {"vocab_size": VOCABULARY, "hidden_size": WIDTH, "num_hidden_layers": LAYERS}
    return transformers.MambaForCausalLM(transformers.MambaConfig(**sizes, state_size=4))


def without_blocks() -> Any:
    config = transformers.OpenAIGPTConfig(vocab_size=VOCABULARY, n_embd=WIDTH, n_layer=1, n_head=2)
    return transformers.OpenAIGPTLMHeadModel(config)


def strange_at_last() -> Any:
    """One good block, then one without a feed-forward sub-layer."""
    network = frozen("Llama").requires_grad_(True)
    network.model.layers[1].mlp = nn.Identity()
    return network


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (attention_free, ["backbone.layers.0", "no attention sub-layer", "self_attn.o_proj", "mixer.out_proj"]),
        (without_blocks, ["OpenAIGPTLMHeadModel", "no block found", "transformer (OpenAIGPTModel)"]),
        (strange_at_last, ["model.layers.1", "no feed-forward sub-layer", "mlp.down_proj", "input_layernorm"]),
    ],
)
@BOTH
def test_an_unknown_network_is_refused_and_left_as_it_was(build: Any, words: list[str], kind: Kind) -> None:
    network = build()
    before = {name: parameter.requires_grad for name, parameter in network.named_parameters()}
    with pytest.raises(ModelError) as error:
        insert(network, kind, BOTTLENECK, seed=0)
    assert all(word in str(error.value) for word in [*words, "use method peft"])
    assert "\n" not in str(error.value)
    assert {name: parameter.requires_grad for name, parameter in network.named_parameters()} == before


def test_a_second_insertion_is_refused() -> None:
    network = frozen("Llama")
    names = insert(network, "serial", BOTTLENECK, seed=0)
    with pytest.raises(ModelError, match="already"):
        insert(network, "parallel", BOTTLENECK, seed=0)
    assert {name for name, p in network.named_parameters() if p.requires_grad} == set(names)
