"""Where models are found, and what is refused before torch is imported."""

import hashlib
import json
import shutil
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from huggingface_hub import constants

import graft.models
from graft.errors import ModelError
from graft.models import sources
from graft.spec import ModelSource

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def locate(name: str) -> Path:
    return graft.models.locate(ModelSource(source=name))


def mark(name: str | Path, **settings: object) -> str:
    return graft.models.fingerprint(ModelSource(source=str(name), **settings))


@pytest.fixture
def copied(tiny_bert: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_bert, tmp_path / "copied"))


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No network, and a hub cache of its own."""
    cache = tmp_path / "hub-cache"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return cache


def install(site: Path, name: str, model: Path | None) -> None:
    """An installed distribution, with or without a model inside."""
    package = site / name.replace("-", "_")
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    if model:
        shutil.copytree(model, package / "model")
    info = site / f"{package.name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    files = [file.relative_to(site).as_posix() for file in site.rglob("*") if file.is_file()]
    (info / "RECORD").write_text("".join(f"{file},,\n" for file in files))


def test_a_folder(tiny_bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert locate(str(tiny_bert)) == tiny_bert.resolve()
    monkeypatch.chdir(tiny_bert.parent)
    assert locate(f"./{tiny_bert.name}") == tiny_bert.resolve()


def test_the_fingerprint_is_of_contents(tiny_bert: Path, copied: Path) -> None:
    same = mark(tiny_bert)
    assert mark(copied) == same
    (copied / "README.md").write_text("words about the model")
    assert mark(copied) == same
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        changed = json.loads((copied / name).read_text())
        (copied / name).write_text(json.dumps({**changed, "note": "changed"}))
        assert mark(copied) != same
        shutil.copy(tiny_bert / name, copied)
    (copied / "modules.json").write_text(
        json.dumps([{"path": "", "type": "Transformer"}, {"path": "1", "type": "Pooling"}])
    )
    pooled = mark(copied)
    assert pooled != same
    (copied / "1").mkdir()
    (copied / "1" / "config.json").write_text(json.dumps({"pooling_mode": "cls"}))
    assert mark(copied) not in (same, pooled)


def test_the_fingerprint_holds_the_settings_that_change_results(tiny_bert: Path) -> None:
    marks = [
        mark(tiny_bert),
        mark(tiny_bert, layer=1),
        mark(tiny_bert, pooling="cls"),
        mark(tiny_bert, dtype="bfloat16"),
        mark(tiny_bert, variant="instruct"),
    ]
    assert len(set(marks)) == len(marks)
    assert mark(tiny_bert, device_map="auto", pooling="model") == marks[0]


def test_an_installed_package(tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offline: Path) -> None:
    install(tmp_path / "site", "tiny-model", tiny_bert)
    install(tmp_path / "other", "no-model", None)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path / "site"), str(tmp_path / "other")])
    assert locate("tiny-model") == tmp_path / "site" / "tiny_model" / "model"
    assert mark("tiny-model") == mark(tiny_bert)
    with pytest.raises(ModelError, match=r"the installed package 'no-model' \(carries no config\.json"):
        locate("no-model")


def test_a_hub_name_is_taken_from_the_package_that_carries_it(minilm: str, offline: Path) -> None:
    name = "sentence-transformers/all-MiniLM-L6-v2"
    assert locate(name) == locate(minilm)
    assert mark(name) == mark(minilm)


def test_a_carrier_with_other_weights_is_refused(
    tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offline: Path
) -> None:
    install(tmp_path / "site", "tiny-model", tiny_bert)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path / "site")])
    right = hashlib.sha256((tiny_bert / "model.safetensors").read_bytes()).hexdigest()
    monkeypatch.setitem(sources.CARRIED, "owner/tiny", ("tiny-model", right))
    assert locate("owner/tiny") == locate("tiny-model")
    monkeypatch.setitem(sources.CARRIED, "owner/tiny", ("tiny-model", "0" * 64))
    for name in ("owner/tiny", "tiny-model"):
        with pytest.raises(ModelError, match=f"not the weights that tiny-model is known for .*{right}.*reinstall"):
            locate(name)


def test_nowhere_says_where_it_looked(offline: Path) -> None:
    with pytest.raises(ModelError) as caught:
        locate("nobody/nothing")
    message = str(caught.value)
    assert "\n" not in message
    for place in ("nobody/nothing", "installed packages", "the local hub cache", "the hub https://", "copy the folder"):
        assert place in message
    with pytest.raises(ModelError, match="no hub name"):
        locate("./nothing/here")
    with pytest.raises(ModelError, match="no such model"):
        locate("")


def cache_snapshot(cache: Path, name: str, model: Path) -> Path:
    """What the hub's client leaves behind after a download."""
    base = cache / f"models--{name.replace('/', '--')}"
    (base / "refs").mkdir(parents=True)
    (base / "refs" / "main").write_text(COMMIT)
    return Path(shutil.copytree(model, base / "snapshots" / COMMIT))


def test_the_hub_cache(tiny_bert: Path, offline: Path) -> None:
    assert locate_in_cache(tiny_bert, offline) == mark(tiny_bert)


def locate_in_cache(model: Path, cache: Path) -> str:
    cache_snapshot(cache, "owner/cached", model)
    return mark("owner/cached")


def test_half_a_model_in_the_hub_cache(tiny_bert: Path, offline: Path) -> None:
    (cache_snapshot(offline, "owner/half", tiny_bert) / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="has no weights"):
        locate("owner/half")


class _Hub(BaseHTTPRequestHandler):
    """Enough of the hub to download one model."""

    folder: Path

    def do_GET(self) -> None:
        if self.path.startswith("/api/models/owner/online"):
            names = [file.name for file in self.folder.iterdir()]
            if "/tree/" in self.path:
                tree = [{"type": "file", "path": name, "size": 1, "oid": "0"} for name in names]
                return self._reply(json.dumps(tree).encode(), "application/json")
            answer = {"id": "owner/online", "sha": COMMIT, "siblings": [{"rfilename": name} for name in names]}
            return self._reply(json.dumps(answer).encode(), "application/json")
        file = self.folder / self.path.rpartition("/")[2]
        if self.path.startswith("/owner/online/resolve/") and file.is_file():
            return self._reply(file.read_bytes(), "application/octet-stream")
        return self.send_error(404)

    do_HEAD = do_GET

    def _reply(self, content: bytes, kind: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *_arguments: object) -> None:
        """Say nothing."""


@pytest.fixture
def hub(copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (copied / "pytorch_model.bin").write_bytes(b"a pickle")
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Hub", (_Hub,), {"folder": copied}))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    yield copied
    server.shutdown()
    thread.join()
    server.server_close()


def test_the_hub_gives_safetensors_and_no_pickles(hub: Path) -> None:
    folder = locate("owner/online")
    assert mark(folder) == mark(hub)
    assert "pytorch_model.bin" not in {file.name for file in folder.iterdir()}
    with pytest.raises(ModelError, match="the hub http://127"):
        locate("owner/absent")


def test_recipes() -> None:
    with pytest.raises(
        ModelError,
        match=r"recipe:world-teacher: no such model; .* graft pretrain SPEC trains one whose name is world-teacher",
    ):
        locate("recipe:world-teacher")


def test_a_file_is_not_a_folder(tiny_bert: Path) -> None:
    with pytest.raises(ModelError, match="is a file; give the folder"):
        locate(str(tiny_bert / "config.json"))


def test_no_configuration(copied: Path) -> None:
    (copied / "config.json").unlink()
    with pytest.raises(ModelError, match=r"has no config\.json; give a folder written by save_pretrained"):
        locate(str(copied))


def test_an_unreadable_configuration(copied: Path) -> None:
    (copied / "config.json").write_text("{half")
    with pytest.raises(ModelError, match=r"config\.json: cannot be read as JSON"):
        locate(str(copied))


def test_no_weights(copied: Path) -> None:
    (copied / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="has no weights"):
        locate(str(copied))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.pth"])
def test_pickled_weights_only(copied: Path, name: str) -> None:
    (copied / "model.safetensors").rename(copied / name)
    with pytest.raises(
        ModelError, match=rf"pickled weights only \({name}\).*safetensors.*save_pretrained\(NEW\) converts"
    ):
        locate(str(copied))


def test_damaged_weights(copied: Path) -> None:
    weights = copied / "model.safetensors"
    whole = weights.read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"x" * 100):
        weights.write_bytes(content)
        with pytest.raises(ModelError, match=r"model\.safetensors is damaged .*copy or download it again"):
            locate(str(copied))


def test_an_adapter_in_the_folder(copied: Path) -> None:
    (copied / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "lora_alpha": 8}))
    with pytest.raises(
        ModelError, match=r"holds an adapter \(adapter_config\.json\); merge it first .*merge_and_unload"
    ):
        locate(str(copied))


def test_the_fingerprint_is_of_the_index_and_of_every_chat_template(copied: Path) -> None:
    marks = [mark(copied)]
    (copied / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "model.safetensors"}}))
    marks.append(mark(copied))
    (copied / "additional_chat_templates").mkdir()
    for text in ("one", "two"):
        (copied / "additional_chat_templates" / "tool_use.jinja").write_text(text)
        marks.append(mark(copied))
    assert len(set(marks)) == 4


def test_a_missing_shard(copied: Path) -> None:
    shards = {"a": "model.safetensors", "b": "model-00002-of-00002.safetensors"}
    (copied / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    with pytest.raises(ModelError, match=r"has no model-00002-of-00002\.safetensors, which"):
        locate(str(copied))
