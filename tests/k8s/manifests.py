"""Renders the kustomizations and says what is wrong with them, without a Kubernetes cluster.

Core kinds are held to Kubernetes' own schemas, strictly: unknown keys are errors. The RayService is
held to KubeRay's custom resource definition, made strict the same way: rayservice-v1.schema.json.gz
is the v1 schema of ray-operator/config/crd/bases/ray.io_rayservices.yaml in ray-project/kuberay at
feeaf72f (Apache-2.0), without `status`. The rest are the promises that files make to each other.
"""

import gzip
import json
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate
import yaml
from jsonschema import Draft202012Validator
from pydantic import ValidationError
from ray.serve.schema import ServeApplicationSchema, ServeDeploySchema

from moeray.cluster.config import Settings, SettingsError, load_settings

ROOT = Path(__file__).parents[2]
KUBERNETES = "1.37"
Manifest = dict[str, Any]


def render(folder: str) -> list[Manifest]:
    """What `kubectl apply -k` would send."""
    command = ["kubectl", "kustomize", str(ROOT / "k8s" / folder)]
    rendered = subprocess.run(command, capture_output=True, text=True, check=True)
    assert not rendered.stderr, rendered.stderr  # kustomize warns of deprecated fields there
    return [document for document in yaml.safe_load_all(rendered.stdout) if document]


def only(manifests: list[Manifest], kind: str) -> Manifest:
    (found,) = [manifest for manifest in manifests if manifest["kind"] == kind]
    return found


def serve_config(manifests: list[Manifest]) -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load(only(manifests, "RayService")["spec"]["serveConfigV2"])
    return config


def problems(manifests: list[Manifest]) -> list[str]:
    """Everything that is wrong, as text that names where."""
    found = [problem for manifest in manifests for problem in _schema_problems(manifest)]
    # What does not have its shape cannot be looked into.
    return found or [*_reference_problems(manifests), *_pod_problems(manifests)]


def pods(manifests: list[Manifest]) -> dict[str, Manifest]:
    """The pod templates of the RayService: "head" and the worker groups by name."""
    cluster = only(manifests, "RayService")["spec"]["rayClusterConfig"]
    workers = {group["groupName"]: group["template"] for group in cluster["workerGroupSpecs"]}
    return {"head": cluster["headGroupSpec"]["template"], **workers}


def _schema_problems(manifest: Manifest) -> Iterator[str]:
    where = f"{manifest.get('kind')}/{manifest.get('metadata', {}).get('name')}"
    if manifest.get("apiVersion") == "ray.io/v1":
        for error in _ray_validator().iter_errors(manifest):
            yield f"{where}: {error.json_path}: {error.message}"
        return
    try:
        kubernetes_validate.validate(manifest, KUBERNETES, strict=True)
    except kubernetes_validate.ValidationError as error:
        yield f"{where}: {'.'.join(map(str, error.path))}: {error.message}"
    except (kubernetes_validate.SchemaNotFoundError, KeyError) as error:
        yield f"{where}: no such kind: {error}"


@cache
def _ray_validator() -> Draft202012Validator:
    file = Path(__file__).parent / "rayservice-v1.schema.json.gz"
    schema: dict[str, Any] = json.loads(gzip.decompress(file.read_bytes()))
    schema["properties"]["metadata"] = {"type": "object"}
    schema["required"] = ["apiVersion", "kind", "metadata", "spec"]
    _make_strict(schema)
    return Draft202012Validator(schema)


def _make_strict(node: Any) -> None:
    if isinstance(node, list):
        for item in node:
            _make_strict(item)
    if not isinstance(node, dict):
        return
    if node.get("x-kubernetes-int-or-string"):
        node.pop("type", None)
    preserves = node.get("x-kubernetes-preserve-unknown-fields")
    if isinstance(node.get("properties"), dict) and not preserves:
        node.setdefault("additionalProperties", False)
    for item in node.values():
        _make_strict(item)


def settings_of(manifests: list[Manifest]) -> Settings:
    """The settings of the one application. Raises SettingsError and pydantic's ValidationError."""
    config = serve_config(manifests)
    # Serve passes over keys that it does not know.
    for keys, schema in (
        (config, ServeDeploySchema),
        (config["applications"][0], ServeApplicationSchema),
    ):
        if unknown := keys.keys() - schema.model_fields.keys():
            raise SettingsError(f"unknown keys: {sorted(unknown)}")
    (application,) = ServeDeploySchema.model_validate(config).applications
    return load_settings(None, {**application.args, "cluster_token": "0" * 32})


def _reference_problems(manifests: list[Manifest]) -> Iterator[str]:
    try:
        settings = settings_of(manifests)
    except (SettingsError, ValidationError) as error:
        yield f"serveConfigV2: {error}"
        return
    service, policy = only(manifests, "Service"), only(manifests, "NetworkPolicy")
    worker = pods(manifests)["workers"]
    container = worker["spec"]["containers"][0]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    (served,) = service["spec"]["ports"]
    if ports.get(served["targetPort"]) != settings.port:
        yield f"Service: {served['targetPort']} is not the gateways' port {settings.port}"
    if container["readinessProbe"]["grpc"]["port"] != settings.port:
        yield f"readinessProbe: not the gateways' port {settings.port}"
    if ports["metrics"] != settings.metrics_port:
        yield f"ports: metrics is not the settings' metrics_port {settings.metrics_port}"
    if settings.host != "0.0.0.0":
        yield f"serveConfigV2: gateways on {settings.host} cannot be reached from other pods"
    open_ports = {p["port"] for rule in policy["spec"]["ingress"] for p in rule.get("ports", [])}
    if not {settings.port, settings.metrics_port} <= open_ports:
        yield f"NetworkPolicy: opens {sorted(open_ports)}, not all that is served"
    for kind, selector in (
        ("Service", service["spec"]["selector"]),
        (
            "PodDisruptionBudget",
            only(manifests, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
        ),
        ("NetworkPolicy", policy["spec"]["podSelector"]["matchLabels"]),
    ):
        if not selector.items() <= worker["metadata"]["labels"].items():
            yield f"{kind}: its selector {selector} finds no worker"
    (command,) = [container["lifecycle"]["preStop"]["exec"]["command"]]
    drain_s = int(command[command.index("--timeout") + 1])
    if not settings.drain_timeout_s <= drain_s < worker["spec"]["terminationGracePeriodSeconds"]:
        yield "preStop: answers, drain and terminationGracePeriodSeconds do not fit in each other"


def _pod_problems(manifests: list[Manifest]) -> Iterator[str]:
    claims = {m["metadata"]["name"] for m in manifests if m["kind"] == "PersistentVolumeClaim"}
    for name, pod in pods(manifests).items():
        spec = pod["spec"]
        volumes = {volume["name"] for volume in spec.get("volumes", [])}
        for volume in spec.get("volumes", []):
            claim = volume.get("persistentVolumeClaim", {}).get("claimName")
            if claim and claim not in claims:
                yield f"{name}: no PersistentVolumeClaim {claim}"
        if spec.get("enableServiceLinks") is not False:
            yield f"{name}: service links would add MOERAY_ variables"
        for container in spec["containers"]:
            yield from (f"{name}: {p}" for p in _restricted_problems(spec, container))
            if unknown := {m["name"] for m in container["volumeMounts"]} - volumes:
                yield f"{name}: no volume {sorted(unknown)}"
            if "memory" not in container["resources"].get("limits", {}):
                yield f"{name}: no limit on memory"


def _restricted_problems(spec: Manifest, container: Manifest) -> Iterator[str]:
    """Of Kubernetes' `restricted` Pod Security Standard, and a root file system to read only."""
    pod, own = spec.get("securityContext", {}), container.get("securityContext", {})
    if not pod.get("runAsNonRoot") or not pod.get("runAsUser"):
        yield "may run as root"
    if pod.get("seccompProfile", {}).get("type") != "RuntimeDefault":
        yield "no seccomp profile"
    if own.get("allowPrivilegeEscalation") is not False:
        yield "privileges may grow"
    if own.get("capabilities", {}).get("drop") != ["ALL"]:
        yield "capabilities are kept"
    if own.get("readOnlyRootFilesystem") is not True:
        yield "the root file system can be written"
