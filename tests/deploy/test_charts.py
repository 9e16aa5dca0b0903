"""What Helm makes of the pinned charts and our values: valid for Kubernetes, hardened, every image by digest.

Run by ``make charts``: it takes helm, and the charts from their repositories or from folders of the same names in ``CHARTS``.
"""

import json
import os
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from .test_manifests import DEPLOY, fill_module

COMMANDS = re.findall(r"^helm upgrade --install ((?:.*\\\n)*.*)$", (DEPLOY / "README.md").read_text(), re.MULTILINE)
INSTALLED = [command for command in COMMANDS if "dist/deploy" in command]  # with values of ours
DIGEST = "1" + "e" * 63
BY_DIGEST = re.compile(r"[a-z0-9./-]+@sha256:[0-9a-f]{64}")


def site(tmp_path: Path) -> Path:
    """deploy/ with a made-up site's names, as fill.py leaves it in dist/deploy/."""
    fill = fill_module()
    words = {name: name.lower().replace("_", "-") for name in fill.read_site(DEPLOY / "site.env.example")}
    words |= {name: DIGEST for name in words if name.endswith("_DIGEST")}
    words |= {name: f"example.org/bard@sha256:{DIGEST}" for name in words if name.endswith("_IMAGE")}
    for path in DEPLOY.glob("*.yaml"):
        (tmp_path / path.name).write_text(fill.fill(path.read_text(encoding="utf-8"), words), encoding="utf-8")
    return tmp_path


def rendered(command: str, cloud: str, folder: Path) -> list[dict[str, Any]]:
    """The objects of a ``helm upgrade --install`` of the page."""
    words = shlex.split(
        command.replace("\\\n", " ").replace("dist/deploy", str(folder)).replace("flyte-eks", f"flyte-{cloud}"), comments=True
    )
    if charts := os.environ.get("CHARTS"):
        words[1] = str(Path(charts) / words[1])
        for flag in ("--repo", "--version"):
            at = words.index(flag)
            del words[at : at + 2]
    done = subprocess.run(["helm", "template", *words], capture_output=True, text=True, check=True)
    return [whole(document) for document in yaml.safe_load_all(done.stdout) if document]


def whole(value: Any) -> Any:
    """Without keys that hold nothing: Kubernetes takes a null for an absent key, its schema does not."""
    if isinstance(value, dict):
        return {key: whole(inner) for key, inner in value.items() if inner is not None}
    return [whole(inner) for inner in value] if isinstance(value, list) else value


def test_the_page_installs_both_charts_in_pinned_versions() -> None:
    assert [re.search(r"--version (\S+)", command)[1] for command in INSTALLED] == ["1.5.1", "v1.16.8"]


@pytest.mark.outside
@pytest.mark.parametrize("number, cloud", [(0, "eks"), (1, "eks"), (1, "gke")], ids=["kuberay", "flyte-eks", "flyte-gke"])
def test_what_helm_makes_is_valid_hardened_and_pinned(number: int, cloud: str, tmp_path: Path) -> None:
    found = rendered(INSTALLED[number], cloud, site(tmp_path))
    assert {"Deployment", "ServiceAccount", "Service", "ClusterRole"} <= {document["kind"] for document in found}
    for document in found:
        kubernetes_validate.validate(document, "1.32", strict=True)
        assert document.get("spec", {}).get("type") not in ("NodePort", "LoadBalancer") and document["kind"] != "Ingress"
        assert document["kind"] != "Secret" or not (document.get("data") or document.get("stringData")), document["metadata"]
        if document["kind"] == "Deployment":
            hardened(document["spec"]["template"]["spec"])
    text = json.dumps(found)
    named = re.findall(r'image\\?": \\?"([^"\\]+)|image: \\?"?([^"\\\s]+)', text)
    assert named and [image for pair in named if not BY_DIGEST.fullmatch(image := "".join(pair))] == []
    assert not re.search(r":latest\b|NodePort", text)


def hardened(pod: dict[str, Any]) -> None:
    for container in [*pod.get("initContainers", []), *pod["containers"]]:
        asked = {**pod.get("securityContext", {}), **container.get("securityContext", {})}
        assert asked["runAsNonRoot"] is True and asked["seccompProfile"]["type"] == "RuntimeDefault", container["name"]
        assert {"requests", "limits"} <= container["resources"].keys(), container["name"]


@pytest.mark.outside
@pytest.mark.parametrize("cloud", ["eks", "gke"])
def test_flyte_reads_our_settings(cloud: str, tmp_path: Path) -> None:
    """The settings that the binary would read, merged from its files as it merges them, and the objects of its templates."""
    found = rendered(INSTALLED[1], cloud, site(tmp_path))
    maps = {document["metadata"]["name"]: document["data"] for document in found if document["kind"] == "ConfigMap"}
    settings: dict[str, Any] = {}
    for _, text in sorted(maps["flyte-flyte-binary-config"].items()):
        merge(settings, yaml.safe_load(text))
    ray = settings["plugins"]["ray"]
    assert ray["serviceType"] == "ClusterIP" and ray["shutdownAfterJobFinishes"] and ray["ttlSecondsAfterFinished"] == 60
    assert settings["flyte"]["admin"]["seedProjects"] == ["bard"]
    assert "ray" in settings["tasks"]["task-plugins"]["enabled-plugins"]
    assert "password" not in settings["database"]["postgres"] and "verify-full" in settings["database"]["postgres"]["options"]
    assert settings["propeller"]["rawoutput-prefix"] == {"eks": "s3://bucket/data", "gke": "gs://bucket/data"}[cloud]
    made = [yaml.safe_load(text)["kind"] for text in maps["flyte-flyte-binary-cluster-resource-templates"].values()]
    assert made == ["Namespace", "NetworkPolicy", "ServiceAccount"]


def merge(into: dict[str, Any], more: dict[str, Any]) -> None:
    for key, value in more.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            merge(into[key], value)
        else:
            into[key] = value
