import json
import logging
import stat
import threading
from pathlib import Path
from typing import Any

import pytest

from graft.cli import carry_out
from graft.errors import SpecError
from graft.serving.keys import CurrentKeys, Key, Keys, add_key, hash_key, list_keys, new_key, read_keys, remove_key


def with_key(**values: Any) -> str:
    """A file of one key."""
    return json.dumps({"keys": [{"name": "anna", "sha256": hash_key("a"), **values}]})


def test_a_new_key_is_admitted_and_only_its_hash_is_kept(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    first, second = add_key(file, "anna"), add_key(file, "ben")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert first not in file.read_text()
    keys = read_keys(file)
    assert [found.name for found in (keys.find(first), keys.find(second)) if found] == ["anna", "ben"]
    for wrong in ("", first[:-1], first + "x", first.upper(), hash_key(first), "ü\udcff"):
        assert keys.find(wrong) is None
    assert [entry["name"] for entry in json.loads(file.read_text())["keys"]] == ["anna", "ben"]
    assert list(tmp_path.iterdir()) == [file]


def test_no_keys_admit_nobody() -> None:
    assert Keys(()).find(new_key()) is None
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
    assert len(keys.entries) == 8
    assert {name: keys.find(key) for name, key in made.items()} == {key.name: key for key in keys.entries}


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
        (with_key(tokens_per_hour=3), "tokens_per_hour"),
        (with_key(requests_per_minute=0), "requests_per_minute must be a whole number"),
        (with_key(requests_per_minute=True), "requests_per_minute must be a whole number"),
        (with_key(tokens_per_minute=1.5), "tokens_per_minute must be a whole number"),
        (with_key(tokens_per_minute="9"), "tokens_per_minute must be a whole number"),
        (with_key(name=None), "cannot be used"),
        (with_key(name="a b"), "NAME"),
        (json.dumps({"keys": json.loads(with_key())["keys"] * 2}), "twice"),
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
    assert read_keys(file).find(key)
    assert stat.S_IMODE(file.stat().st_mode) == 0o440
    assert not caplog.text
    file.chmod(0o444)
    read_keys(file)
    assert "0600" in caplog.text


def test_every_entry_is_compared_whichever_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    import hmac

    compared: list[str] = []

    def note(given: str, known: str) -> bool:
        compared.append(known)
        return given == known

    monkeypatch.setattr(hmac, "compare_digest", note)
    keys = Keys(tuple(Key(name, hash_key(name)) for name in ("a", "b", "c")))
    for given in ("a", "c", "none of these"):
        compared.clear()
        keys.find(given)
        assert compared == [key.sha256 for key in keys.entries]


def test_limits_are_kept_and_absent_ones_are_none(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    add_key(file, "anna", requests_per_minute=60, tokens_per_minute=9000)
    add_key(file, "ben")
    entries = json.loads(file.read_text())["keys"]
    for name in ("requests_per_minute", "tokens_per_minute", "created"):
        del entries[1][name]  # as older files are
    file.write_text(json.dumps({"keys": entries}))
    anna, ben = read_keys(file).entries
    assert (anna.requests_per_minute, anna.tokens_per_minute) == (60, 9000)
    assert (ben.requests_per_minute, ben.tokens_per_minute, ben.created) == (None, None, "")
    assert anna.sha256 not in repr(anna)
    with pytest.raises(SpecError, match="requests_per_minute must be"):
        add_key(file, "carl", requests_per_minute=-1)
    assert [key.name for key in list_keys(file)] == ["anna", "ben"]


def test_a_removed_key_is_not_found_any_more(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    first, second = add_key(file, "anna"), add_key(file, "ben")
    with pytest.raises(SpecError, match="did you mean 'anna'"):
        remove_key(file, "ana")
    remove_key(file, "anna")
    keys = read_keys(file)
    assert keys.find(first) is None
    assert keys.find(second) is not None
    remove_key(file, "ben")
    with pytest.raises(SpecError, match="it is empty"):
        remove_key(file, "ben")
    with pytest.raises(SpecError, match="no such file"):
        list_keys(tmp_path / "nowhere.json")


def test_a_server_finds_what_its_file_holds_now(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file, now = tmp_path / "keys.json", [0.0]
    first = add_key(file, "anna")
    current = CurrentKeys(read_keys(file), lambda: now[0])
    second = add_key(file, "ben")

    def names() -> list[str]:
        return [found.name for found in map(current.find, (first, second)) if found]

    assert names() == ["anna", "ben"], "the file is read when the server is asked for the first time"
    remove_key(file, "anna")
    now[0] = 0.9
    assert names() == ["anna", "ben"]
    now[0] = 1.0
    assert names() == ["ben"]
    good = file.read_text()
    file.write_text("{")
    now[0] = 2.0
    assert names() == ["ben"]
    assert "the keys stay as they were" in caplog.text
    caplog.clear()
    now[0] = 3.0
    assert names() == ["ben"]
    assert not caplog.text, "it is said once"
    file.unlink()
    now[0] = 4.0
    assert names() == ["ben"]
    file.write_text(good)
    remove_key(file, "ben")
    now[0] = 5.0
    assert names() == [], "without any key nobody comes in"


def test_keys_of_no_file_stay() -> None:
    current = CurrentKeys(Keys((Key("session", hash_key("secret")),)))
    assert current.find("secret") is not None
    assert current.find("other") is None


def test_the_commands_show_names_and_limits_and_never_a_hash(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(tmp_path / "keys.json")
    words = ["new", "anna", "--file", file, "--requests-per-minute", "60"]
    assert carry_out(["keys", *words]) == 0
    assert carry_out(["keys", "new", "ben", "--file", file, "--tokens-per-minute", "0"]) == 2
    assert "tokens_per_minute must be" in capsys.readouterr().err
    assert carry_out(["keys", "ls", "--file", file]) == 0
    listed = capsys.readouterr().out
    assert listed.splitlines()[1].split()[0] == "anna"
    assert listed.splitlines()[1].split()[2:] == ["60", "no", "limit"]
    assert read_keys(Path(file)).entries[0].sha256 not in listed
    assert carry_out(["keys", "rm", "anna", "--file", file]) == 0
    assert list_keys(Path(file)) == ()
