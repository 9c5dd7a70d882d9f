"""Ray as graft uses it: a cluster started on this machine or joined at an address, always behind a token.

Every process that talks to a cluster authenticates with one shared secret, `~/.ray/auth_token`. Ray itself starts an
open cluster where that file is missing, writes it readable for all, and sends no token from a client that was not
told to: so graft says `token` in every process and makes the file itself.
"""

import logging
import os
import secrets
import socket
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graft.errors import ClusterError, SpecError
from graft.storage import local_root, open_storage

log = logging.getLogger(__name__)

ADDRESS_VARIABLE = "RAY_ADDRESS"
"""Where a job finds the cluster that it runs on; the default of every `--address`."""

OBJECT_STORE_BYTES = 512 * 2**20
"""Shared memory of a cluster started here: it holds the rows of tasks, never models."""

_JOB_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Where Ray tells a job's driver which files the job brought along."""

_CONNECT_SECONDS = 5.0
_QUIET = {"RAY_AUTH_MODE": "token", "RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}


@dataclass(frozen=True)
class Cluster:
    """A Ray cluster that this process is connected to."""

    address: str
    """`host:port` of its control service."""
    dashboard: str | None
    """`http://host:port` of its dashboard; None where it has none."""
    cpus: float
    """Logical CPUs of all nodes."""
    gpus: float
    """GPUs of all nodes."""
    nodes: int
    """Machines (or what plays one) that are alive."""
    local: bool
    """It was started by this process and ends with it."""

    def require(self, cpus: float, what: str) -> None:
        """Refuse at once what would wait for ever.

        Args:
            cpus: logical CPUs that are needed at the same time.
            what: who needs them, for the message: `scaling.workers: 64`.

        Raises:
            SpecError: the cluster has fewer.
        """
        if cpus > self.cpus:
            raise SpecError(
                f"{what} needs {cpus:g} CPUs, the cluster at {self.address} has {self.cpus:g}; ask for less, or join a "
                "larger cluster with --address"
            )


def use_tokens(create: bool = True) -> Path | None:
    """Turn token authentication on for this process and its children; gives the token's file.

    The file is made when it is missing (32 random bytes, mode 0600) and never readable for others. A token in
    `RAY_AUTH_TOKEN`, or a file that `RAY_AUTH_TOKEN_PATH` names, is used as it is.

    Raises:
        ClusterError: there is no token and `create` is false, or the file cannot be written.
    """
    os.environ.update(_QUIET)
    if "ray" in sys.modules:  # it read the variable when it was imported
        import ray

        ray._raylet.Config.initialize("")
    if os.environ.get("RAY_AUTH_TOKEN"):
        return None
    path = _token_path()
    try:
        if not path.exists() or not path.stat().st_size:
            if not create:
                raise ClusterError(f"{path}: no token here; copy the cluster's own to this file (mode 0600)")
            _write_token(path)
        elif stat.S_IMODE(path.stat().st_mode) & 0o077:
            path.chmod(0o600)
    except OSError as error:
        raise ClusterError(f"{path}: the token of Ray's API cannot be kept here: {error}") from error
    return path


def _token_path() -> Path:
    given = os.environ.get("RAY_AUTH_TOKEN_PATH")
    return Path(given) if given else Path.home() / ".ray" / "auth_token"


def _token_source() -> str:
    return "RAY_AUTH_TOKEN" if os.environ.get("RAY_AUTH_TOKEN") else str(_token_path())


def _write_token(path: Path) -> None:
    """A new secret in a file that only its owner reads; of two writers at once the first wins."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(secrets.token_hex(32))
        file.flush()
        os.fsync(file.fileno())
    try:
        if path.exists() and not path.stat().st_size:
            path.unlink()
        os.link(draft, path)
    except FileExistsError:
        pass
    finally:
        draft.unlink()


def connecting(address: str | None) -> str:
    """What `connect` is about to do, for the terminal: it takes seconds."""
    return "starting Ray on this machine" if address is None else f"joining Ray at {address}"


@contextmanager
def connect(address: str | None, name: str) -> Iterator[Cluster]:
    """Join the cluster at `address`, or start one on this machine that ends with the block.

    Args:
        address: `host:port`, `auto` (the one that runs on this machine), or None to start one.
        name: of what is to run: the job's name and namespace in the dashboard.

    Raises:
        ClusterError: nothing answers at the address, or it refuses the token.
        SpecError: the address is not one of a cluster.
    """
    if address is not None:
        _check_address(address)
    use_tokens(create=address is None)
    import ray

    if ray.is_initialized():  # an outer block of this process holds it
        yield _describe(local=address is None)
        return
    try:
        _start(name) if address is None else _join(address, name)
        cluster = _describe(local=address is None)
        log.info("Ray at %s: %g CPUs, dashboard %s", cluster.address, cluster.cpus, cluster.dashboard)
        yield cluster
    finally:
        ray.shutdown()


def _start(name: str) -> None:
    import ray

    # A job's variables would make a cluster of our own join that of the job.
    for variable in (ADDRESS_VARIABLE, _JOB_VARIABLE):
        os.environ.pop(variable, None)
    try:
        ray.init(
            address="local",
            object_store_memory=OBJECT_STORE_BYTES,
            include_dashboard=True,
            dashboard_host="127.0.0.1",
            # The path of a Unix socket has at most 107 characters; a long TMPDIR would break that.
            _temp_dir="/tmp/ray",
            **_options(name),
        )
    except Exception as error:  # Ray raises bare ones, for example where a node takes too long to start
        raise ClusterError(
            f"Ray cannot be started on this machine: {_reason(error)}; if the machine is busy, try again, or join a "
            "cluster with --address"
        ) from error


def _join(address: str, name: str) -> None:
    import ray

    _check_token(address)
    os.environ["RAY_OVERRIDE_JOB_RUNTIME_ENV"] = "1"  # a job's own PYTHONPATH is part of ours
    try:
        ray.init(address=address, runtime_env={"env_vars": _worker_variables()}, **_options(name))
    except ConnectionError as error:
        raise ClusterError(f"--address {address}: no cluster answers here: {_reason(error)}") from error
    except (RuntimeError, OSError, ValueError, ray.exceptions.RayError) as error:
        raise ClusterError(f"--address {address}: the cluster refuses: {_reason(error)}") from error


def _options(name: str) -> dict[str, Any]:
    import ray

    job = ray.job_config.JobConfig(metadata={"job_name": name}, ray_namespace=name)
    return {"job_config": job, "log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": True}


def _worker_variables() -> dict[str, str]:
    """What a worker on another node needs to find this graft and its models, and to stay behind the token."""
    own = Path(__file__).resolve().parents[1]
    models = {name: os.environ[name] for name in ("GRAFT_MODELS",) if name in os.environ}
    if "site-packages" in own.parts:  # installed: so it has to be on every node
        return _QUIET | models
    given = [Path(path).resolve() for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    paths = dict.fromkeys([own, *given])
    return {**_QUIET, **models, "PYTHONPATH": os.pathsep.join(map(_on_any_node, paths))}


def _on_any_node(path: Path) -> str:
    """A path that means the same on every node.

    What a job brings along is unpacked on each node at a place of its own, where its workers start.
    """
    brought = "working_dir" in os.environ.get(_JOB_VARIABLE, "")
    here = Path.cwd()
    return str(path.relative_to(here)) if brought and path.is_relative_to(here) else str(path)


def _check_address(address: str) -> None:
    """Ask the port whether anything listens, before Ray tries for half a minute."""
    if address == "auto":
        return
    host, mark, port = address.rpartition(":")
    if "://" in address or not mark or not port.isdigit():
        raise SpecError(
            f"--address {address}: give host:port of a head node (its port is 6379 by default), auto for the cluster "
            "of this machine, or leave it out to start one"
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise ClusterError(
            f"--address {address}: no cluster answers here ({error}); start one with cluster/local.sh up, or leave "
            "--address out to start one on this machine"
        ) from error


def _check_token(address: str) -> None:
    """Ask the head once whether it takes our token.

    measured: Ray itself tries a wrong token for 20 seconds, and a port that is not a head's for two minutes.
    """
    import grpc
    from ray._private.grpc_utils import init_grpc_channel
    from ray._private.services import canonicalize_bootstrap_address

    try:
        head = canonicalize_bootstrap_address(address)
    except (ConnectionError, RuntimeError) as error:
        raise ClusterError(f"--address {address}: no cluster runs here; leave it out to start one") from error
    with init_grpc_channel(head) as channel:
        try:
            channel.unary_unary("/ray.rpc.NodeInfoGcsService/CheckAlive")(b"", timeout=_CONNECT_SECONDS)
        except grpc.RpcError as error:
            if error.code() in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED):
                raise ClusterError(
                    f"--address {address}: the cluster refuses the token of {_token_source()}; copy the cluster's own "
                    "there (on its head: ~/.ray/auth_token)"
                ) from error
            raise ClusterError(
                f"--address {address}: what answers here is no Ray head ({error.code().name}); give its port, 6379 by "
                "default, not the dashboard's"
            ) from error


def _describe(local: bool) -> Cluster:
    import ray

    resources = ray.cluster_resources()
    context = ray.get_runtime_context()
    dashboard = ray._private.worker.global_worker.node.webui_url if ray.is_initialized() else None
    return Cluster(
        address=context.gcs_address,
        dashboard=f"http://{dashboard}" if dashboard else None,
        cpus=resources.get("CPU", 0.0),
        gpus=resources.get("GPU", 0.0),
        nodes=sum(node["Alive"] for node in ray.nodes()),
        local=local,
    )


def _reason(error: BaseException) -> str:
    """The first lines of an error as one line."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def check_shared(cluster: Cluster, storage: str | Path) -> None:
    """Every node writes its runs into the storage, so every node must see the same one.

    Raises:
        ClusterError: a node does not see what this process has written there.
    """
    files = open_storage(storage)
    root = local_root(files)
    if cluster.nodes < 2 or root is None:
        return
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    marker = root / f".seen-by-all-{secrets.token_hex(4)}"
    marker.touch()
    look = ray.remote(num_cpus=0)(os.path.exists)
    try:
        nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
        places = [NodeAffinitySchedulingStrategy(node, soft=False) for node in nodes]
        seen = ray.get([look.options(scheduling_strategy=place).remote(str(marker)) for place in places])
    finally:
        marker.unlink()
    if not all(seen):
        raise ClusterError(
            f"--storage {root}: {len(seen) - sum(seen)} of {len(seen)} nodes do not see this folder; give one that all "
            "share, such as NFS or s3://bucket/folder"
        )
