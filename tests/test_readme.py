"""The README's commands and code, run as a reader would run them."""

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).parent.parent / "README.md"


def blocks(language: str, after: str) -> list[str]:
    """The code blocks of a language in the section under a heading."""
    section = README.read_text(encoding="utf-8").split(f"## {after}\n", 1)[1].split("\n## ", 1)[0]
    return re.findall(rf"```{language}\n(.*?)```", section, re.DOTALL)


def test_sixty_seconds_with_your_own_rows(tmp_path: Path, minilm: str) -> None:
    first, second = blocks("sh", "Sixty seconds with your own rows")
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    commands = f"set -e\n{first.replace('. .venv/bin/activate', '')}\n{second}"
    answer = subprocess.run(
        ["bash", "-c", commands], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert answer.returncode == 0, answer.stderr
    assert "accuracy" in answer.stdout
    answers = (tmp_path / "try" / "answers.csv").read_text().splitlines()
    assert len(answers) == 3
    assert {line.split(",")[2] for line in answers[1:]} <= {'"good"', '"bad"'}
    (python,) = blocks("python", "Sixty seconds with your own rows")
    spoken = subprocess.run(
        [sys.executable, "-c", python], cwd=tmp_path / "try", capture_output=True, text=True, check=False
    )
    assert spoken.returncode == 0, spoken.stderr
    assert "classify(logistic)" in spoken.stdout


@pytest.mark.slow
@pytest.mark.long
def test_the_same_spec_swept_served_and_asked(tmp_path: Path, minilm: str) -> None:
    rows, _ = blocks("sh", "Sixty seconds with your own rows")
    sweep, serve = blocks("sh", "The same spec swept, served and asked")
    rows = rows.replace(". .venv/bin/activate", "").split("graft validate")[0]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    serve = (
        serve.replace("--api-keys", f"--port {port} --api-keys")
        .replace("8000", port)
        .replace("kill %1", f"{sys.executable} ask.py; kill %1; wait")
    )
    (python,) = blocks("python", "The same spec swept, served and asked")
    (tmp_path / "try").mkdir()
    (tmp_path / "try" / "ask.py").write_text(python.replace("8000", port))
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    answer = subprocess.run(
        ["bash", "-c", f"set -e\n{rows}\n{sweep}\n{serve}"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "serve its best arm: graft serve reviews-" in answer.stdout, answer.stderr
    shown = re.search(r'\{"object":"list".*\}', README.read_text(encoding="utf-8"))
    given = re.search(r'\{"object":"list".*\}', answer.stdout)
    assert shown, "the README shows an answer"
    assert given, answer.stdout + answer.stderr
    assert re.search(r"^bad\n\[-?0\.", answer.stdout, re.MULTILINE), answer.stdout + answer.stderr
    said, told = json.loads(given[0]), json.loads(shown[0])
    assert said["data"][0]["scores"] == pytest.approx(told["data"][0]["scores"], abs=1e-3)
    assert said["model"] == told["model"]
    (key,) = (tmp_path / "try" / "key.txt").read_text().split()
    assert key not in (tmp_path / "try" / "keys.json").read_text()


@pytest.mark.long
def test_the_method_of_the_readme_runs_as_a_package_of_its_own(tmp_path: Path, tiny_bert: Path) -> None:
    (code,) = blocks("python", "Adding a method")
    assert len([line for line in code.splitlines() if line.strip()]) < 45
    package = tmp_path / "my_package"
    package.mkdir()
    (package / "prototype.py").write_text(code)
    (package / "__init__.py").touch()
    # What `pip install` writes for the entry point that the README shows.
    (declared,) = blocks("toml", "Adding a method")
    name, target = re.search(r'(\w+) = "(.*)"', declared).groups()  # type: ignore[union-attr]
    installed = tmp_path / "my_package-1.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 1.0\n")
    (installed / "entry_points.txt").write_text(f"[graft.methods]\n{name} = {target}\n")
    rows = "".join(f"a text about {topic} number {i},{topic}\n" for i in range(20) for topic in ("rain", "bread"))
    (tmp_path / "rows.csv").write_text(f"text,label\n{rows}")
    (tmp_path / "spec.yaml").write_text(
        f"""
name: own-method
models: {{encoder: {{source: {tiny_bert}}}}}
task: {{name: file, path: rows.csv, text: text, label: label}}
regime: {{examples: 10}}
method: {{name: prototype, temperature: 0.2}}
sweep: {{axes: {{method.temperature: [0.1, 1.0]}}, seeds: 2}}
"""
    )
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-m", "graft.cli"]
    answer = subprocess.run(
        [*command, "sweep", "spec.yaml"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert answer.returncode == 0, answer.stderr
    assert "prototype temperature=1.0" in answer.stdout
    run = next((tmp_path / "runs").iterdir()).name
    predict = [*command, "predict", run, "rows.csv", "-o", "out.csv"]
    loaded = subprocess.run(predict, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert loaded.returncode == 0, loaded.stderr


@pytest.mark.parametrize("spec", sorted((README.parent / "jobs" / "specs").glob("*.yaml")), ids=lambda path: path.name)
def test_every_shipped_spec_is_valid(spec: Path) -> None:
    from graft.pretraining.recipe import Recipe
    from graft.spec import Experiment
    from graft.sweeps.axes import expand

    assert Recipe.from_yaml(spec) if spec.name.startswith("pretrain-") else expand(Experiment.from_yaml(spec))


def test_every_make_target_of_the_readme_exists() -> None:
    makefile = (README.parent / "Makefile").read_text()
    for target in re.findall(r"\bmake ((?:[a-z-]+ ?)+)", README.read_text()):
        for word in target.split():
            assert re.search(rf"^{word}:", makefile, re.MULTILINE), word
