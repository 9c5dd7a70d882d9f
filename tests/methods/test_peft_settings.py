"""What a spec may say of a PEFT adapter: the variants of LORA, what some types add to training, what is refused."""

import dataclasses
import sys
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch

from graft import models
from graft.errors import ModelError, SpecError
from graft.graph import Graph
from graft.methods import peft_types
from graft.models import loading

sys.path.insert(0, str(Path(__file__).parent))

from trainings import experts, fit, inputs, logits, network_digest, peft_spec, pristine, scores, target_loss

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning:peft"),
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning"),
]

TOKENS = [81, 82, 83, 272, 274, 293]
"""Of the words in the rows."""

LINEAR = {"tiny_llama": ["q_proj", "v_proj"], "tiny_gpt2": ["c_attn", "c_fc"], "tiny_t5": ["q", "v", "wi"]}
EMBEDDINGS = {"tiny_llama": "embed_tokens", "tiny_gpt2": "wte", "tiny_t5": "shared"}
NORMS = {"tiny_llama": "norm", "tiny_gpt2": "ln_f", "tiny_t5": "final_layer_norm"}

VARIANTS: dict[str, Any] = {
    "all-linear": lambda name: {"target_modules": "all-linear"},
    "bias": lambda name: {"bias": "all"},
    "dora": lambda name: {"use_dora": True},
    "dropout": lambda name: {"lora_dropout": 0.5},
    "embeddings": lambda name: {"target_modules": [*LINEAR[name], EMBEDDINGS[name]]},
    "gaussian": lambda name: {"init_lora_weights": "gaussian"},
    "head": lambda name: {"target_modules": [*LINEAR[name], "lm_head"]},
    "lora_bias": lambda name: {"lora_bias": True},
    "mica": lambda name: {"init_lora_weights": "mica"},
    "modules_to_save": lambda name: {"modules_to_save": [NORMS[name], "lm_head"]},
    "olora": lambda name: {"init_lora_weights": "olora"},
    "orthogonal": lambda name: {"init_lora_weights": "orthogonal"},
    "pissa": lambda name: {"init_lora_weights": "pissa"},
    "rank_pattern": lambda name: {"rank_pattern": {LINEAR[name][0]: 2}, "alpha_pattern": {LINEAR[name][0]: 16}},
    "rslora": lambda name: {"use_rslora": True},
    "tokens": lambda name: {"trainable_token_indices": {EMBEDDINGS[name]: TOKENS}},
}
"""Fields of LORA by the name of a model."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variant", "name"),
    [
        pytest.param(variant, name, marks=[] if name == list(LINEAR)[place % len(LINEAR)] else pytest.mark.long)
        for place, variant in enumerate(VARIANTS)
        for name in LINEAR
    ],
)
def test_a_variant_of_lora_learns_is_saved_and_leaves_the_frozen_model_alone(
    variant: str, name: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    model = Path(request.getfixturevalue(name))
    setting = {"peft_type": "LORA", "r": 4, "target_modules": LINEAR[name], **VARIANTS[variant](name)}
    if (variant, name) == ("olora", "tiny_gpt2"):
        with pytest.raises(ModelError, match=r"init_lora_weights: olora .*give pissa"):
            fit(peft_spec(model, setting))
        return
    done = fit(peft_spec(model, setting, max_steps=8))
    assert target_loss(done.node) < target_loss(done.begun)
    if variant not in ("head", "modules_to_save"):
        assert scores(done.graph_with(done.begun)) == pytest.approx(
            scores(done.graph_with(dataclasses.replace(done.node, weights={}))), abs=1e-4
        )
    done.after.save(tmp_path)
    assert np.array_equal(scores(Graph.load(tmp_path, models.load)), scores(done.after))
    base = loading.open_network(done.handle.kind, model)
    there = peft.PeftModel.from_pretrained(base, tmp_path / "0-tuned" / "adapter").eval()
    read = inputs(done, torch.tensor([[7, 8, 81, 82, 272]]))
    torch.testing.assert_close(logits(there, read), logits(done.node.speaker.network, read), rtol=1e-4, atol=1e-4)
    assert done.unchanged
    assert pristine(done, model)


RANKS = {"init_r": 4, "target_r": 2, "tinit": 2, "tfinal": 2}


def test_adalora_ends_with_the_ranks_that_were_asked_for(tiny_llama: Path) -> None:
    setting = {"peft_type": "ADALORA", **RANKS, "target_modules": LINEAR["tiny_llama"]}
    done = fit(peft_spec(tiny_llama, setting))
    ranks = [value for name, value in done.node.weights.items() if "lora_E" in name]
    assert len(ranks) == 4
    assert sum(int(np.count_nonzero(value)) for value in ranks) == 2 * len(ranks)
    assert done.node.adapter["total_step"] == 16
    free = fit(peft_spec(tiny_llama, {**setting, "orth_reg_weight": 0.0}, max_steps=6))
    held = fit(peft_spec(tiny_llama, setting, max_steps=6))
    # 0.5 times the mean distance of random factors from orthogonal ones.
    assert held.states[0].curve[0]["loss"] - free.states[0].curve[0]["loss"] == pytest.approx(
        0.5 * orthogonality(done.begun.weights), rel=1e-4
    )


def orthogonality(weights: dict[str, np.ndarray]) -> float:
    """The mean Frobenius norm of what the factors' products are beside the identity."""
    norms = []
    for name, value in weights.items():
        if "lora_A" in name or "lora_B" in name:
            gram = value @ value.T if "lora_A" in name else value.T @ value
            norms.append(np.linalg.norm(gram - np.eye(len(gram))))
    return float(np.mean(norms))


def test_a_shadow_learns_to_answer_by_itself(tiny_llama: Path) -> None:
    first = [
        fit(peft_spec(tiny_llama, {"peft_type": "SHADOW", "auxiliary_loss_weight": weight}, max_steps=1))
        .states[0]
        .curve[0]["loss"]
        for weight in (0.0, 0.1, 0.2)
    ]
    assert first[1] > first[0]
    assert first[2] - first[1] == pytest.approx(first[1] - first[0], rel=1e-4)


def test_experts_are_part_of_the_fingerprint_by_what_they_hold(tiny_llama: Path, tmp_path: Path) -> None:
    setting = {"peft_type": "XLORA", "adapters": experts(tiny_llama, tmp_path / "here")}
    node = fit(peft_spec(tiny_llama, setting, max_steps=1)).node
    moved = {}
    for name, folder in setting["adapters"].items():
        (tmp_path / name).mkdir()
        for file in Path(folder).iterdir():
            (tmp_path / name / file.name).write_bytes(file.read_bytes())
        moved[name] = str(tmp_path / name)
    again = dataclasses.replace(node, adapter={**setting, "adapters": moved})
    assert again.fingerprint() == node.fingerprint()
    weights = tmp_path / "1" / "adapter_model.safetensors"
    weights.write_bytes((tmp_path / "0" / "adapter_model.safetensors").read_bytes())
    assert again.fingerprint() != node.fingerprint()


LORA = {"peft_type": "LORA", "r": 4}


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"peft_type": "LOR"}, r"peft_type: unknown type 'LOR'; did you mean 'LORA'\? known: ADALORA, "),
        ({"peft_type": "LILY"}, r"peft_type: LILY is not offered: its router averages over all tokens"),
        ({**LORA, "lora_alhpa": 3}, r"lora_alhpa: LORA has no such field; did you mean 'lora_alpha'\?"),
        ({**LORA, "task_type": "SEQ_CLS"}, r"task_type: LORA has no such field"),
        ({**LORA, "target_modules": ["q_proj", "v_porj"]}, r"target_modules: nothing is named 'v_porj'; .*'v_proj'\?"),
        ({**LORA, "target_modules": ["nothing"]}, r"LORA cannot be put .*'nothing'.*its modules are down_proj, "),
        ({**LORA, "modules_to_save": ["nrom"]}, r"modules_to_save: nothing is named 'nrom'; did you mean 'norm'\?"),
        ({**LORA, "target_parameters": ["gate.weight"]}, r"target_parameters: nothing is named 'gate\.weight'"),
        ({**LORA, "init_lora_weights": "eva"}, r"init_lora_weights: eva reads data before training"),
        ({**LORA, "init_lora_weights": "pissa_niter_4"}, r"init_lora_weights: pissa_niter_4 is random"),
        ({**LORA, "layer_replication": [[0, 2], [1, 2]]}, r"layer_replication: it makes the model deeper"),
        ({**LORA, "r": 0}, r"LORA cannot be put .*`r` should be a positive integer"),
        ({"peft_type": "ADALORA", "init_r": 4}, r"init_r: got 4; ADALORA takes ranks away until target_r"),
        ({"peft_type": "ADALORA", "tinit": 9, "tfinal": 9}, r"ADALORA: .*budgeting phase"),
        ({"peft_type": "ADAMSS", "use_asa": True}, r"use_asa: it stops and resumes"),
        ({"peft_type": "ADAPTION_PROMPT"}, r"adapter_len is missing: ADAPTION_PROMPT needs adapter_len and adapter_la"),
        ({"peft_type": "PROMPT_TUNING"}, r"num_virtual_tokens is missing"),
        ({"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 250}, r"the context of .* holds 6; "),
        ({"peft_type": "XLORA", "adapters": {"0": "/nowhere"}}, r"adapters\.0: /nowhere holds no adapter"),
        (
            {"peft_type": "XLORA", "adapters": {"first": "/nowhere"}},
            r"adapters: got the names first; call",
        ),
    ],
    ids=lambda value: "" if isinstance(value, str) else "-".join(map(str, value.values()))[:40],
)
def test_wrong_settings_are_refused_with_the_cure(setting: dict[str, Any], words: str, tiny_llama: Path) -> None:
    with pytest.raises((SpecError, ModelError), match=words) as error:
        fit(peft_spec(tiny_llama, setting))
    assert "\n" not in str(error.value)


def test_a_prompt_may_begin_as_a_text(tiny_llama: Path) -> None:
    setting = {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 3, "prompt_tuning_init": "TEXT"}
    done = fit(peft_spec(tiny_llama, {**setting, "prompt_tuning_init_text": "The cat sat"}, max_steps=1))
    (begun,) = done.begun.weights.values()
    ids = done.handle.tokenizer("The cat sat")["input_ids"][:3]
    embedded = done.handle.network.get_input_embeddings().weight[ids].numpy()
    assert np.array_equal(begun, embedded)


def test_biases_that_are_trained_are_copies(tiny_gpt2: Path) -> None:
    done = fit(peft_spec(tiny_gpt2, {**LORA, "bias": "all"}, max_steps=2))
    assert any(name.endswith(".bias") for name in done.node.weights)
    done.node.warm()
    assert pristine(done, tiny_gpt2)


def test_weights_that_olora_takes_from_are_copies_and_the_others_are_shared(tiny_llama: Path) -> None:
    handle = models.load(str(tiny_llama))
    network = handle.frozen_copy()
    setting = {**LORA, "init_lora_weights": "olora", "target_modules": ["q_proj"]}
    _, adapted = peft_types.insert(handle, network, setting, True, seed=0)
    assert network_digest(handle.network) == network_digest(loading.open_network("causal", tiny_llama))
    shared = {value.data_ptr() for value in handle.network.parameters()}
    own = [name for name, value in adapted.named_parameters() if value.data_ptr() not in shared]
    assert own
    assert all("q_proj" in name for name in own)
