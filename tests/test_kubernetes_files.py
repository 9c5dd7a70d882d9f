"""cluster/kubernetes: what KubeRay takes, closed to all that need no way in.

The models below say what the files may hold, and nothing else; their names are those of Kubernetes and KubeRay 1.7.
"""

import json
import re
import shlex
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import pytest
import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "cluster" / "kubernetes"
PINNED = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split())
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


def exactly(value: str) -> AfterValidator:
    def check(got: str) -> str:
        if got != value:
            raise ValueError(f"got {got}, must be {value}")
        return got

    return AfterValidator(check)


Content = TypeVar("Content")
One = Annotated[Content, Field(min_length=1)]
"""Not empty."""


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Resources(Strict):
    requests: dict[Literal["cpu", "memory", "nvidia.com/gpu"], Annotated[str, Field(pattern=r"^\d+(m|Gi)?$")]]
    limits: dict[str, str]

    @model_validator(mode="after")
    def guaranteed(self) -> Self:
        if self.requests != self.limits or not {"cpu", "memory"} <= self.limits.keys():
            raise ValueError("requests and limits must be the same, and name cpu and memory")
        return self


class ContainerSecurity(Strict):
    allowPrivilegeEscalation: Literal[False]
    capabilities: One[dict[Literal["drop"], One[list[Literal["ALL"]]]]]


class PodSecurity(Strict):
    runAsNonRoot: Literal[True]
    runAsUser: Literal[1000]
    runAsGroup: Literal[1000]
    fsGroup: Literal[1000]
    fsGroupChangePolicy: Literal["OnRootMismatch"]
    seccompProfile: One[dict[Literal["type"], Literal["RuntimeDefault"]]]


class Variable(Strict):
    name: str
    value: str


PORTS = {"gcs": 6379, "dashboard": 8265, "serve": 8000, "metrics": 8080}
"""KubeRay finds ports by these names."""


class Port(Strict):
    name: str
    containerPort: int

    @model_validator(mode="after")
    def known(self) -> Self:
        if PORTS.get(self.name) != self.containerPort:
            raise ValueError(f"{self.name} is not one of {PORTS}")
        return self


class Asked(Strict):
    path: Literal["/api/healthz", "/-/healthz"]
    port: Literal[52365, 8000]

    @model_validator(mode="after")
    def answers(self) -> Self:
        if (self.path == "/-/healthz") != (self.port == 8000):
            raise ValueError("/-/healthz is the Serve proxy's (8000), /api/healthz that of Ray's agent (52365)")
        return self


class Probe(Strict):
    """Asked over HTTP: the image holds no wget."""

    httpGet: Asked
    initialDelaySeconds: int
    periodSeconds: int
    timeoutSeconds: int
    failureThreshold: int


class Mount(Strict):
    name: str
    mountPath: Literal["/storage", "/keys"]
    readOnly: Literal[True] | None = None

    @model_validator(mode="after")
    def keys_are_read_only(self) -> Self:
        if (self.mountPath == "/keys") != bool(self.readOnly):
            raise ValueError("/keys is mounted readOnly, /storage is not")
        return self


class Container(Strict):
    name: Literal["ray-head", "ray-worker", "ray-job-submitter"]
    image: Annotated[str, exactly(f"graft:{VERSION}")]
    env: list[Variable]
    ports: list[Port] = []
    readinessProbe: Probe | None = None
    livenessProbe: Probe | None = None
    resources: Resources
    securityContext: ContainerSecurity
    volumeMounts: list[Mount] = []

    @model_validator(mode="after")
    def behind_the_token(self) -> Self:
        if {"RAY_AUTH_MODE": "token"}.items() - {variable.name: variable.value for variable in self.env}.items():
            raise ValueError("RAY_AUTH_MODE=token is missing")
        return self


class Secret(Strict):
    secretName: Literal["graft-keys"]
    defaultMode: Literal[0o400]


class Volume(Strict):
    name: str
    persistentVolumeClaim: One[dict[Literal["claimName"], Literal["graft-storage"]]] | None = None
    secret: Secret | None = None

    @model_validator(mode="after")
    def one_of_both(self) -> Self:
        if (self.persistentVolumeClaim is None) == (self.secret is None):
            raise ValueError("a volume is a persistentVolumeClaim or a secret")
        return self


class Toleration(Strict):
    key: Literal["nvidia.com/gpu"]
    operator: Literal["Exists"]
    effect: Literal["NoSchedule"]


class Pod(Strict):
    containers: Annotated[list[Container], Field(min_length=1, max_length=1)]
    volumes: list[Volume] = []
    securityContext: PodSecurity
    automountServiceAccountToken: Literal[False] | None = None
    restartPolicy: Literal["Never"] | None = None
    terminationGracePeriodSeconds: int | None = None
    tolerations: list[Toleration] = []

    @model_validator(mode="after")
    def mounts_are_volumes(self) -> Self:
        if {mount.name for mount in self.containers[0].volumeMounts} != {volume.name for volume in self.volumes}:
            raise ValueError("volumeMounts and volumes do not match")
        return self


class Labels(Strict):
    labels: dict[str, str]


class Template(Strict):
    metadata: Labels
    spec: Pod


class HeadParameters(Strict):
    num_cpus: Literal["0"] = Field(alias="num-cpus")


class HeadGroup(Strict):
    serviceType: Literal["ClusterIP"]
    rayStartParams: HeadParameters
    template: Template


class WorkerGroup(Strict):
    groupName: str
    minReplicas: Annotated[int, Field(ge=0)]
    replicas: int
    maxReplicas: int
    rayStartParams: Annotated[dict[str, str], Field(max_length=0)]
    template: Template

    @model_validator(mode="after")
    def in_order(self) -> Self:
        if not self.minReplicas <= self.replicas <= self.maxReplicas:
            raise ValueError("replicas must lie between minReplicas and maxReplicas")
        return self


class Autoscaler(Strict):
    version: Literal["v2"]
    idleTimeoutSeconds: int
    resources: Resources
    securityContext: ContainerSecurity


class ClusterSpec(Strict):
    rayVersion: Annotated[str, exactly(PINNED["ray"])]
    authOptions: One[dict[Literal["mode"], Literal["token"]]]
    enableInTreeAutoscaling: bool = False
    autoscalerOptions: Autoscaler | None = None
    headGroupSpec: HeadGroup
    workerGroupSpecs: One[list[WorkerGroup]]

    @model_validator(mode="after")
    def nodes_are_alike(self) -> Self:
        groups: list[HeadGroup | WorkerGroup] = [self.headGroupSpec, *self.workerGroupSpecs]
        if any(
            not group.template.spec.volumes[:1] or not group.template.spec.volumes[0].persistentVolumeClaim
            for group in groups
        ):
            raise ValueError("every node needs the storage")
        if any(group.template.metadata.labels != NODE for group in groups):
            raise ValueError("every node needs the labels that networkpolicy.yaml knows")
        keyless = [group.template.spec.automountServiceAccountToken is False for group in groups]
        if keyless != [not self.enableInTreeAutoscaling, *[True] * len(self.workerGroupSpecs)]:
            raise ValueError("only a head that scales may hold a key to Kubernetes")
        fixed = all(group.minReplicas == group.maxReplicas for group in self.workerGroupSpecs)
        if fixed == self.enableInTreeAutoscaling or (self.autoscalerOptions is None) == self.enableInTreeAutoscaling:
            raise ValueError("a range of replicas, enableInTreeAutoscaling and autoscalerOptions go together")
        return self


class Metadata(Strict):
    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{0,40}$")]
    labels: dict[Literal["app.kubernetes.io/part-of"], Literal["graft"]]


class RayCluster(Strict):
    apiVersion: Literal["ray.io/v1"]
    kind: Literal["RayCluster"]
    metadata: Metadata
    spec: ClusterSpec


class JobSpec(Strict):
    entrypoint: str
    submissionMode: Literal["K8sJobMode"]
    shutdownAfterJobFinishes: Literal[True]
    ttlSecondsAfterFinished: int
    activeDeadlineSeconds: int
    backoffLimit: int
    rayClusterSpec: ClusterSpec
    submitterPodTemplate: Template


class RayJob(Strict):
    apiVersion: Literal["ray.io/v1"]
    kind: Literal["RayJob"]
    metadata: Metadata
    spec: JobSpec


class ServiceSpec(Strict):
    upgradeStrategy: One[dict[Literal["type"], Literal["NewCluster"]]]
    rayClusterDeletionDelaySeconds: int
    excludeHeadPodFromServeSvc: Literal[True]
    serveConfigV2: str
    rayClusterConfig: ClusterSpec

    @model_validator(mode="after")
    def pods_answer_what_they_were_asked(self) -> Self:
        config = yaml.safe_load(self.serveConfigV2)
        patience = config["http_options"]["request_timeout_s"]
        head, *workers = [self.rayClusterConfig.headGroupSpec, *self.rayClusterConfig.workerGroupSpecs]
        if self.rayClusterDeletionDelaySeconds <= patience:
            raise ValueError("rayClusterDeletionDelaySeconds must be more than request_timeout_s")
        if any((group.template.spec.terminationGracePeriodSeconds or 30) <= patience for group in workers):
            raise ValueError("terminationGracePeriodSeconds must be more than request_timeout_s")
        # Without probes in the file, KubeRay's own ask with wget, which the image does not hold.
        asked = [head.template.spec.containers[0].readinessProbe]
        asked += [group.template.spec.containers[0].readinessProbe for group in workers]
        if [probe and probe.httpGet.port for probe in asked] != [52365, *[8000] * len(workers)]:
            raise ValueError("readinessProbe: of the head its agent, of the others their proxy")
        for group in (head, *workers):
            if "/keys" not in [mount.mountPath for mount in group.template.spec.containers[0].volumeMounts]:
                raise ValueError("the application is built on any node: each needs the keys")
        return self


class RayService(Strict):
    apiVersion: Literal["ray.io/v1"]
    kind: Literal["RayService"]
    metadata: Metadata
    spec: ServiceSpec


class ClaimSpec(Strict):
    accessModes: list[Literal["ReadWriteMany"]]
    storageClassName: str
    resources: dict[Literal["requests"], dict[Literal["storage"], str]]


class PersistentVolumeClaim(Strict):
    apiVersion: Literal["v1"]
    kind: Literal["PersistentVolumeClaim"]
    metadata: Metadata
    spec: ClaimSpec


class Selector(Strict):
    matchLabels: One[dict[str, str]]

    def selects(self, labels: dict[str, str]) -> bool:
        return self.matchLabels.items() <= labels.items()


class Peer(Strict):
    podSelector: Selector | None = None
    namespaceSelector: Selector | None = None

    def is_(self, pod: dict[str, str], namespace: dict[str, str]) -> bool:
        here = self.namespaceSelector.selects(namespace) if self.namespaceSelector else namespace == OURS
        return here and (self.podSelector is None or self.podSelector.selects(pod))


class PolicyPort(Strict):
    protocol: Literal["TCP"]
    port: int


class Rule(Strict):
    sources: Annotated[list[Peer], Field(alias="from", min_length=1)]  # left out, it would be everybody
    ports: One[list[PolicyPort]] | None = None


class PolicySpec(Strict):
    podSelector: Selector
    policyTypes: list[Literal["Ingress"]]
    ingress: list[Rule]


class NetworkPolicy(Strict):
    apiVersion: Literal["networking.k8s.io/v1"]
    kind: Literal["NetworkPolicy"]
    metadata: Metadata
    spec: PolicySpec


KINDS = {kind.__name__: kind for kind in (RayCluster, RayJob, RayService, PersistentVolumeClaim, NetworkPolicy)}
OURS = {"kubernetes.io/metadata.name": "graft"}
NODE = {"app.kubernetes.io/part-of": "graft", "app.kubernetes.io/component": "ray-node"}
HEAD = {**NODE, "ray.io/node-type": "head"}
WORKER = {**NODE, "ray.io/node-type": "worker"}
SUBMITTER = {"app.kubernetes.io/part-of": "graft", "app.kubernetes.io/component": "ray-submitter"}
OPERATOR = {"app.kubernetes.io/component": "kuberay-operator"}
SYSTEM = {"kubernetes.io/metadata.name": "kuberay-system"}
SERVER = {**WORKER, "ray.io/serve": "true"}
MAY_ASK = {"kubernetes.io/metadata.name": "shop", "graft-http": "allowed"}
MAY_MEASURE = {"kubernetes.io/metadata.name": "monitoring", "graft-metrics": "allowed"}
ALLOWED = {"kubernetes.io/metadata.name": "monitoring", "graft-dashboard": "allowed"}


def documents(name: str) -> list[Any]:
    """Through JSON, so that what YAML's aliases share can be changed in one place."""
    return json.loads(json.dumps(list(yaml.safe_load_all((FOLDER / name).read_text()))))


def read(document: Any) -> Any:
    if document.get("kind") not in KINDS:
        raise ValueError(f"kind {document.get('kind')}: one of {', '.join(KINDS)}")
    return KINDS[document["kind"]].model_validate(document)


def test_every_file_is_read_strictly() -> None:
    names = [path.name for path in sorted(FOLDER.iterdir())]
    assert names == ["networkpolicy.yaml", "raycluster.yaml", "rayjob.yaml", "rayservice.yaml", "storage.yaml"]
    kinds = [type(read(document)).__name__ for name in names for document in documents(name)]
    assert kinds == ["NetworkPolicy"] * 5 + ["RayCluster", "RayJob", "RayService", "PersistentVolumeClaim"]


POD = "headGroupSpec.template.spec"
SERVING = "spec.rayClusterConfig.workerGroupSpecs.0.template.spec"
CHANGES = [
    ("raycluster.yaml", "spec.authOptions", None, "authOptions"),
    ("raycluster.yaml", "spec.authOptions.mode", "disabled", "mode"),
    ("raycluster.yaml", "spec.rayVersion", "2.59.0", "must be 2.60.0"),
    ("raycluster.yaml", "spec.rayVersion", 2.6, "rayVersion"),
    ("raycluster.yaml", "spec.workerGroupSpecs.0.maxReplica", 3, "maxReplica"),
    ("raycluster.yaml", "spec.workerGroupSpecs.0.minReplicas", 3, "between"),
    ("raycluster.yaml", "spec.enableInTreeAutoscaling", False, "key to Kubernetes"),
    ("raycluster.yaml", "spec.autoscalerOptions", None, "go together"),
    ("raycluster.yaml", "spec.headGroupSpec.serviceType", "LoadBalancer", "serviceType"),
    ("raycluster.yaml", "spec.headGroupSpec.serviceType", "NodePort", "serviceType"),
    ("raycluster.yaml", "spec.headGroupSpec.enableIngress", True, "enableIngress"),
    ("raycluster.yaml", "spec.headGroupSpec.rayStartParams.dashboard-host", "0.0.0.0", "dashboard-host"),
    ("raycluster.yaml", "spec.headGroupSpec.rayStartParams.num-cpus", 0, "num-cpus"),
    ("raycluster.yaml", f"spec.{POD}.hostNetwork", True, "hostNetwork"),
    ("raycluster.yaml", f"spec.{POD}.securityContext", None, "securityContext"),
    ("raycluster.yaml", f"spec.{POD}.securityContext.runAsUser", 0, "runAsUser"),
    ("raycluster.yaml", f"spec.{POD}.volumes", None, "do not match"),
    ("raycluster.yaml", f"spec.{POD}.containers.0.image", "graft:latest", f"must be graft:{VERSION}"),
    ("raycluster.yaml", f"spec.{POD}.containers.0.env.0.value", "disabled", "RAY_AUTH_MODE=token"),
    ("raycluster.yaml", f"spec.{POD}.containers.0.ports.1.hostPort", 8265, "hostPort"),
    ("raycluster.yaml", f"spec.{POD}.containers.0.resources.limits", None, "limits"),
    ("raycluster.yaml", f"spec.{POD}.containers.0.resources.limits.memory", "16Gi", "must be the same"),
    ("raycluster.yaml", f"spec.{POD}.containers.0.securityContext.privileged", True, "privileged"),
    ("raycluster.yaml", "spec.workerGroupSpecs.1.template.metadata.labels", {}, "networkpolicy"),
    ("raycluster.yaml", "spec.workerGroupSpecs.1.template.spec.automountServiceAccountToken", None, "key to Kubern"),
    ("rayjob.yaml", "spec.rayClusterSpec.authOptions", None, "authOptions"),
    ("rayjob.yaml", f"spec.rayClusterSpec.{POD}.automountServiceAccountToken", None, "key to Kubernetes"),
    ("rayjob.yaml", "spec.submitterPodTemplate.spec.containers.0.env", [], "RAY_AUTH_MODE=token"),
    ("rayjob.yaml", "spec.shutdownAfterJobFinishes", False, "shutdownAfterJobFinishes"),
    ("rayservice.yaml", "spec.serveConfigV2", None, "serveConfigV2"),
    ("rayservice.yaml", "spec.serveConfigV3", "", "serveConfigV3"),
    ("rayservice.yaml", "spec.rayClusterDeletionDelaySeconds", 60, "rayClusterDeletionDelaySeconds"),
    ("rayservice.yaml", "spec.rayClusterConfig.authOptions", None, "authOptions"),
    ("rayservice.yaml", f"{SERVING}.terminationGracePeriodSeconds", None, "terminationGracePeriodSeconds"),
    ("rayservice.yaml", f"{SERVING}.containers.0.readinessProbe", None, "readinessProbe"),
    ("rayservice.yaml", f"{SERVING}.containers.0.readinessProbe.httpGet.port", 52365, "is the Serve proxy's"),
    ("rayservice.yaml", f"{SERVING}.containers.0.volumeMounts.1.readOnly", None, "readOnly"),
    ("rayservice.yaml", f"{SERVING}.containers.0.ports.0.containerPort", 80, "serve is not one of"),
    ("rayservice.yaml", f"{SERVING}.volumes.1.secret.defaultMode", 0o644, "defaultMode"),
    ("rayservice.yaml", f"{SERVING}.volumes.1", {"name": "keys"}, "or a secret"),
    ("storage.yaml", "spec.accessModes.0", "ReadWriteOnce", "accessModes"),
    ("storage.yaml", "kind", "Service", "kind Service"),
    ("networkpolicy.yaml", "spec.podSelector.matchLabels", {}, "matchLabels"),
]


@pytest.mark.parametrize(("name", "place", "value", "complaint"), CHANGES, ids=lambda value: str(value)[:60])
def test_a_file_that_opens_or_misspells_is_refused(name: str, place: str, value: Any, complaint: str) -> None:
    document = documents(name)[0]
    *way, last = place.split(".")
    at = document
    for step in way:
        at = at[int(step)] if isinstance(at, list) else at[step]
    if isinstance(at, list):
        at[int(last)] = value
    elif value is None:
        del at[last]
    else:
        at[last] = value
    with pytest.raises((ValidationError, ValueError), match=re.escape(complaint)):
        read(document)


def reaches(source: tuple[dict[str, str], dict[str, str]], target: dict[str, str], port: int) -> bool:
    """Whether the policies let a pod (its labels, its namespace's) reach a port of one of ours."""
    about = [policy.spec for policy in map(read, documents("networkpolicy.yaml"))]
    about = [policy for policy in about if policy.podSelector.selects(target)]
    assert about, "no policy says anything about this pod, so everybody may"
    return any(
        (rule.ports is None or port in [entry.port for entry in rule.ports])
        and any(peer.is_(*source) for peer in rule.sources)
        for policy in about
        for rule in policy.ingress
    )


@pytest.mark.parametrize(
    ("source", "target", "port", "expected"),
    [
        ((WORKER, OURS), HEAD, 6379, True),
        ((HEAD, OURS), WORKER, 10002, True),
        ((WORKER, OURS), WORKER, 10002, True),
        ((SUBMITTER, OURS), HEAD, 8265, True),
        ((SUBMITTER, OURS), HEAD, 6379, False),
        ((SUBMITTER, OURS), WORKER, 8265, False),
        ((OPERATOR, SYSTEM), HEAD, 8265, True),
        ((OPERATOR, SYSTEM), HEAD, 6379, False),
        ((OPERATOR, ALLOWED | {"graft-dashboard": "no"}), HEAD, 8265, False),
        (({}, ALLOWED), HEAD, 8265, True),
        (({}, ALLOWED), HEAD, 6379, False),
        (({}, ALLOWED), WORKER, 8265, False),
        (({}, OURS), HEAD, 8265, False),
        ((NODE, SYSTEM), HEAD, 6379, False),
        ((WORKER, OURS), SUBMITTER, 80, False),
        (({}, MAY_ASK), SERVER, 8000, True),
        (({"graft-http": "allowed"}, OURS), SERVER, 8000, True),
        (({"graft-http": "allowed"}, SYSTEM), SERVER, 8000, False),
        (({}, OURS), SERVER, 8000, False),
        (({}, MAY_ASK), SERVER, 8080, False),
        (({}, MAY_ASK), {**HEAD, "ray.io/serve": "false"}, 8000, False),
        (({}, MAY_ASK), HEAD, 8265, False),
        (({}, MAY_MEASURE), SERVER, 8080, True),
        (({}, MAY_MEASURE), HEAD, 8080, True),
        (({}, MAY_MEASURE), SERVER, 8000, False),
    ],
)
def test_who_reaches_whom(source: Any, target: dict[str, str], port: int, expected: bool) -> None:
    assert reaches(source, target, port) is expected


def test_the_submitter_has_the_labels_that_the_policy_knows() -> None:
    (job,) = map(read, documents("rayjob.yaml"))
    assert job.spec.submitterPodTemplate.metadata.labels == SUBMITTER


def test_the_job_runs_what_the_image_holds() -> None:
    (job,) = map(read, documents("rayjob.yaml"))
    python, script, spec, option, storage = shlex.split(job.spec.entrypoint)
    assert (python, option) == ("python", "--storage")
    assert storage == job.spec.rayClusterSpec.headGroupSpec.template.spec.containers[0].volumeMounts[0].mountPath
    image = (ROOT / "cluster" / "Dockerfile").read_text()
    assert "\nWORKDIR /graft\n" in image
    assert "\nCOPY jobs ./jobs\n" in image
    from graft.spec import Experiment

    experiment = Experiment.from_yaml(ROOT / Path(spec).relative_to("/graft"))
    assert Path(script) == Path("/graft/jobs", "sweep.py" if experiment.sweep else "run.py")
    assert (ROOT / Path(script).relative_to("/graft")).is_file()


def test_what_the_service_serves_is_what_graft_and_ray_take() -> None:
    from graft.serving.checking import check_serve_config

    checked = check_serve_config(FOLDER / "rayservice.yaml")
    assert checked.warnings == ()
    (service,) = map(read, documents("rayservice.yaml"))
    container = service.spec.rayClusterConfig.workerGroupSpecs[0].template.spec.containers[0]
    mounted = {mount.mountPath for mount in container.volumeMounts}
    served = checked.served["graft"]
    assert {served.storage, str(Path(served.api_keys).parent)} == mounted
    assert checked.schema.http_options.port in [port.containerPort for port in container.ports]
    # A pod is ready where a proxy of its own answers.
    assert checked.schema.proxy_location == "EveryNode"
