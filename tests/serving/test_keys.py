import json
import logging
import stat
import threading
from pathlib import Path

import pytest

from graft.errors import SpecError
from graft.serving.keys import Keys, add_key, hash_key, new_key, read_keys


def test_a_new_key_is_admitted_and_only_its_hash_is_kept(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    first, second = add_key(file, "anna"), add_key(file, "ben")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert first not in file.read_text()
    keys = read_keys(file)
    assert keys.admit(first)
    assert keys.admit(second)
    for wrong in ("", first[:-1], first + "x", first.upper(), hash_key(first), "ü\udcff"):
        assert not keys.admit(wrong)
    assert [entry["name"] for entry in json.loads(file.read_text())["keys"]] == ["anna", "ben"]
    assert list(tmp_path.iterdir()) == [file]


def test_no_keys_admit_nobody() -> None:
    assert not Keys(()).admit(new_key())
    assert new_key() != new_key()


def test_a_name_is_given_once(tmp_path: Path) -> None:
    add_key(tmp_path / "keys.json", "anna")
    before = (tmp_path / "keys.json").read_bytes()
    with pytest.raises(SpecError, match="'anna' already"):
        add_key(tmp_path / "keys.json", "anna")
    assert (tmp_path / "keys.json").read_bytes() == before


@pytest.mark.parametrize("name", ["", "a b", "-a", "a\n", "x" * 65])
def test_names_are_plain_words(tmp_path: Path, name: str) -> None:
    with pytest.raises(SpecError, match="NAME"):
        add_key(tmp_path / "keys.json", name)
    assert list(tmp_path.iterdir()) == []


def test_writers_at_once_lose_no_key(tmp_path: Path) -> None:
    made: dict[str, str] = {}

    def write(name: str) -> None:
        made[name] = add_key(tmp_path / "keys.json", name)

    threads = [threading.Thread(target=write, args=(f"user-{i}",)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    keys = read_keys(tmp_path / "keys.json")
    assert len(keys.hashes) == 8
    assert all(keys.admit(key) for key in made.values())


def test_a_file_that_others_may_read_is_tightened(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    add_key(tmp_path / "keys.json", "anna")
    (tmp_path / "keys.json").chmod(0o644)
    with caplog.at_level(logging.WARNING):
        read_keys(tmp_path / "keys.json")
    assert stat.S_IMODE((tmp_path / "keys.json").stat().st_mode) == 0o600
    assert "0600" in caplog.text


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "no such file"),
        ('{"keys": []}', "holds no key"),
        ("[]", "cannot be used"),
        ('{"keys": [{"name": "anna"}]}', "sha256"),
        ('{"keys": [{"name": "anna", "sha256": "short"}]}', "sha256"),
        ('{"keys": [{"name": 1, "sha256": 2}]}', "cannot be used"),
        ("\x00", "cannot be used"),
    ],
)
def test_a_file_without_usable_keys_is_refused_with_the_cure(
    tmp_path: Path, content: str | None, expected: str
) -> None:
    file = tmp_path / "keys.json"
    if content is not None:
        file.touch(mode=0o600)
        file.write_text(content)
    with pytest.raises(SpecError, match=expected) as caught:
        read_keys(file)
    assert "graft keys new" in str(caught.value)


def test_a_folder_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="make the folder first"):
        add_key(tmp_path / "nowhere" / "keys.json", "anna")


def test_a_file_that_is_another_users_is_read_through_its_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A Secret that Kubernetes mounts for a pod with an fsGroup: root's, mode 0440, and not ours to change."""
    file = tmp_path / "keys.json"
    key = add_key(file, "anna")
    file.chmod(0o440)
    monkeypatch.setattr("os.geteuid", lambda: file.stat().st_uid + 1)
    assert read_keys(file).admit(key)
    assert stat.S_IMODE(file.stat().st_mode) == 0o440
    assert not caplog.text
    file.chmod(0o444)
    read_keys(file)
    assert "0600" in caplog.text
