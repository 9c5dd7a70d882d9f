"""Checkpoints: whatever happens to the process or the storage, what is read back is what was given."""

import errno
import json
import logging
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import fs

from graft.errors import CheckpointError, StoreError
from graft.storage import children
from graft.training import checkpoints as module
from graft.training.checkpoints import Checkpoint, Checkpoints

LOCAL = fs.LocalFileSystem()
DTYPES = (
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
)


def at_step(step: int, size: int = 100) -> Checkpoint:
    """A checkpoint whose content says which step it is."""
    tensors = {"weight": torch.full((size,), float(step)), "optimizer.step": torch.tensor(step)}
    return Checkpoint(step, tensors, {"loss": 1 / (1 + step), "position": [step, None], "name": "naïve 东京"})


def is_whole(found: Checkpoint | None) -> bool:
    return found is not None and is_same(found, at_step(found.step, found.tensors["weight"].numel()))


def is_same(found: Checkpoint, given: Checkpoint) -> bool:
    return (
        (found.step, found.state) == (given.step, given.state)
        and found.tensors.keys() == given.tensors.keys()
        and all(bits(found.tensors[name]) == bits(tensor) for name, tensor in given.tensors.items())
    )


def bits(tensor: torch.Tensor) -> tuple[torch.dtype, torch.Size, bytes]:
    """All that there is to a tensor; a NaN is equal to itself."""
    dense = tensor.detach().clone(memory_format=torch.contiguous_format)
    return tensor.dtype, tensor.shape, dense.view(-1).view(torch.uint8).numpy().tobytes()


def saved(folder: Path, *steps: int) -> Checkpoints:
    kept = Checkpoints(LOCAL, str(folder))
    for step in steps:
        kept.save(at_step(step))
        kept.wait()
    return kept


def step_of(found: Checkpoint | None) -> int | None:
    assert found is None or is_whole(found)
    return found and found.step


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def last_name(step: int) -> str:
    return f"last-{step:09d}.safetensors"


@st.composite
def tensors(draw: st.DrawFn) -> torch.Tensor:
    """Any bits of any dtype in any layout."""
    dtype, shape = draw(st.sampled_from(DTYPES)), draw(st.lists(st.integers(0, 4), max_size=3))
    seed = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    if dtype == torch.bool:
        tensor = torch.randint(0, 2, shape, generator=seed).bool()
    else:
        count = torch.Size(shape).numel()
        raw = torch.randint(0, 256, (count * dtype.itemsize,), dtype=torch.uint8, generator=seed)
        tensor = raw.view(dtype).view(shape) if count else torch.empty(shape, dtype=dtype)
    layout = draw(st.sampled_from(["plain", "transposed", "strided", "expanded", "parameter"]))
    if layout == "transposed" and tensor.dim():
        return tensor.movedim(0, -1)
    if layout == "strided" and tensor.dim():
        return tensor[..., ::2]
    if layout == "parameter":
        return torch.nn.Parameter(tensor, requires_grad=tensor.is_floating_point())
    return tensor.expand(2, *tensor.shape) if layout == "expanded" else tensor


@settings(max_examples=100)
@given(given_tensors=st.dictionaries(st.text(min_size=1, max_size=5), tensors(), max_size=5))
def test_any_tensors_come_back_bit_for_bit(
    tmp_path_factory: pytest.TempPathFactory, given_tensors: dict[str, torch.Tensor]
) -> None:
    folder = tmp_path_factory.mktemp("kept")
    given_one = Checkpoint(3, given_tensors, {"rate": 0.1})
    with Checkpoints(LOCAL, str(folder)) as kept:
        kept.save(given_one)
    found = Checkpoints(LOCAL, str(folder)).last()
    assert kept.problems == 0
    assert found is not None
    assert is_same(found, given_one)


def test_tensors_that_share_memory_come_back_apart(tmp_path: Path) -> None:
    tied = torch.arange(6.0).view(2, 3)
    with Checkpoints(LOCAL, str(tmp_path)) as kept:
        kept.save(Checkpoint(1, {"embedding": tied, "head": tied, "row": tied[1]}, {}))
    found = kept.last()
    assert found is not None
    found.tensors["head"].zero_()
    assert torch.equal(found.tensors["embedding"], tied)
    assert torch.equal(found.tensors["row"], tied[1])


def test_a_state_is_taken_when_it_is_given_and_may_hold_any_number(tmp_path: Path) -> None:
    state: dict[str, Any] = {"best": float("-inf"), "curve": [1]}
    with Checkpoints(LOCAL, str(tmp_path)) as kept:
        kept.save(Checkpoint(1, {}, state))
        state["curve"].append(2)
    found = kept.last()
    assert found is not None
    assert found.state == {"best": float("-inf"), "curve": [1]}


def test_a_checkpoint_is_a_plain_safetensors_file(tmp_path: Path) -> None:
    mixed = {"half": torch.ones(3, dtype=torch.float16), "wide": torch.ones(2), "flag": torch.tensor(True)}
    with Checkpoints(LOCAL, str(tmp_path)) as kept:
        kept.save(Checkpoint(7, mixed, {"seed": 5}))
    path = tmp_path / last_name(7)
    read = safetensors.torch.load_file(path)
    assert {name: bits(tensor) for name, tensor in read.items()} == {name: bits(t) for name, t in mixed.items()}
    assert all(tensor.data_ptr() % tensor.element_size() == 0 for tensor in read.values()), "mapped as they lie"
    with safetensors.safe_open(path, framework="pt") as file:
        about = file.metadata()
    assert (about["step"], json.loads(about["state"])) == ("7", {"seed": 5})


@pytest.mark.parametrize("storage", ["local", "subtree", "memory"])
def test_any_file_system_keeps_them(tmp_path: Path, storage: str) -> None:
    memory = fs.PyFileSystem(fs.FSSpecHandler(MemoryFileSystem()))
    files, folder = {
        "local": (LOCAL, f"{tmp_path}/run/checkpoints"),
        "subtree": (fs.SubTreeFileSystem(str(tmp_path), LOCAL), "run/checkpoints"),
        "memory": (fs.SubTreeFileSystem("/kept", memory), "run/checkpoints"),
    }[storage]
    kept = Checkpoints(files, folder)
    assert kept.last() is None
    assert kept.best() is None
    for step in (10, 20, 30):
        kept.save_best(at_step(step + 1))
        kept.save(at_step(step))
        kept.wait()
    fresh = Checkpoints(files, folder)
    assert (step_of(fresh.last()), step_of(fresh.best())) == (30, 31)
    assert children(files, folder) == ["best-000000031.safetensors", last_name(20), last_name(30)]
    assert (kept.problems, fresh.problems) == (0, 0)


def test_a_step_that_is_saved_again_is_replaced(tmp_path: Path) -> None:
    kept = saved(tmp_path, 10, 20)
    kept.save(Checkpoint(20, {"new": torch.ones(1)}, {}))
    found = kept.last()
    assert found is not None
    assert list(found.tensors) == ["new"]
    assert names(tmp_path) == [last_name(10), last_name(20)]


def test_a_training_that_was_rolled_back_has_no_later_checkpoints(tmp_path: Path) -> None:
    kept = saved(tmp_path, 10, 20, 30, 25)
    assert step_of(kept.last()) == 25
    assert names(tmp_path) == [last_name(20), last_name(25)]
    for step in (31, 26):
        kept.save_best(at_step(step))
        kept.wait()
    assert step_of(kept.best()) == 26


def flip(place: Callable[[bytes], int]) -> Callable[[bytes], bytes]:
    def damage(data: bytes) -> bytes:
        changed = bytearray(data)
        changed[place(data)] ^= 4
        return bytes(changed)

    return damage


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "torn in the length": lambda data: data[:5],
    "torn in the header": lambda data: data[:60],
    "torn in the body": lambda data: data[:-100],
    "one byte short": lambda data: data[:-1],
    "one byte long": lambda data: data + b"\0",
    "zeros": lambda data: bytes(len(data)),
    "flipped in the length": flip(lambda data: 1),
    "flipped in a name": flip(lambda data: data.index(b"weight")),
    "flipped in the step": flip(lambda data: data.index(b'"step": "') + 9),
    "flipped in the state": flip(lambda data: data.index(b"position")),
    "flipped in the digest": flip(lambda data: data.index(b'"sha256": "') + 20),
    "flipped in the body": flip(lambda data: len(data) - 50),
    "foreign": lambda data: safetensors.torch.save({"weight": torch.ones(3)}, {"format": "pt"}),
    "a list": lambda data: (2).to_bytes(8, "little") + b"[]",
    "text": lambda data: b"not a checkpoint at all, only some text",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_one_is_set_aside_and_the_one_before_is_used(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    saved(tmp_path, 10, 20)
    victim = tmp_path / last_name(20)
    victim.write_bytes(DAMAGES[damage](victim.read_bytes()))
    kept = Checkpoints(LOCAL, str(tmp_path))
    assert step_of(kept.last()) == 10
    assert caplog.text.count("is set aside") == 1
    assert names(tmp_path) == [last_name(10), f"{last_name(20)}.corrupt"]
    kept.save(at_step(20))
    assert step_of(kept.last()) == 20


def test_no_byte_of_a_file_can_change_unnoticed(tmp_path: Path) -> None:
    kept = saved(tmp_path, 1)
    path = tmp_path / last_name(1)
    data = path.read_bytes()
    for place in range(len(data)):
        changed = bytearray(data)
        changed[place] ^= 1 << place % 8
        path.write_bytes(changed)
        assert kept.last() is None, f"bit {place % 8} of byte {place}"


def test_a_format_of_another_version_is_not_guessed_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    saved(tmp_path, 10)
    with monkeypatch.context() as later:
        later.setattr(module, "_FORMAT", "2")
        saved(tmp_path, 20)
    assert step_of(Checkpoints(LOCAL, str(tmp_path)).last()) == 10
    assert "format: got '2', allowed '1'" in caplog.text


def test_without_a_usable_one_training_starts_anew_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kept = saved(tmp_path, 10, 20)
    kept.save_best(at_step(10))
    kept.wait()
    for path in tmp_path.iterdir():
        path.write_bytes(path.read_bytes()[:-1])
    assert kept.last() is None
    assert "no last one is readable; training starts without them" in caplog.text
    assert kept.best() is None
    assert "no best one is readable" in caplog.text
    caplog.clear()
    assert kept.last() is None
    assert not caplog.text, "it is said once: what was set aside is not there any more"


def test_other_files_in_the_folder_are_left_alone_and_drafts_of_the_killed_are_not(tmp_path: Path) -> None:
    others = ["notes.txt", "last-12.safetensors", ".hidden.tmp", "best-abcdefghi.safetensors"]
    for name in (*others, f".{last_name(5)}.123-abc.tmp"):
        (tmp_path / name).write_bytes(b"something else")
    kept = saved(tmp_path, 10, 20, 30)
    assert step_of(kept.last()) == 30
    assert names(tmp_path) == sorted([*others, last_name(20), last_name(30)])


class Storage(fs.FileSystemHandler):
    """A real folder in front of which something happens: `before(what, path)` may wait, note or raise."""

    def __init__(self, before: Callable[[str, str], None]):
        self.before = before

    def _do(self, what: str, *args: Any, **options: Any) -> Any:
        self.before(what, str(args[0]))
        return getattr(LOCAL, what)(*args, **options)

    get_type_name = lambda self: "before"  # noqa: E731
    normalize_path = lambda self, path: path  # noqa: E731
    get_file_info = lambda self, paths: self._do("get_file_info", paths)  # noqa: E731
    get_file_info_selector = lambda self, selector: self._do("get_file_info", selector)  # noqa: E731
    create_dir = lambda self, path, recursive: self._do("create_dir", path, recursive=recursive)  # noqa: E731
    delete_dir = lambda self, path: self._do("delete_dir", path)  # noqa: E731
    delete_file = lambda self, path: self._do("delete_file", path)  # noqa: E731
    move = lambda self, source, target: self._do("move", source, target)  # noqa: E731
    open_input_stream = lambda self, path: self._do("open_input_stream", path)  # noqa: E731
    open_input_file = lambda self, path: self._do("open_input_file", path)  # noqa: E731
    open_output_stream = lambda self, path, metadata: self._do("open_output_stream", path)  # noqa: E731
    copy_file = open_append_stream = delete_dir_contents = delete_root_dir_contents = lambda self, *_: None


def behind(folder: Path, before: Callable[[str, str], None]) -> Checkpoints:
    return Checkpoints(fs.PyFileSystem(Storage(before)), str(folder))


def test_saving_never_waits_and_the_newest_wins(tmp_path: Path) -> None:
    begun, gate, written = threading.Event(), threading.Event(), []

    def hold(what: str, path: str) -> None:
        if what == "open_output_stream":
            written.append(re.search(r"(last|best)-0*(\d+)", path).group())  # type: ignore[union-attr]
            begun.set()
            assert gate.wait(60)

    kept = behind(tmp_path, hold)
    kept.save(at_step(1))
    assert begun.wait(60)
    for step in (2, 3, 4):
        kept.save(at_step(step))
        kept.save_best(at_step(step + 10))
    kept.save(at_step(5))
    assert len(written) == 1, "storage holds the first one, and all the others were given meanwhile"
    gate.set()
    kept.close()
    kept.close()
    assert [name.replace("0", "") for name in written] == ["last-1", "best-14", "last-5"]
    assert not [thread for thread in threading.enumerate() if thread.name == "graft-checkpoints" and thread.is_alive()]


def test_no_kind_starves_the_other_and_a_best_one_comes_before_the_last_one_that_knows_it(tmp_path: Path) -> None:
    written: list[str] = []

    def give_more(what: str, path: str) -> None:
        if what != "open_output_stream":
            return
        written.append(path.rpartition("/")[2][1:5])
        if len(written) < 8:
            kept.save_best(at_step(len(written)))
            kept.save(at_step(len(written)))

    kept = behind(tmp_path, give_more)
    kept.save_best(at_step(0))
    kept.wait()
    assert written == ["best", *["best", "last"] * 4]


def test_a_storage_that_refuses_stops_nothing_and_is_reported_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    refused: list[type[Exception]] = [OSError]

    def refuse(what: str, _: str) -> None:
        if refused and what == "move":
            raise refused[0](errno.ENOSPC, "No space left on device")

    kept = behind(tmp_path, refuse)
    with caplog.at_level(logging.WARNING):
        for step in (1, 2):
            kept.save(at_step(step))
            kept.wait()
    assert kept.problems == 2
    assert caplog.text.count("training goes on; what a kill loses grows") == 1
    assert "No space left" in caplog.text
    assert names(tmp_path) == [], "no draft is left behind"
    refused.clear()
    kept.save(at_step(3))
    assert step_of(kept.last()) == 3
    assert kept.problems == 2


def test_a_storage_that_deletes_nothing_still_takes_everything(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / f".{last_name(5)}.123-abc.tmp").write_bytes(b"of a killed one")

    def refuse(what: str, _: str) -> None:
        if what == "delete_file":
            raise OSError(errno.EACCES, "Permission denied")

    kept = behind(tmp_path, refuse)
    for step in (1, 2, 3):
        kept.save_best(at_step(step))
        kept.save(at_step(step))
        kept.wait()
    assert (step_of(kept.last()), step_of(kept.best())) == (3, 3)
    assert kept.problems == 5, "the draft; best 1 twice, best 2, last 1"
    assert caplog.text.count("cannot be deleted") == 1


def test_an_error_of_a_storages_own_library_stops_nothing_and_shows_where_it_comes_from(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class OwnError(Exception):
        """As cloud libraries raise them: not an OSError."""

    trouble = [True]

    def refuse(what: str, _: str) -> None:
        if trouble and what == "open_output_stream":
            raise OwnError("token expired")

    kept = behind(tmp_path, refuse)
    kept.save(at_step(1))
    kept.wait()
    assert kept.problems == 1
    assert "Traceback" in caplog.text
    assert "token expired" in caplog.text
    trouble.clear()
    kept.save(at_step(2))
    assert step_of(kept.last()) == 2


@pytest.mark.parametrize("what", ["open_input_file", "get_file_info"])
@pytest.mark.parametrize("own", [False, True])
def test_a_storage_that_does_not_answer_for_a_moment_is_asked_again(
    what: str, own: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class OwnError(Exception):
        """As cloud libraries raise them: not an OSError."""

    monkeypatch.setattr("graft.training.checkpoints.RETRY_SECONDS", (0.0, 0.0))
    saved(tmp_path, 10, 20)
    trouble = [OwnError("later") if own else OSError(errno.ETIMEDOUT, "Connection timed out")] * 2

    def refuse(asked: str, _: str) -> None:
        if trouble and asked == what:
            raise trouble.pop()

    assert step_of(behind(tmp_path, refuse).last()) == 20
    assert names(tmp_path) == [last_name(10), last_name(20)], "nothing is set aside"


@pytest.mark.parametrize("what", ["open_input_file", "get_file_info"])
def test_one_that_does_not_answer_at_all_is_an_error_and_nothing_is_given_up(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("graft.training.checkpoints.RETRY_SECONDS", (0.0, 0.0))
    saved(tmp_path, 10, 20)

    def refuse(asked: str, _: str) -> None:
        if asked == what:
            raise OSError(errno.EIO, "Input/output error")

    with pytest.raises(StoreError, match="Input/output error; run the same again"):
        behind(tmp_path, refuse).last()
    assert names(tmp_path) == [last_name(10), last_name(20)]


def test_a_refused_best_one_is_written_later_and_no_last_one_speaks_of_it_before(tmp_path: Path) -> None:
    refused = ["best-000000002"]

    def refuse(what: str, path: str) -> None:
        if refused and what == "move" and refused[0] in path:
            raise OSError(errno.ENOSPC, "No space left on device")

    kept = behind(tmp_path, refuse)
    for step in (1, 2, 3):
        if step < 3:
            kept.save_best(at_step(step))
        kept.save(at_step(step))
        kept.wait()
        if step == 2:
            assert (step_of(kept.last()), step_of(kept.best())) == (1, 1)
            refused.clear()
    assert (step_of(kept.last()), step_of(kept.best())) == (3, 2)


@pytest.mark.parametrize(
    ("tensor", "state", "message"),
    [
        (torch.ones(2, dtype=torch.complex64), {}, "tensors.w: got torch.complex64.*allowed"),
        (torch.ones(2, device="meta"), {}, "on meta"),
        (torch.eye(2).to_sparse(), {}, "torch.sparse_coo"),
        (torch.ones(2), {"rate": torch.ones(1)}, "state: .*Tensor.*plain JSON"),
    ],
)
def test_what_no_checkpoint_can_hold_is_refused_when_it_is_given(
    tmp_path: Path, tensor: torch.Tensor, state: dict[str, Any], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        Checkpoints(LOCAL, str(tmp_path)).save(Checkpoint(1, {"w": tensor}, state))


def run_apart(code: str, *args: str) -> str:
    """What a process of its own says that runs `code` after this module's definitions."""
    here = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\nfrom test_checkpoints import *\n"
    done = subprocess.run([sys.executable, "-c", here + code, *args], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


KILLED_OFTEN = """
import mmap, os, random, signal, time
torch.set_num_threads(1)
folder, chance, said = sys.argv[1], random.Random(0), mmap.mmap(-1, 8)
for kill in range(int(sys.argv[2])):
    before, child = said[:8], os.fork()
    if not child:
        kept = Checkpoints(LOCAL, folder)
        begin = kept.last()
        for step in range(begin.step + 1 if begin else 1, 10**9):
            kept.save_best(at_step(step, 300_000))
            kept.save(at_step(step, 300_000))
            if step % 3 == 0:
                kept.wait()
                assert kept.problems == 0
                said[:8] = step.to_bytes(8, "little")
    # Half of them are killed as they begin, half while they go on.
    while kill % 2 and said[:8] == before and os.waitpid(child, os.WNOHANG) == (0, 0):
        time.sleep(0.0005)
    time.sleep(chance.uniform(0.0, 0.02))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    reader, written = Checkpoints(LOCAL, folder), int.from_bytes(said[:8], "little")
    last, best = reader.last(), reader.best()
    if written:
        assert is_whole(last) and last.step >= written, (kill, written, last)
        assert is_whole(best) and best.step >= last.step, "a last one speaks of a best one that is not there"
        assert len(last.tensors["weight"]) == 300_000
print(written)
"""


@pytest.mark.parametrize("kills", [20, pytest.param(500, marks=pytest.mark.long)])
def test_killed_at_any_instant_what_was_written_stays(tmp_path: Path, kills: int) -> None:
    written = int(run_apart(KILLED_OFTEN, str(tmp_path), str(kills)))
    assert written >= 3 * kills // 2
    assert not [name for name in names(tmp_path) if name.endswith(".corrupt")]
    drafts = [name for name in names(tmp_path) if name.endswith(".tmp")]
    kept = Checkpoints(LOCAL, str(tmp_path))
    found = kept.last()
    assert found is not None
    kept.save(at_step(found.step + 1))
    kept.wait()
    assert not [name for name in names(tmp_path) if name in drafts]


FULL = """
import resource
logging.basicConfig()
kept = Checkpoints(LOCAL, sys.argv[1])
kept.save(at_step(1))
kept.wait()
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, resource.RLIM_INFINITY))
for step in (2, 3):
    kept.save(at_step(step, 100_000))
    kept.wait()
assert kept.problems == 2
assert step_of(kept.last()) == 1
assert names(Path(sys.argv[1])) == [last_name(1)]
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
kept.save(at_step(4, 100_000))  # nobody waits for it
"""


def test_files_that_may_not_grow_cost_a_checkpoint_and_the_end_of_a_process_costs_none(tmp_path: Path) -> None:
    said = run_apart(FULL, str(tmp_path))
    assert said.count("training goes on") == 1
    assert "free some space or give another --storage" in said
    assert step_of(Checkpoints(LOCAL, str(tmp_path)).last()) == 4
