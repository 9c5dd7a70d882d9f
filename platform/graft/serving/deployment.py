"""A layout on a cluster: Serve started, everything deployed and waited for, and taken down again."""

import contextlib
import http.client
import io
import logging
import os
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from graft.cluster import Cluster
from graft.errors import ServeError
from graft.serving.gate import Limits
from graft.serving.in_proxy import ask_proxy
from graft.serving.keys import Keys
from graft.serving.layout import Deployment, Layout
from graft.serving.tls import Certificate, unverified

log = logging.getLogger(__name__)

APPLICATION = "graft"
CONTROLLER = ("SERVE_CONTROLLER_ACTOR", "serve")
"""Name and namespace of the actor that is Serve on a cluster."""
START_SECONDS = 600.0
"""A deployment that is not ready by then never will be."""
STOP_SECONDS = 30.0
POLL_SECONDS = 0.2
WATCH_SECONDS = 2.0

IN_ONE_LOOP = ("RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD", "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP")
"""Serve's guards against code that blocks its event loop; ours does not, and each costs every message two hand-overs
between threads. measured: an answer takes 51 ms so and 61 ms with them."""

RAISED = re.compile(r"^(?P<kind>[\w.]*(?:Error|Exception|Exit|Interrupt)): (?P<what>.+)$", re.MULTILINE)
"""A line of a traceback that says what was raised."""


def prepare_environment() -> None:
    """Set how Serve's processes run in a cluster that this process is going to start."""
    ask_proxy()
    for variable in IN_ONE_LOOP:
        os.environ.setdefault(variable, "0")


@contextmanager
def deployed(
    layout: Layout,
    keys: Keys,
    limits: Limits,
    cluster: Cluster,
    host: str,
    port: int,
    stop: threading.Event,
    tls: Certificate | None = None,
) -> Iterator[bool]:
    """Serve the layout for as long as the block lasts; gives False where `stop` was set before it answered.

    Raises:
        ServeError: the cluster serves already or has no room, Serve cannot start, or a replica died while loading.
    """
    from ray import serve

    from graft.serving import application

    _refuse_second_server(cluster)
    app = application.build(layout, keys, limits, _resources(layout, cluster))
    try:
        with _quiet():
            _start(host, port, limits, tls)
            target = serve.RunTarget(app, name=APPLICATION, route_prefix="/")
            serve.run_many([target], wait_for_ingress_deployment_creation=False, wait_for_applications_running=False)
            ready = _wait_until_running(stop) and _wait_until_routed(host, port, cluster, stop, tls)
        yield ready
    finally:
        with _quiet():
            _shut_down()


def _refuse_second_server(cluster: Cluster) -> None:
    """Serve is one per cluster: a second server would get the first one's port, and its end would end both."""
    import ray

    with contextlib.suppress(ValueError):
        ray.get_actor(*CONTROLLER)
        raise ServeError(
            f"the cluster at {cluster.address} serves already; stop that (serve shutdown), or leave --address out to "
            "start a cluster for these runs"
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """What Ray tells of its own progress is in its log folder and in the dashboard."""
    logger = logging.getLogger("ray.serve")
    logger.setLevel(logging.CRITICAL)
    logger.propagate = False
    with contextlib.redirect_stdout(io.StringIO()):
        yield


def _start(host: str, port: int, limits: Limits, tls: Certificate | None) -> None:
    import ray
    from ray import serve

    # Our own time-out answers first, in our own words; Serve's is for an ingress that no longer does.
    options: dict[str, Any] = {"host": host, "port": port, "request_timeout_s": limits.seconds + 5}
    if tls is not None:
        options |= {"ssl_certfile": str(tls.file), "ssl_keyfile": str(tls.key)}
    try:
        serve.start(proxy_location="HeadOnly", http_options=options)
    except (ray.exceptions.RayError, TimeoutError, RuntimeError, ValueError) as error:
        raise ServeError(f"Ray Serve cannot start on {host}:{port}: {_reason(str(error))}") from error


def _resources(layout: Layout, cluster: Cluster) -> dict[str, dict[str, float]]:
    """Logical CPUs and GPUs of each replica, so that all of them find room at once.

    Raises:
        ServeError: a cluster that others use has no CPU left.
    """
    import ray

    free, found = ray.available_resources(), layout.deployments
    cpus, gpus = cluster.cpus if cluster.local else free.get("CPU", 0.0), free.get("GPU", 0.0)
    undecided = sum(one.hosting.replicas for one in found.values() if one.hosting.cpus is None)
    given = sum(one.hosting.replicas * (one.hosting.cpus or 0.0) for one in found.values())
    # One is left to the processes that speak HTTP: they starve a model that computes with as many threads as there are
    # CPUs. measured: 16 clients of a small encoder on two CPUs, 44 answers a second so and 56 so.
    left = max(cpus - given - cluster.local, min(1.0, cpus - given), 0.0)
    share = _share(left, max(undecided, 1), ours=cluster.local)
    if (undecided and not share) or given > cpus:
        raise ServeError(
            f"{len(found)} deployments need {f'{given:g} CPUs' if given else 'a CPU'}, the cluster at "
            f"{cluster.address} has {cpus:g} free; wait, stop a job there, or ask for less with serve.cpus"
        )
    wanting = sum(one.hosting.replicas for one in found.values() if _may_use_gpu(one) and one.hosting.gpus is None)
    return fixed_resources(layout, share, min(1.0, _share(gpus, max(wanting, 1), ours=cluster.local)))


def fixed_resources(layout: Layout, cpus: float, gpus: float) -> dict[str, dict[str, float]]:
    """Logical CPUs and GPUs of each replica.

    Args:
        layout: what is served, and what its spec says of them.
        cpus: of each replica of which the spec says nothing.
        gpus: likewise, where its model may use one.
    """
    return {
        name: {
            "num_cpus": cpus if one.hosting.cpus is None else one.hosting.cpus,
            "num_gpus": (gpus if _may_use_gpu(one) else 0.0) if one.hosting.gpus is None else one.hosting.gpus,
        }
        for name, one in layout.deployments.items()
    }


def _may_use_gpu(deployment: Deployment) -> bool:
    """Whether the model may lie on one."""
    return bool(deployment.models) and deployment.device in ("auto", "cuda")


def _share(free: float, count: int, ours: bool) -> float:
    """An equal part for each, at most 1 where others use the cluster too.

    Where it is ours alone nothing is left over, because Ray gives a replica as many threads as CPUs.
    """
    part = free / count
    if part >= 1:
        return float(int(part)) if ours else 1.0
    # With several nodes only half: what is left on a node and smaller than a part is of no use to anyone.
    return int(part * (100 if ours else 50)) / 100


def _wait_until_running(stop: threading.Event) -> bool:
    """Fail as soon as a deployment does, instead of trying it again for ever.

    Raises:
        ServeError: with the reason of the replica that died.
    """
    from ray import serve

    waited = 0.0
    while not stop.wait(POLL_SECONDS):
        app = serve.status().applications.get(APPLICATION)
        if app is not None and app.status == "RUNNING":
            return True
        waited += POLL_SECONDS
        if app is not None and app.status in ("DEPLOY_FAILED", "UNHEALTHY"):
            raise ServeError(_why(app))
        if waited > START_SECONDS:
            raise ServeError(f"not ready after {START_SECONDS:g} seconds; {_why(app)}")
    return False


def watch(stop: threading.Event) -> None:
    """Wait for the end, and say on the way what is not well.

    Raises:
        ServeError: the cluster is gone.
    """
    import ray
    from ray import serve

    unwell: set[str] = set()
    with _quiet():
        while not stop.wait(WATCH_SECONDS):
            try:
                found = serve.status().applications[APPLICATION].deployments
            except (ray.exceptions.RayError, RuntimeError, KeyError) as error:
                raise ServeError(f"the cluster or what was deployed there is gone: {_reason(str(error))}") from error
            now = {name for name, deployment in found.items() if deployment.status != "HEALTHY"}
            for name in now - unwell:
                log.warning("%s: a process of it has died; another one is started", name)
            unwell = now


def _wait_until_routed(host: str, port: int, cluster: Cluster, stop: threading.Event, tls: Certificate | None) -> bool:
    """The proxy learns of the application a moment after it runs; one on another machine cannot be asked from here."""
    near = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    while cluster.local and not stop.wait(POLL_SECONDS):
        ask = (
            http.client.HTTPSConnection(near, port, timeout=5, context=unverified())
            if tls
            else http.client.HTTPConnection(near, port, timeout=5)
        )
        with contextlib.suppress(OSError), contextlib.closing(ask):
            ask.request("GET", "/readyz")
            if ask.getresponse().status == 200:
                return True
    return not stop.is_set()


def _why(app: Any) -> str:
    """Which deployment is not well, and what its replica said last."""
    for name, deployment in app.deployments.items() if app is not None else ():
        if deployment.status != "HEALTHY" and deployment.message:
            return f"{name} cannot be served: {_reason(deployment.message)}"
    return _reason(app.message) if app is not None and app.message else "Ray Serve gives no reason"


def _reason(message: str) -> str:
    """One line out of tracebacks within tracebacks: what was raised last."""
    if "ActorDiedError" in message:
        return "its process was killed while it loaded the model; the memory of its node may be too small for it"
    raised = [match for match in RAISED.finditer(message) if "Traceback" not in match["what"]]
    if not raised:
        return " ".join(message.split())[:300]
    last = raised[-1]
    return last["what"] if last["kind"].startswith("graft.") else last[0]


def _shut_down() -> None:
    """End Serve on this cluster, what it answers just now first.

    Ray's own `serve.shutdown` ends the proxy at once, whatever that is sending; and it waits for a call that can only
    fail, and tells the terminal of that.
    """
    import ray
    from ray import serve

    with contextlib.suppress(ray.exceptions.RayError, RuntimeError, TimeoutError):
        serve.delete(APPLICATION)
    with contextlib.suppress(ValueError, ray.exceptions.RayError):
        ray.get_actor(*CONTROLLER).graceful_shutdown.remote(wait=False)
        for _ in range(int(STOP_SECONDS / POLL_SECONDS)):
            ray.get_actor(*CONTROLLER)
            time.sleep(POLL_SECONDS)
        log.warning("Ray Serve has not ended after %g seconds", STOP_SECONDS)
