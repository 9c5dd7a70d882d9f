"""The launcher, the Slurm script and the image of cluster/: what their tools take, closed, and built from what is here.

Each check gives the faults it finds; each is shown to find those of a file that was spoilt.
"""

import fnmatch
import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import click
import jsonschema
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
CLUSTER = ROOT / "cluster"
LAUNCHER = CLUSTER / "vm" / "launcher.yaml"
SLURM = CLUSTER / "slurm" / "train.sbatch"
DOCKERFILE = CLUSTER / "Dockerfile"


def options(command: click.Command) -> set[str]:
    return {name for parameter in command.params for name in parameter.opts + parameter.secondary_opts}


def ray_start() -> click.Command:
    from ray.scripts.scripts import start

    return start


# -- Ray's launcher ----------------------------------------------------------------------------------------------------


def start_faults(command: str, wanted: set[str]) -> list[str]:
    """What is wrong with a shell command that starts Ray on a machine."""
    before, _, after = command.partition("/ray start ")
    given = {word.split("=")[0] for word in shlex.split(after)}
    faults = [f"ray start has no {word}" for word in sorted(given - options(ray_start()))]
    faults += [f"{word} is missing" for word in sorted(wanted - set(shlex.split(after)))]
    return faults + [f"RAY_AUTH_MODE=token is missing: {before}"] * ("RAY_AUTH_MODE=token" not in shlex.split(before))


def node_faults(name: str, node: dict[str, Any]) -> list[str]:
    config = node["node_config"]
    rules = {
        # Ray's own group takes SSH from 0.0.0.0/0, whatever provider.security_group adds to it.
        "SecurityGroupIds": bool(config.get("SecurityGroupIds")),
        # Ray's own role may do anything with EC2 and S3.
        "IamInstanceProfile": bool(config.get("IamInstanceProfile")),
        "MetadataOptions": config.get("MetadataOptions") == {"HttpTokens": "required"},
        "Encrypted": all(disk["Ebs"].get("Encrypted") for disk in config.get("BlockDeviceMappings", [{"Ebs": {}}])),
        "ImageId": config.get("ImageId", "").startswith("ami-"),
    }
    return [f"{name}: {rule}" for rule, kept in rules.items() if not kept]


def launcher_faults(config: dict[str, Any]) -> list[str]:
    from ray.autoscaler._private.util import prepare_config, validate_config

    try:
        validate_config(prepare_config(json.loads(json.dumps(config))))
    except (jsonschema.ValidationError, ValueError, KeyError) as error:
        return [f"Ray refuses it: {error}".splitlines()[0]]
    faults = [fault for name, node in config["available_node_types"].items() for fault in node_faults(name, node)]
    faults += start_faults(config["head_start_ray_commands"][-1], {"--head", "--dashboard-host=127.0.0.1"})
    faults += start_faults(config["worker_start_ray_commands"][-1], {"--address=$RAY_HEAD_IP:6379"})
    token = "~/.ray/auth_token"
    rules = {
        "the token travels": config["file_mounts"].get(token) == token,
        "the token is read by its owner alone": f"chmod 600 {token}" in config["setup_commands"][0],
        "packages are pinned": all("--constraint constraints.txt" in word for word in pip(config["setup_commands"])),
        "a node that is not needed is ended": config["provider"]["cache_stopped_nodes"] is False,
        "no port is opened": "security_group" not in config["provider"],
        # What is left out comes from Ray's defaults, which install a nightly wheel and open the dashboard.
        "nothing is left to Ray's defaults": {key for key in config if key.endswith("_commands")} >= COMMANDS,
    }
    return faults + [rule for rule, kept in rules.items() if not kept]


COMMANDS = {
    f"{name}_commands"
    for name in ("setup", "head_setup", "worker_setup", "head_start_ray", "worker_start_ray", "initialization")
}


def pip(commands: list[str]) -> list[str]:
    return [command for command in commands if re.search(r"\bpip install\b", command)]


def launcher() -> dict[str, Any]:
    """Through JSON, so that what YAML's aliases share can be changed in one place."""
    return json.loads(json.dumps(yaml.safe_load(LAUNCHER.read_text())))


def test_the_launcher_is_what_ray_takes_and_closed() -> None:
    config = launcher()
    assert not launcher_faults(config)
    mounted = [Path(local) for local in config["file_mounts"].values() if not local.startswith("~")]
    assert [path for path in mounted if not (ROOT / path).exists()] == []
    assert set(config["rsync_filter"]) <= {path.name for path in ROOT.iterdir()}


@pytest.mark.parametrize(
    ("place", "value", "fault"),
    [
        ("idle_minutes", 5, "Ray refuses it: Additional properties"),
        ("head_node_type", "boss", "Ray refuses it: `head_node_type`"),
        ("available_node_types.cpu.max_worker", 3, "Ray refuses it: Additional properties"),
        ("available_node_types.head.node_config.SecurityGroupIds", [], "head: SecurityGroupIds"),
        ("available_node_types.cpu.node_config.MetadataOptions.HttpTokens", "optional", "cpu: MetadataOptions"),
        ("available_node_types.gpu.node_config.IamInstanceProfile", {}, "gpu: IamInstanceProfile"),
        ("available_node_types.gpu.node_config.BlockDeviceMappings", [{"Ebs": {}}], "gpu: Encrypted"),
        ("provider.security_group", {"GroupName": "graft"}, "no port is opened"),
        ("provider.cache_stopped_nodes", True, "a node that is not needed is ended"),
        ("file_mounts", {}, "the token travels"),
        ("setup_commands", ["true", "pip install torch"], "packages are pinned"),
        (
            "head_start_ray_commands",
            ["~/v/ray start --head --dashboard-host=127.0.0.1"],
            "RAY_AUTH_MODE=token is missing",
        ),
        (
            "head_start_ray_commands",
            ["RAY_AUTH_MODE=token ~/v/ray start --head"],
            "--dashboard-host=127.0.0.1 is missing",
        ),
        ("worker_start_ray_commands", ["RAY_AUTH_MODE=token ~/v/ray start --adress=a:1"], "ray start has no --adress"),
    ],
)
def test_a_spoilt_launcher_is_found(place: str, value: Any, fault: str) -> None:
    config = launcher()
    *way, last = place.split(".")
    at = config
    for step in way:
        at = at[step]
    at[last] = value
    assert any(fault in found for found in launcher_faults(config)), launcher_faults(config)


# -- Slurm (test_slurm.py runs it) -------------------------------------------------------------------------------------


def slurm_faults(text: str) -> list[str]:
    from ray.scripts.symmetric_run import symmetric_run

    directives = dict(re.findall(r"(?m)^#SBATCH --([a-z-]+)=?(.*)", text))
    needed = {"exclusive": "", "ntasks-per-node": "1", "requeue": ""}
    faults = [f"#SBATCH --{name}" for name, value in needed.items() if directives.get(name) != value]
    command = re.search(r"ray symmetric-run (.*?) -- ", text.replace("\\\n", " "))
    if command is None:
        return [*faults, "no ray symmetric-run"]
    given = {word.split("=")[0] for word in shlex.split(command[1])}
    taken = options(symmetric_run) | (options(ray_start()) - {"--head", "--node-ip-address", "--port", "--block"})
    faults += [f"ray symmetric-run has no {word}" for word in sorted(given - taken)]
    return faults + ["the dashboard is open"] * ("--dashboard-host=127.0.0.1" not in command[1])


def test_the_slurm_script_is_bash_and_says_what_ray_knows() -> None:
    subprocess.run(["bash", "-n", str(SLURM)], check=True)
    assert not slurm_faults(SLURM.read_text())


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("--min-nodes=", "--nodes-min=", "ray symmetric-run has no --nodes-min"),
        ("--address=", "--head --address=", "ray symmetric-run has no --head"),
        ("--dashboard-host=127.0.0.1", "--dashboard-host=0.0.0.0", "the dashboard is open"),
        ("#SBATCH --exclusive", "##SBATCH --exclusive", "#SBATCH --exclusive"),
        ("#SBATCH --ntasks-per-node=1", "#SBATCH --ntasks-per-node=2", "#SBATCH --ntasks-per-node"),
    ],
)
def test_a_spoilt_slurm_script_is_found(old: str, new: str, fault: str) -> None:
    text = SLURM.read_text()
    assert old in text
    assert slurm_faults(re.sub(f"(?m)^{old}|(?<= ){old}", new, text)) == [fault]


# -- the image ---------------------------------------------------------------------------------------------------------


def instructions(text: str) -> list[tuple[str, str]]:
    text = re.sub(r"\\\n", " ", re.sub(r"(?m)^#.*\n", "", text))
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in text.splitlines() if line)]


def copied(text: str) -> list[str]:
    return [source for word, rest in instructions(text) if word == "COPY" for source in rest.split()[:-1]]


def sent(path: str) -> bool:
    """Whether .dockerignore lets a path of the repository into the build; the last line that fits decides."""
    verdict = True
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        pattern = line.lstrip("!")
        anywhere = pattern.startswith("**/") and fnmatch.fnmatch(Path(path).name, pattern[3:])
        if not line.startswith("#") and (anywhere or fnmatch.fnmatch(path.split("/")[0], pattern)):
            verdict = line.startswith("!")
    return verdict


def image_faults(text: str) -> list[str]:
    steps = instructions(text)
    user = next((rest for word, rest in reversed(steps) if word == "USER"), "root")
    installs = [part for word, rest in steps if word == "RUN" for part in pip(rest.split("&&"))]
    faults = [f"{word} {rest}" for word, rest in steps if word in ("EXPOSE", "ADD", "VOLUME")]
    faults += [
        f"FROM {rest}" for word, rest in steps if word == "FROM" and not re.fullmatch(r"python:3\.11-slim", rest)
    ]
    faults += [f"not pinned: {part}" for part in installs if "--constraint constraints.txt" not in part]
    faults += [f"COPY {path}: not there" for path in copied(text) if not (ROOT / path).exists() or not sent(path)]
    return faults + [f"USER {user}"] * (not re.fullmatch(r"[1-9]\d*:[1-9]\d*", user)) + ["no pip"] * (not installs)


def test_the_image_is_pinned_not_root_and_publishes_no_port() -> None:
    assert not image_faults(DOCKERFILE.read_text())
    assert not [path for path in (".git", "demo", ".venv", "platform/graft/__pycache__") if sent(path)]


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("USER 1000:1000\n", "", "USER root"),
        ("USER 1000:1000\n", "USER graft\n", "USER graft"),
        ("USER 1000:1000\n", "USER 1000:1000\nUSER root\n", "USER root"),
        ("WORKDIR", "EXPOSE 8265\nWORKDIR", "EXPOSE 8265"),
        ("3.11-slim", "latest", "FROM python:latest"),
        ("COPY jobs", "COPY job", "COPY job: not there"),
        ("COPY jobs", "COPY tests", "COPY tests: not there"),
        ('--constraint constraints.txt ".[demo]"', '".[demo]"', 'not pinned: pip install ".[demo]" '),
    ],
)
def test_a_spoilt_image_is_found(old: str, new: str, fault: str) -> None:
    text = DOCKERFILE.read_text()
    assert old in text
    assert image_faults(text.replace(old, new)) == [fault]


def test_what_the_image_copies_is_enough_to_install_graft_and_run_a_job(tmp_path: Path) -> None:
    pytest.importorskip("setuptools")
    for source in copied(DOCKERFILE.read_text()):
        copy = shutil.copytree if (ROOT / source).is_dir() else shutil.copy
        copy(ROOT / source, tmp_path / source)
    build = ["-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", "wheel", "."]
    subprocess.run([sys.executable, *build], cwd=tmp_path, check=True, capture_output=True)
    shutil.rmtree(tmp_path / "platform")
    (wheel,) = (tmp_path / "wheel").iterdir()
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    said = subprocess.run(
        [sys.executable, "jobs/run.py", "jobs/specs/quickstart.yaml", "--dry-run"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path / "site"), "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "carry it out with: graft sweep" in said.stderr, said.stderr
    packed = {path.relative_to(tmp_path / "site").as_posix() for path in (tmp_path / "site" / "graft").rglob("*.*")}
    here = {path.relative_to(ROOT / "platform").as_posix() for path in (ROOT / "platform" / "graft").rglob("*.*")}
    assert {name for name in here if not name.endswith(".pyc")} <= packed


# -- the page ----------------------------------------------------------------------------------------------------------


def test_the_page_names_what_is_there_and_the_versions_of_the_project() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    page = (CLUSTER / "README.md").read_text()
    files = [path for path in CLUSTER.rglob("*") if path.is_file()]
    for path in files:
        assert path.name == "README.md" or path.relative_to(ROOT).as_posix() in page, path
        assert set(re.findall(r"\bgraft:(\d[\w.]*)", path.read_text())) <= {version}, path
    for named in re.findall(r"\b(?:cluster|jobs)/[\w./-]+\w", page):
        assert (ROOT / named).exists(), named
