"""Manifests and values: valid, pinned, hardened, and without a key that the pinned charts lack."""

import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
# Free-form in the chart, or commented out there, so its values file cannot say what is allowed below.
OPEN = {
    "configuration.inline",
    "clusterResourceTemplates.inline",
    "serviceAccount.annotations",
    "deployment.resources",
    "deployment.podSecurityContext",
    "deployment.securityContext",
    "enabled_plugins.tasks.task-plugins.default-for-task-types",
    "resources",
}
CHARTS = {
    "flyte-values.yaml": "flyte-binary-1.16.8.values.yaml",
    "flyte-eks.yaml": "flyte-binary-1.16.8.values.yaml",
    "flyte-gke.yaml": "flyte-binary-1.16.8.values.yaml",
    "kuberay-values.yaml": "kuberay-operator-1.5.1.values.yaml",
}


def unknown(given: dict[str, Any], known: Any, path: str = "") -> Iterator[str]:
    for key, value in given.items():
        here = f"{path}.{key}" if path else key
        if here in OPEN:
            continue
        if not isinstance(known, dict) or key not in known:
            yield here
        elif isinstance(value, dict):
            yield from unknown(value, known[key], here)


@pytest.mark.parametrize("name", sorted(CHARTS))
def test_values_have_no_key_that_the_pinned_chart_lacks(name: str) -> None:
    chart = yaml.safe_load((Path(__file__).parent / CHARTS[name]).read_text(encoding="utf-8"))
    given = yaml.safe_load((DEPLOY / name).read_text(encoding="utf-8"))
    assert list(unknown(given, chart)) == []
    assert list(unknown({"ingres": {}, "deployment": {"imagee": 1}}, chart)) != [], "a misspelt key would be seen"


def documents() -> list[tuple[str, dict[str, Any]]]:
    """Every Kubernetes object of deploy/, those inside Flyte's templates too."""
    found = []
    for path in sorted(DEPLOY.glob("*.yaml")):
        for document in yaml.safe_load_all(path.read_text(encoding="utf-8")):
            if "kind" in document:
                found.append((path.name, document))
            inline = document.get("clusterResourceTemplates", {}).get("inline", {})
            found += [(path.name, yaml.safe_load(text)) for text in inline.values()]
    return found


@pytest.mark.parametrize("where, document", documents(), ids=lambda value: value["kind"] if isinstance(value, dict) else value)
def test_an_object_is_valid_for_kubernetes(where: str, document: dict[str, Any]) -> None:
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    kubernetes_validate.validate(document, "1.32", strict=True)


def pods() -> list[tuple[str, dict[str, Any]]]:
    found = []
    for _, document in documents():
        spec = document.get("spec", {})
        template = spec.get("jobTemplate", {}).get("spec", spec).get("template")
        if template:
            found.append((document["metadata"]["name"], template["spec"]))
    return found


@pytest.mark.parametrize("name, pod", pods(), ids=lambda value: value if isinstance(value, str) else "")
def test_a_pod_is_not_root_asks_for_resources_and_names_images_by_digest(name: str, pod: dict[str, Any]) -> None:
    assert pod["securityContext"]["runAsNonRoot"] is True and pod["securityContext"]["runAsUser"] > 0
    for container in [*pod.get("initContainers", []), *pod["containers"]]:
        assert {"requests", "limits"} <= set(container["resources"]) and "memory" in container["resources"]["limits"]
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert re.fullmatch(r"[A-Z]+_IMAGE|[a-z0-9./-]+@sha256:[A-Z]+_DIGEST", container["image"]), container["image"]


def test_nothing_is_latest_open_to_the_world_or_secret() -> None:
    for path in [*DEPLOY.rglob("*.yaml"), *DEPLOY.rglob("*.example"), *DEPLOY.rglob("*.sbatch")]:
        text = path.read_text(encoding="utf-8")
        assert not re.search(r":latest\b|type: (NodePort|LoadBalancer)|nodePort", text), path
        assert not re.search(r"(?i)(password|secret_key|token): *[\"']?[a-z0-9]{8,}", text), path


def test_actions_are_pinned_to_commits_and_say_which_version() -> None:
    workflows = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
    used = [line for path in workflows for line in re.findall(r"uses: .*", path.read_text(encoding="utf-8"))]
    assert len(used) > 10
    assert [line for line in used if not re.fullmatch(r"uses: [\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", line)] == []


def fill_module() -> Any:
    spec = importlib.util.spec_from_file_location("fill", DEPLOY / "fill.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_site_fills_every_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    fill = fill_module()
    for path in [*DEPLOY.glob("*.yaml"), DEPLOY / "site.env.example"]:
        (tmp_path / path.name).write_bytes(path.read_bytes())
    monkeypatch.setattr(fill, "FOLDER", tmp_path)
    monkeypatch.setattr(fill, "OUTPUT", tmp_path / "out")
    assert fill.main(["eks"]) == 2 and "site.env is missing: copy" in capsys.readouterr().err
    names = fill.read_site(DEPLOY / "site.env.example")
    site = tmp_path / "site.env"
    site.write_text("\n".join(f"{name}=x" for name in names if name not in ("FLYTE_ROLE", "GCP_PROJECT")))
    assert fill.main(["eks"]) == 2 and "no value for FLYTE_ROLE;" in capsys.readouterr().err
    site.write_text("\n".join(f"{name}=value-{name.lower()}" for name in names))
    assert fill.main(["eks"]) == 0
    written = {path.name: path.read_text() for path in (tmp_path / "out").glob("*.yaml")}
    assert "flyte-eks.yaml" in written and "flyte-gke.yaml" not in written
    for name, text in written.items():
        assert not [word for word in names if re.search(rf"\b{word}\b", text)], name
    assert "eks.amazonaws.com/role-arn: value-flyte_role" in written["flyte-eks.yaml"]
