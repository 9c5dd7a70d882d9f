"""One handle per model and process: kinds, settings, chat, and what is refused."""

import json
import pickle
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

import graft.models
from graft.errors import ModelError
from graft.models.decoding import Asked, check
from graft.spec import ModelSource

CHAT = (
    "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


@pytest.fixture
def chatty(tiny_llama: Path, tmp_path: Path) -> Path:
    folder = Path(shutil.copytree(tiny_llama, tmp_path / "chatty"))
    (folder / "chat_template.jinja").write_text(CHAT)
    return folder


@pytest.mark.parametrize(
    ("name", "kind"),
    [("tiny_llama", "causal"), ("tiny_gpt2", "causal"), ("tiny_t5", "seq2seq"), ("tiny_bert", "encoder")],
)
def test_kinds_and_what_a_handle_says(request: pytest.FixtureRequest, name: str, kind: str) -> None:
    folder = request.getfixturevalue(name)
    model = graft.models.load(str(folder), device="cpu")
    assert model.kind == kind
    assert model.context_tokens == {"tiny_bert": 128, "tiny_t5": None}.get(name, 256)
    assert (model.dimensions, str(model.device), model.config.model_type) == (32, "cpu", name.removeprefix("tiny_"))
    assert not model.remote
    assert model.parameters == model.network.num_parameters() > 10_000
    assert model.fingerprint == graft.models.fingerprint(model.source)
    assert not any(weight.requires_grad for weight in model.network.parameters())
    assert not model.network.training
    assert {weight.dtype for weight in model.network.parameters()} == {torch.float32}


def test_nodes_share_one_handle(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = graft.models.load(str(tiny_llama))
    assert graft.models.load(ModelSource(source=str(tiny_llama)), device="cpu") is model
    monkeypatch.chdir(tiny_llama.parent)
    assert graft.models.load(tiny_llama.name) is model
    assert graft.models.load(ModelSource(source=str(tiny_llama), layer=1)) is not model


def test_a_handle_travels_without_its_weights(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny_llama.parent)
    model = graft.models.load(ModelSource(source=tiny_llama.name, layer=1), device="cpu")
    model.embed(["a text"])
    sent = pickle.dumps(model)
    assert len(sent) < 2000
    monkeypatch.chdir(tmp_path)
    assert pickle.loads(sent) is model, "another directory of the same process: the handle that is there"
    program = "import pickle, sys; print(pickle.load(sys.stdin.buffer).fingerprint)"
    elsewhere = subprocess.run([sys.executable, "-c", program], input=sent, capture_output=True, check=True)
    assert elsewhere.stdout.decode().strip() == model.fingerprint


def test_a_handle_that_finds_another_model_is_refused(tiny_bert: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_bert, tmp_path / "model"))
    model = graft.models.load(str(folder))
    sent = pickle.dumps(model)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "layer_norm_eps": 0.5}))
    with pytest.raises(ModelError, match=f"another one than where .*there {model.fingerprint}"):
        pickle.loads(sent)


def test_an_endpoint_travels_as_its_address() -> None:
    model = graft.models.load("endpoint:http://127.0.0.1:9/v1#tiny")
    assert pickle.loads(pickle.dumps(model)).fingerprint == model.fingerprint


def test_changed_weights_are_another_model(tiny_bert: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = Path(shutil.copytree(tiny_bert, tmp_path / "changing"))
    before = graft.models.load(str(folder))
    weights = load_file(folder / "model.safetensors")
    save_file({name: value + 1 for name, value in weights.items()}, folder / "model.safetensors", {"format": "pt"})
    after = graft.models.load(str(folder))
    assert after is not before
    assert after.fingerprint != before.fingerprint


def test_a_bare_decoder_is_an_encoder(tiny_llama: Path, tmp_path: Path) -> None:
    from transformers import AutoModel, AutoTokenizer

    AutoModel.from_pretrained(tiny_llama).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(tiny_llama).save_pretrained(tmp_path)
    model = graft.models.load(str(tmp_path))
    assert model.kind == "encoder"
    torch.testing.assert_close(
        torch.from_numpy(model.embed(["The cat"])),
        torch.from_numpy(graft.models.load(str(tiny_llama)).embed(["The cat"])),
    )
    with pytest.raises(ModelError, match="an encoder model cannot score candidates; name a causal"):
        model.score(["a"], ["b"])
    with pytest.raises(ModelError, match="an encoder model cannot generate; name a causal"):
        model.generate(["a"])


def test_the_encoder_of_an_encoder_decoder_alone(tiny_t5: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer, T5EncoderModel

    T5EncoderModel.from_pretrained(tiny_t5).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(tiny_t5).save_pretrained(tmp_path)
    alone, whole = graft.models.load(str(tmp_path)), graft.models.load(str(tiny_t5))
    assert alone.kind == "encoder"
    torch.testing.assert_close(torch.from_numpy(alone.embed(["The cat"])), torch.from_numpy(whole.embed(["The cat"])))


def test_dtype_of_the_source(tiny_bert: Path) -> None:
    model = graft.models.load(ModelSource(source=str(tiny_bert), dtype="bfloat16"))
    assert model.dtype == "torch.bfloat16"
    assert {weight.dtype for weight in model.network.parameters()} == {torch.bfloat16}
    exact = graft.models.load(str(tiny_bert)).embed(["The cat"])
    torch.testing.assert_close(torch.from_numpy(model.embed(["The cat"])), torch.from_numpy(exact), atol=0.1, rtol=0)


def test_chat_messages_become_a_prompt(chatty: Path) -> None:
    model = graft.models.load(str(chatty))
    assert model.chat is not None
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    assert model.chat(messages) == "<s>[system] Be brief.\n[user] Hello\n[assistant]"
    assert graft.models.load(ModelSource(source=str(chatty), variant="instruct")).chat is not None
    assert graft.models.load(ModelSource(source=str(chatty), variant="pretrained")).chat is None


def test_no_template_no_chat(tiny_llama: Path) -> None:
    assert graft.models.load(str(tiny_llama)).chat is None


def test_a_chat_prompt_does_not_depend_on_the_day(chatty: Path) -> None:
    (chatty / "chat_template.jinja").write_text("{{ bos_token }}Today is {{ strftime_now('%d %b %Y') }}.")
    chat = graft.models.load(str(chatty)).chat
    assert chat is not None
    assert chat([{"role": "user", "content": "Hello"}]) == "<s>Today is 26 Jul 2024."


def test_a_chat_template_may_refuse(chatty: Path) -> None:
    (chatty / "chat_template.jinja").write_text("{{ raise_exception('no system role') }}")
    chat = graft.models.load(str(chatty)).chat
    assert chat is not None
    with pytest.raises(ModelError, match="its chat template refuses these messages: no system role"):
        chat([{"role": "system", "content": "x"}])


def test_missing_weights_are_not_made_up(tiny_llama: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = Path(shutil.copytree(tiny_llama, tmp_path / "headless"))
    weights = load_file(folder / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    model = graft.models.load(str(folder))
    for _ in range(2):
        with pytest.raises(ModelError, match=r"1 weights are not in .*lm_head\.weight"):
            model.score(["a"], ["b"])


def test_weights_of_another_shape(tiny_llama: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_llama, tmp_path / "misshapen"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "intermediate_size": 48}))
    with pytest.raises(ModelError, match="transformers cannot load it"):
        graft.models.load(str(folder)).embed(["a"])


def test_what_a_handle_says_needs_no_weights(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = count_loads(monkeypatch)
    model = graft.models.load(ModelSource(source=str(tiny_llama), layer=2, dtype="float16"))
    assert (model.kind, model.context_tokens, model.dimensions, model.dtype) == ("causal", 256, 32, "torch.float16")
    assert (str(model.device), model.chat, model.config.vocab_size) == ("cpu", None, len(model.tokenizer))
    assert model.parameters > 10_000
    assert model.count_tokens(["The cat"])[0] > 1
    assert model.cut(["The cat sat on the mat"], 4)
    assert (model.excess(["The cat"], candidates=[" sat"]) < 0).all()
    assert (model.excess(["The cat"], max_new_tokens=9) < 0).all()
    assert loaded == []
    model.embed(["The cat"])
    assert len(loaded) == 1


def count_loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Folders whose weights transformers has read since."""
    from transformers import PreTrainedModel

    loaded, load = [], PreTrainedModel.from_pretrained.__func__

    def counted(cls: type, folder: Path, **options: object) -> object:
        loaded.append(str(folder))
        return load(cls, folder, **options)

    monkeypatch.setattr(PreTrainedModel, "from_pretrained", classmethod(counted))
    return loaded


def test_threads_load_the_weights_once(tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = count_loads(monkeypatch)
    model = graft.models.load(shutil.copytree(tiny_bert, tmp_path / "shared").as_posix())
    together = threading.Barrier(4)

    def embed(_index: int) -> float:
        together.wait()
        return float(model.embed(["The cat"])[0, 0])

    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(embed, range(4)))) == 1
    assert len(loaded) == 1
    # First used by a computation without gradients, they may still be part of one with.
    network = model.network
    assert not any(part.is_inference() for part in (*network.parameters(), *network.buffers()))


def test_weights_that_change_between_load_and_first_use(tiny_bert: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = Path(shutil.copytree(tiny_bert, tmp_path / "late"))
    model = graft.models.load(str(folder))
    weights = load_file(folder / "model.safetensors")
    save_file({name: value + 1 for name, value in weights.items()}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match="has changed since this process first read it; start again"):
        model.embed(["The cat"])


def test_the_number_of_weights_of_a_real_and_of_a_sharded_model(minilm: str, tiny_bert: Path, tmp_path: Path) -> None:
    from transformers import AutoModel

    real = graft.models.load(minilm)
    assert real.parameters == real.network.num_parameters()
    folder = Path(shutil.copytree(tiny_bert, tmp_path / "sharded"))
    (folder / "model.safetensors").unlink()
    AutoModel.from_pretrained(tiny_bert).save_pretrained(folder, max_shard_size="40KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    whole = graft.models.load(str(tiny_bert))
    shutil.copy(next(folder.glob("*.safetensors")), folder / "consolidated.safetensors")
    assert graft.models.load(str(folder)).parameters == whole.parameters


@pytest.mark.parametrize("name", ["tiny_llama", "tiny_gpt2", "tiny_t5", "tiny_bert"])
def test_a_token_that_the_network_does_not_know_is_refused_before_it_meets_others(
    request: pytest.FixtureRequest, tmp_path: Path, name: str
) -> None:
    """Published folders may have a tokenizer with more tokens than their model has rows for."""
    from transformers import AutoTokenizer

    folder = Path(shutil.copytree(request.getfixturevalue(name), tmp_path / "grown"))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.save_pretrained(folder)
    model = graft.models.load(str(folder))
    asks: list[Callable[[str], Any]] = [
        lambda text: model.embed(["a", text]),
        lambda text: model.count_tokens(["a", text]),
    ]
    if name != "tiny_bert":
        asks += [
            lambda text: check(model, Asked(text, 3)),
            lambda text: model.generate(["a", text], 3),
            lambda text: model.score([text], [" a", " b"]),
            lambda text: model.score(["a"], [" b", text]),
        ]
    for ask in asks:
        ask("what is <pad> for?")
        with pytest.raises(ModelError, match=r"'\[PAD\]' \(id 400\), but the model embeds 400 tokens .* leave it out"):
            ask("what is [PAD] for?")


def test_an_architecture_nobody_knows(tiny_llama: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_llama, tmp_path / "unknown"))
    (folder / "config.json").write_text(json.dumps({"model_type": "nobody-knows"}))
    with pytest.raises(ModelError, match=r"transformers cannot load it: .*nobody-knows"):
        graft.models.load(str(folder))


def test_remote_code_needs_permission(tiny_llama: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_llama, tmp_path / "remote"))
    config = json.loads((folder / "config.json").read_text())
    own = {"model_type": "own", "auto_map": {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}}
    (folder / "config.json").write_text(json.dumps({**config, **own}))
    (folder / "own.py").write_text("raise SystemExit('this must never run')")
    with pytest.raises(ModelError, match=r"Python code of its own.*models\.ROLE\.trust_remote_code: true"):
        graft.models.load(str(folder))


def test_what_needs_a_gpu(tiny_llama: Path) -> None:
    with pytest.raises(ModelError, match=r"quantization: got 8bit .*needs a GPU"):
        graft.models.load(ModelSource(source=str(tiny_llama), quantization="8bit"), device="cpu")
    with pytest.raises(ModelError, match=r"scaling\.device: got 'cuda:99'"):
        graft.models.load(str(tiny_llama), device="cuda:99")


def test_place_and_fingerprint_need_no_torch(tiny_bert: Path) -> None:
    code = (
        "import sys, graft.models as m; s = m.ModelSource(source=sys.argv[1]); m.locate(s); m.fingerprint(s);"
        "sys.exit(any(name in sys.modules for name in ('torch', 'transformers', 'ray')))"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tiny_bert)], check=False).returncode == 0
