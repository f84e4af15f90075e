"""The kustomizations are valid, and the check that says so finds planted errors."""

import copy
import re
import shutil
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import pytest
import yaml

from tests.k8s.manifests import (
    ROOT,
    Manifest,
    only,
    pods,
    problems,
    render,
    serve_config,
    settings_of,
)

FOLDERS = ("base", "overlays/gpu-20b")


@pytest.fixture(scope="module")
def rendered() -> dict[str, list[Manifest]]:
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed")
    return {folder: render(folder) for folder in FOLDERS}


@pytest.mark.parametrize("folder", FOLDERS)
def test_nothing_is_wrong(folder: str, rendered: dict[str, list[Manifest]]) -> None:
    assert problems(rendered[folder]) == []


def test_the_overlay_serves_20b_on_gpus(rendered: dict[str, list[Manifest]]) -> None:
    manifests = rendered["overlays/gpu-20b"]
    settings = settings_of(manifests)
    assert (settings.device, str(settings.model)) == ("cuda", "/models/gpt-oss-20b")
    (container,) = pods(manifests)["workers"]["spec"]["containers"]
    assert int(container["resources"]["limits"]["nvidia.com/gpu"]) == settings.ranks
    mounts = {mount["mountPath"] for mount in container["volumeMounts"]}
    assert "/models" in mounts


def test_ray_is_of_the_version_that_is_installed(rendered: dict[str, list[Manifest]]) -> None:
    cluster = only(rendered["base"], "RayService")["spec"]["rayClusterConfig"]
    assert cluster["rayVersion"] == version("ray")


def test_the_image_copies_what_is_there() -> None:
    lines = (ROOT / "k8s" / "Dockerfile").read_text().splitlines()
    copied = [line.split()[1:-1] for line in lines if re.match(r"COPY (?!--from)", line)]
    sources = [source for part in copied for source in part]
    assert {"cluster", "worker", "kernels", "protos", "pyproject.toml"} <= set(sources)
    assert all((ROOT / source).exists() for source in sources)
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert {f"!{source}" for source in sources} <= set(ignored)
    assert [line for line in lines if line.startswith("USER")] == ["USER 10001"]


def _worker(manifests: list[Manifest]) -> Manifest:
    spec: Manifest = pods(manifests)["workers"]["spec"]
    return spec


def _container(manifests: list[Manifest]) -> Manifest:
    container: Manifest = _worker(manifests)["containers"][0]
    return container


def _set_serve(manifests: list[Manifest], **args: Any) -> None:
    config = serve_config(manifests)
    config["applications"][0]["args"] |= args
    only(manifests, "RayService")["spec"]["serveConfigV2"] = yaml.safe_dump(config)


def _set_application(manifests: list[Manifest], **keys: Any) -> None:
    config = serve_config(manifests)
    config["applications"][0] |= keys
    only(manifests, "RayService")["spec"]["serveConfigV2"] = yaml.safe_dump(config)


Plant = Callable[[list[Manifest]], Any]
PLANTED: dict[str, tuple[Plant, str]] = {
    "misspelt key of the RayService": (
        lambda m: only(m, "RayService")["spec"].update(serveConfig=""),
        "serveConfig",
    ),
    "wrong type in a worker group": (
        lambda m: only(m, "RayService")["spec"]["rayClusterConfig"]["workerGroupSpecs"][0].update(
            replicas="two"
        ),
        "replicas",
    ),
    "misspelt key in a pod": (lambda m: _container(m).update(volumeMount=[]), "volumeMount"),
    "unknown kind of authentication": (
        lambda m: only(m, "RayService")["spec"]["rayClusterConfig"]["authOptions"].update(
            mode="tokens"
        ),
        "tokens",
    ),
    "misspelt key of the Service": (
        lambda m: only(m, "Service")["spec"].update(clusterIp="None"),
        "clusterIp",
    ),
    "port of the Service as text": (
        lambda m: only(m, "Service")["spec"]["ports"][0].update(port="50051"),
        "Service",
    ),
    "misspelt key of the NetworkPolicy": (
        lambda m: only(m, "NetworkPolicy")["spec"].update(policyType=["Ingress"]),
        "policyType",
    ),
    "no such kind": (lambda m: only(m, "Service").update(kind="Servise"), "Servise"),
    "unknown setting": (lambda m: _set_serve(m, enigmas=2), "enigmas"),
    "setting out of range": (lambda m: _set_serve(m, gateways=0), "gateways"),
    "unknown key of the application": (
        lambda m: _set_application(m, importpath="x"),
        "importpath",
    ),
    "gateways on another port": (lambda m: _set_serve(m, port=50052), "50052"),
    "gateways on loopback": (lambda m: _set_serve(m, host="127.0.0.1"), "127.0.0.1"),
    "metrics on another port": (lambda m: _set_serve(m, metrics_port=9100), "9100"),
    "Service of other pods": (
        lambda m: only(m, "Service")["spec"]["selector"].update({"moeray.dev/role": "gateway"}),
        "Service: its selector",
    ),
    "policy closes the gateways": (
        lambda m: only(m, "NetworkPolicy")["spec"]["ingress"].pop(2),
        "NetworkPolicy: opens",
    ),
    "pod ends before its drain": (
        lambda m: _worker(m).update(terminationGracePeriodSeconds=60),
        "terminationGracePeriodSeconds",
    ),
    "root": (lambda m: _worker(m)["securityContext"].update(runAsNonRoot=False), "root"),
    "capabilities": (lambda m: _container(m)["securityContext"].pop("capabilities"), "capab"),
    "writable root": (
        lambda m: _container(m)["securityContext"].update(readOnlyRootFilesystem=False),
        "written",
    ),
    "service links": (lambda m: _worker(m).pop("enableServiceLinks"), "service links"),
    "no limit on memory": (lambda m: _container(m)["resources"]["limits"].pop("memory"), "memory"),
    "mount without volume": (
        lambda m: _worker(m)["volumes"].remove(
            next(v for v in _worker(m)["volumes"] if v["name"] == "tmp")
        ),
        "no volume",
    ),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_error_is_found(name: str, rendered: dict[str, list[Manifest]]) -> None:
    plant, expected = PLANTED[name]
    manifests = copy.deepcopy(rendered["base"])
    plant(manifests)
    found = problems(manifests)
    assert any(expected in problem for problem in found), found


def test_a_missing_claim_is_found(rendered: dict[str, list[Manifest]]) -> None:
    manifests = copy.deepcopy(rendered["overlays/gpu-20b"])
    manifests.remove(only(manifests, "PersistentVolumeClaim"))
    assert any("moeray-models" in problem for problem in problems(manifests))
