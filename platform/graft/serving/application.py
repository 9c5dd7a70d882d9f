"""A layout as deployments of Ray Serve: one per model, and one that speaks HTTP and walks a row through them."""

from collections.abc import Mapping, Sequence
from typing import Any

from ray import serve

from graft.hosted import Hosting
from graft.serving import routes
from graft.serving.asking import Models, Way
from graft.serving.gate import Limits
from graft.serving.keys import Keys
from graft.serving.layout import Layout, ServedRun

INGRESS = "http"


@serve.ingress()
class Ingress:
    """HTTP in front of the models."""

    def __init__(
        self,
        served: Sequence[ServedRun],
        keys: Keys,
        limits: Limits,
        models: Mapping[str, Any],
        ways: Mapping[str, Way],
    ) -> None:
        """Take what is served, who may ask, and by deployment its handle and how it is asked."""
        self.served, self.keys, self.limits, self.models = served, keys, limits, Models(models, ways)

    def __serve_build_asgi_app__(self) -> Any:
        """Serve asks for the application once this object exists, in its replica."""
        return routes.build(self.served, self.keys, self.limits, self.models)


def build(layout: Layout, keys: Keys, limits: Limits, resources: Mapping[str, dict[str, float]]) -> serve.Application:
    """The application to deploy.

    Args:
        layout: what is served.
        keys: hashes of the keys that are accepted.
        limits: of the HTTP interface.
        resources: `num_cpus` and `num_gpus` of each deployment.
    """
    from graft.serving.replica import ModelReplica  # torch, which the ingress does without

    models = {}
    for name, one in layout.deployments.items():
        hosted = serve.deployment(
            ModelReplica,
            name=name,
            ray_actor_options=resources[name],
            max_ongoing_requests=one.hosting.max_requests,
            **_scaled(one.hosting),
            **_shared(graceful_seconds=limits.seconds),
        )
        models[name] = hosted.bind(name, one.models, one.hosting, one.places)
    ways = {name: Way.to(one) for name, one in layout.deployments.items()}
    front = serve.deployment(
        Ingress,
        name=INGRESS,
        ray_actor_options={"num_cpus": 0},
        # The gate keeps the queue short; readiness is asked beside it.
        max_ongoing_requests=2 * limits.waiting_requests,
        **_shared(graceful_seconds=limits.seconds),
    )
    return front.bind(layout.runs, keys, limits, models, ways)


def _scaled(hosting: Hosting) -> dict[str, Any]:
    if hosting.max_replicas is None:
        return {"num_replicas": hosting.replicas}
    scaling = {"min_replicas": hosting.replicas, "max_replicas": hosting.max_replicas}
    return {"autoscaling_config": {**scaling, "target_ongoing_requests": hosting.target_requests}}


def _shared(graceful_seconds: float) -> dict[str, Any]:
    return {
        # A model that dies while loading would die again: once is enough to say so.
        "max_constructor_retry_count": 1,
        "health_check_period_s": 5,
        # What is being answered is answered; with nothing to do a process ends at once.
        "graceful_shutdown_timeout_s": graceful_seconds,
        "graceful_shutdown_wait_loop_s": 0.2,
        # The gate and the replicas tell what they answer, with more in a line.
        "logging_config": {"enable_access_log": False},
        # A new version stands beside the old one until it answers.
        "max_surge_percent": 100,
    }
