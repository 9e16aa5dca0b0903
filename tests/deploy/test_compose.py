"""deploy/compose: valid for Compose's own schema once .env is filled in, hardened, and of images that can be made."""

import gzip
import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "deploy" / "compose"
DIGEST = "example.org/image@sha256:" + "0" * 64


def settings() -> dict[str, str]:
    """``env.example``, filled in."""
    lines = (FOLDER / "env.example").read_text(encoding="utf-8").splitlines()
    names = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
    return {name: DIGEST if name.endswith("_IMAGE") else value or "x" for name, value in names.items()}


def interpolated(text: str, values: dict[str, str]) -> str:
    """What ``docker compose config`` makes of variables. Raises KeyError for one that .env lacks."""
    filled = re.sub(r"(?<!\$)\$\{(\w+)(?::[?-][^}]*)?\}", lambda found: values[found[1]], text)
    return filled.replace("$$", "$")


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return yaml.safe_load(interpolated((FOLDER / "compose.yaml").read_text(encoding="utf-8"), settings()))


def test_the_file_is_valid_for_the_schema_of_compose(compose: dict[str, Any]) -> None:
    with gzip.open(Path(__file__).parent / "compose-spec.json.gz", "rt") as file:
        schema = json.load(file)
    jsonschema.validate(compose, schema)
    compose["services"]["bard"]["imagee"] = DIGEST
    with pytest.raises(jsonschema.ValidationError, match="imagee"):
        jsonschema.validate(compose, schema)
    del compose["services"]["bard"]["imagee"]


def test_what_services_name_is_declared(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        assert service["image"] == DIGEST, name
        assert set(service.get("depends_on", {})) <= set(compose["services"]), name
        assert set(service.get("secrets", [])) <= set(compose["secrets"]), name
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert source in compose["volumes"] or (FOLDER / source).exists(), f"{name}: {source}"
        waited = [other for other, how in service.get("depends_on", {}).items() if how["condition"] == "service_healthy"]
        assert all("healthcheck" in compose["services"][other] for other in waited), name


def test_no_service_is_root_or_open_to_the_world(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        assert int(service["user"].split(":")[0]) > 0, name
        assert "no-new-privileges:true" in service["security_opt"] and service["cap_drop"] == ["ALL"], name
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), name
        assert not [key for key in service.get("environment", {}) if "PASSWORD" in key and not key.endswith("_FILE")], name


def test_the_pipeline_runs_in_the_image_that_holds_every_stage(compose: dict[str, Any]) -> None:
    """The paths that the service runs are those that containers/one copies, and its comment names a Dockerfile that exists."""
    text = (FOLDER / "env.example").read_text(encoding="utf-8")
    named = re.findall(r"containers/\w+/Dockerfile", text)
    assert named and all((ROOT / name).is_file() for name in named)
    dockerfile = (ROOT / "containers" / "one" / "Dockerfile").read_text(encoding="utf-8")
    service = compose["services"]["bard"]
    script = service["entrypoint"][2]
    (workflow,) = re.findall(r"workflows/\w+\.py", script)
    assert (ROOT / workflow).is_file()
    assert f"COPY workflows {service['working_dir']}/workflows" in dockerfile
    assert f"COPY configs {service['working_dir']}/configs" in dockerfile
    assert f"BARD_HOME={service['environment']['BARD_HOME']}" in dockerfile
