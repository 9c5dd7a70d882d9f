"""The command line as a user meets it: exit codes, one-line errors, and what ends up in the folder.

What depends on the process (its end, its signals, its exit code) is tested on one of its own; the rest in this one,
which has imported already what a new one takes seconds for.
"""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pyarrow import csv, parquet

from graft import cli

GRAFT = [sys.executable, "-m", "graft.cli"]

SPEC = """
name: topics
task: {name: file, path: rows.csv, text: text, label: topic}
models: {encoder: {source: MODEL}}
method: {name: probe, classifier: centroid}
regime: {examples: 12}
"""

SWEEP = """
name: numbers
task: {name: digits}
method: {name: probe}
sweep:
  axes: {method.classifier: [majority, centroid, ridge], regime.examples: [16, 64]}
  seeds: 3
"""


def graft(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*GRAFT, *words], cwd=cwd, capture_output=True, text=True, timeout=300, check=False)


Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def here(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """Carries out a command line in this process, in the test's folder."""
    monkeypatch.chdir(tmp_path)

    def carry_out(*words: str) -> subprocess.CompletedProcess[str]:
        capsys.readouterr()
        code = cli.carry_out(words)
        said = capsys.readouterr()
        return subprocess.CompletedProcess(words, code, said.out, said.err)

    return carry_out


@pytest.fixture
def desk(tmp_path: Path, tiny_bert: Path) -> Path:
    """A folder with a spec and its rows."""
    lines = [f"a text about {topic} number {i},{topic}" for i in range(30) for topic in ("rain", "bread")]
    (tmp_path / "rows.csv").write_text("text,topic\n" + "\n".join(lines) + "\n")
    (tmp_path / "spec.yaml").write_text(SPEC.replace("MODEL", str(tiny_bert)))
    (tmp_path / "sweep.yaml").write_text(SWEEP)
    return tmp_path


def test_help_is_quick_and_enough(tmp_path: Path) -> None:
    graft("--help", cwd=tmp_path)  # compiles the bytecode
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    answer = graft("--help", cwd=tmp_path)
    user_seconds = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before
    for command in ("validate", "run", "sweep", "report", "compare", "predict", "ls", "show", "doctor"):
        assert command in answer.stdout
        assert graft(command, "--help", cwd=tmp_path).returncode == 0
    # Processor time, not the clock: it stands for what --help imports.
    assert user_seconds < 0.5


def test_the_process_ends_without_being_unloaded_and_keeps_its_exit_code(tmp_path: Path) -> None:
    # Threads of libraries abort a process that is being unloaded: that is what made finished runs end with code 134.
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "class Module:\n"
        "    def __del__(self): print('unloaded', file=sys.__stderr__)\n"
        "sys.modules['held'] = Module()\n"
    )
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    plain = subprocess.run([sys.executable, "-c", ""], env=environment, capture_output=True, text=True, check=True)
    assert "unloaded" in plain.stderr
    for words, code in ((["--help"], 0), (["ls", "--no-such-option"], 2), (["run", "missing.yaml"], 2)):
        answer = subprocess.run([*GRAFT, *words], env=environment, capture_output=True, text=True, check=False)
        assert answer.returncode == code, answer.stderr
        assert "unloaded" not in answer.stderr
        assert answer.stdout or answer.stderr  # nothing that was printed is lost


def test_run_report_predict_ls_show_from_an_empty_folder(desk: Path, here: Command) -> None:
    ran = graft("run", "spec.yaml", cwd=desk)
    assert ran.returncode == 0, ran.stderr
    assert "accuracy" in ran.stdout
    (run,) = (desk / "runs").iterdir()
    assert here("run", "spec.yaml").stdout == ran.stdout

    (desk / "new.csv").write_text("text\na text about rain\n\na text about bread\n".replace("\n\n", "\n"))
    answered = graft("predict", run.name, "new.csv", "-o", "out.csv", cwd=desk)
    assert answered.returncode == 0, answered.stderr
    table = csv.read_csv(desk / "out.csv")
    assert table.column_names[:3] == ["id", "text", "prediction"]
    assert here("predict", str(run), "new.csv", "-o", "out.jsonl").returncode == 0
    lines = [json.loads(line) for line in (desk / "out.jsonl").read_text().splitlines()]
    assert [line["prediction"] for line in lines] == table["prediction"].to_pylist()

    listed = here("ls")
    assert run.name in listed.stdout
    assert "done" in listed.stdout
    assert "embed(" in here("ls", "--store").stdout
    shown = here("show", run.name)
    assert "classifier: centroid" in shown.stdout
    assert "accuracy" in shown.stdout
    reported = here("report", ".")
    assert reported.returncode == 0, reported.stderr
    assert (desk / "report.html").exists()


def test_predict_answers_the_test_rows_as_the_run_did(desk: Path, here: Command) -> None:
    here("run", "spec.yaml")
    (run,) = (desk / "runs").iterdir()
    expected = parquet.read_table(run / "predictions.parquet")
    parquet.write_table(expected.select(["id", "text"]), desk / "test.parquet")
    assert here("predict", run.name, "test.parquet", "-o", "out.parquet").returncode == 0
    answers = parquet.read_table(desk / "out.parquet")
    assert answers.select(["id", "prediction"]).equals(expected.select(["id", "prediction"]))


def test_dry_run_and_validate_show_and_run_nothing(desk: Path, here: Command) -> None:
    dry = here("run", "spec.yaml", "regime.examples=14", "--dry-run")
    assert dry.returncode == 0, dry.stderr
    assert "examples: 14" in dry.stdout
    assert "─► embed(" in dry.stdout
    assert "resources" in dry.stdout
    assert here("validate", "spec.yaml").returncode == 0
    assert not (desk / "runs").exists()
    assert "18" in here("validate", "sweep.yaml").stdout


BAD_ROWS = {
    "a.csv": "text,topic\na,x\nb,x\nc,x\nd,x\n",
    "b.csv": "text,topic\na,x\n,y\nc,x\n",
    "c.csv": "id,text,topic\n1,a,x\n1,b,y\n2,c,x\n",
    "d.parquet": "this is no parquet",
}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["spec.yaml", "method.clasifier=ridge"], "did you mean 'classifier'"),
        (["spec.yaml", "regime.examples=many"], "regime.examples"),
        (["nowhere.yaml"], "no such file"),
        (["spec.yaml", "task.path=nowhere.csv"], "no such file"),
        (["spec.yaml", "task.path=d.parquet"], "cannot be read as .parquet"),
        (["spec.yaml", "task.text=txet"], "did you mean 'text'"),
        (["spec.yaml", "task.path=b.csv"], "1 of 3 rows have nothing in 'text', the first is row 2"),
        (["spec.yaml", "task.path=a.csv"], "every row has the label"),
        (["spec.yaml", "task.path=c.csv"], "id '1' is on 2 rows"),
        (["spec.yaml", "models.encoder.source=model-a"], "no weights"),
        (["spec.yaml", "models.encoder.source=model-b"], "safetensors"),
        (["spec.yaml", "models.encoder.source=org/absent"], "no such model; looked in"),
        (["spec.yaml", "regime.examples=1"], "regime.examples is 1, but there are 2 labels"),
        (["spec.yaml", "regime.examples=1000"], "40"),
        (["spec.yaml", "--storage", "s4://nowhere"], "--storage"),
        (["spec.yaml", "--store-limit", "lots"], "--store-limit"),
    ],
)
def test_wrong_input_is_one_line_with_the_cure_and_exit_code_2(
    desk: Path, here: Command, words: list[str], expected: str
) -> None:
    for name, text in BAD_ROWS.items():
        (desk / name).write_text(text)
    for folder, weights in (("model-a", None), ("model-b", "pytorch_model.bin")):
        (desk / folder).mkdir()
        (desk / folder / "config.json").write_text('{"model_type": "bert", "architectures": ["BertModel"]}')
        if weights:
            (desk / folder / weights).write_bytes(b"\x80\x04.")
    answer = here("run", *words)
    assert answer.returncode == 2, answer.stderr
    lines = answer.stderr.strip().splitlines()
    assert len(lines) == 1, answer.stderr
    assert lines[0].startswith("error: ")
    assert expected in lines[0]
    assert list(desk.glob("runs/*")) == []


def test_a_spec_with_a_sweep_is_swept_and_one_without_is_run(desk: Path, here: Command) -> None:
    ran = here("run", "sweep.yaml")
    assert ran.returncode == 2
    assert ran.stderr == "error: sweep.yaml: this spec has a sweep; carry it out with: graft sweep sweep.yaml\n"
    swept = here("sweep", "spec.yaml")
    assert swept.returncode == 2
    assert swept.stderr == "error: spec.yaml: this spec has no sweep; carry it out with: graft run spec.yaml\n"
    dry = here("sweep", "sweep.yaml", "--dry-run")
    assert dry.returncode == 0, dry.stderr
    assert "18 runs" in dry.stdout
    ladder = "sweep={ablations: {ladder: [method.classifier=knn, regime.examples=16]}, seeds: 2}"
    rungs = here("sweep", "sweep.yaml", ladder, "--dry-run").stdout
    assert "ablations  ladder\n           full: 2 runs\n           1 method.classifier=knn: 2 runs\n" in rungs
    assert "6 runs" in rungs
    assert not (desk / "runs").exists()


def test_a_sweep_from_an_empty_folder_and_once_more(desk: Path, here: Command) -> None:
    swept = graft("sweep", "sweep.yaml", cwd=desk)
    assert swept.returncode == 0, swept.stderr
    assert "probe classifier=ridge" in swept.stdout
    (report,) = (desk / "sweeps").glob("*/report.html")
    assert f"report: {report}" in swept.stdout.replace("\n", "")
    again = here("sweep", "sweep.yaml")
    assert again.stdout == swept.stdout
    assert "18 of 18 runs are done already" in again.stderr
    # Nothing is missing, so no cluster is asked for, not even one that is not there.
    assert here("sweep", "sweep.yaml", "--address", "127.0.0.1:1").returncode == 0


@pytest.mark.parametrize(
    ("address", "code", "expected"),
    [
        ("127.0.0.1:1", 1, "no cluster answers here"),
        ("http://127.0.0.1:8265", 2, "give host:port of a head node"),
        ("nowhere", 2, "give host:port of a head node"),
    ],
)
def test_an_address_without_a_cluster_is_one_line(
    desk: Path, here: Command, address: str, code: int, expected: str
) -> None:
    answer = here("sweep", "sweep.yaml", "--address", address)
    assert answer.returncode == code
    (line,) = [line for line in answer.stderr.splitlines() if line.startswith("error: ")]
    assert expected in line
    assert not (desk / "runs").exists()


def test_a_failed_member_is_a_row_and_the_exit_code_says_so(
    desk: Path, here: Command, tiny_llama: Path, ray_cluster: Any
) -> None:
    values = SPEC.replace("method: {name: probe, classifier: centroid}", "").replace("encoder: {source: MODEL}", "")
    sweep = f"""
sweep:
  axes:
    method: [{{name: probe, classifier: majority}}, {{name: icl, num_shots: 12}}]
    models: [{{encoder: {{source: {tiny_llama}}}, base: {{source: {tiny_llama}}}}}]
"""
    (desk / "mixed.yaml").write_text(values + sweep)
    answer = here("sweep", "mixed.yaml")
    assert answer.returncode == 1, answer.stderr
    (folder,) = (desk / "sweeps").iterdir()
    rows = parquet.read_table(folder / "metrics.parquet").to_pylist()
    failed = [row for row in rows if row["status"] == "failed"]
    assert len(failed) == 1
    assert "num_shots" in failed[0]["error"]
    assert "num_shots" in (folder / "report.html").read_text()


@pytest.mark.long
def test_interrupted_it_says_so_and_the_same_command_goes_on(desk: Path) -> None:
    # A shell starts background jobs with the signal ignored, and children inherit that: a user's terminal does not.
    process = subprocess.Popen(
        [*GRAFT, "sweep", "sweep.yaml"],
        cwd=desk,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    while not list(desk.glob("runs/*/metrics.parquet")):
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "goes on" in errors
    assert "Traceback" not in errors
    assert "not done" in graft("ls", cwd=desk).stdout


def test_doctor_finds_this_machine_well(desk: Path) -> None:
    answer = graft("doctor", cwd=desk)
    assert answer.returncode == 0, answer.stdout
    assert "FAIL" not in answer.stdout
    assert "transformers" in answer.stdout
