"""``pyflyte run --remote``: what a checkout sends to Flyte is whole, and a task runs from what was uploaded."""

import io
import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import boto3
import pytest
from flyteidl.core.literals_pb2 import LiteralMap

from .admin import serving
from .runner import ROOT, Runner

IMAGE = "example.org/bard@sha256:" + "0" * 64


STAGES = ("prepare", "train", "evaluate", "report")


@pytest.mark.slow
def test_what_a_remote_run_uploads_is_whole_and_runs(bucket: str, tmp_path: Path) -> None:
    """The bounded form of the parity test: one task of re-evaluation, in a pod that has the uploaded files only."""
    flags = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert "REMOTE_FLAGS = --remote --copy all" in flags
    inputs = ROOT / "configs" / "reevaluate" / "lab.yaml"
    images = [flag for stage in STAGES for flag in ("--image", f"{stage}={IMAGE}")]
    program = str(Path(sys.executable).parent / "pyflyte")
    command = [program, "run", "--remote", "--copy", "all", "--project", "bard", "--domain", "development", *images]
    command += ["workflows/reevaluate.py", "reevaluate", "--inputs-file", str(inputs)]
    with serving(bucket) as (registered, address):
        done = subprocess.run(command, cwd=ROOT, env={**os.environ, **address}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (execution,) = registered.executions
    assert execution.spec.launch_plan.name == "workflows.reevaluate.reevaluate"
    assert {"tasks.reevaluate.plan", "tasks.reevaluate.conclude"} <= set(registered.tasks)

    s3 = boto3.client("s3", endpoint_url=os.environ["AWS_ENDPOINT_URL"])
    (code,) = [key for key in registered.uploads if key.endswith(".tar.gz")]
    body = s3.get_object(Bucket=bucket, Key=code)["Body"].read()
    with tarfile.open(fileobj=io.BytesIO(body)) as archive:
        sent = {name.removeprefix("./") for name in archive.getnames()}
    suites = {path.relative_to(ROOT).as_posix() for path in (ROOT / "bard_core" / "evaluation" / "suites").glob("*.yaml")}
    assert suites and suites <= sent, "suite files, which are not Python, are missing from the upload"

    runner = Runner(registered.tasks, registered.workflows, bucket, tmp_path / "pods")
    node = next(n for n in registered.workflows["workflows.reevaluate.reevaluate"].nodes if n.task_node.reference_id.name)
    template = registered.tasks[node.task_node.reference_id.name]
    assert template.k8s_pod.pod_spec["containers"][0]["image"] == IMAGE
    given = {binding.var: execution.inputs.literals[binding.binding.promise.var] for binding in node.inputs}
    outputs = runner.task(template, LiteralMap(literals=given), "remote")
    (pod,) = runner.pods
    assert "to judge: nothing" in pod.log.read_text(), pod.log.read_text()
    assert [len(value.collection.literals) for value in outputs.literals.values()] == [0]


@pytest.mark.cluster
def test_registering_uploads_nothing_and_starts_the_schedules(bucket: str) -> None:
    """The command of ``make register``, with made-up images."""
    rule = re.search(
        r"^register:.*\n\t.*\$\(BIN\)/pyflyte (register .*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M
    )[1]
    images = " ".join(f"--image {stage}={IMAGE}" for stage in STAGES)
    for name, value in {"PROJECT": "bard", "DOMAIN": "development", "VERSION": "abc", "STAGE_IMAGES": images}.items():
        rule = rule.replace(f"$({name})", value)
    program = str(Path(sys.executable).parent / "pyflyte")
    with serving(bucket) as (registered, address):
        environment = {**os.environ, **address, "BARD_ROOT_URI": f"s3://{bucket}/bard"}
        done = subprocess.run([program, *rule.split()], cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert {"bard-lab", "bard-4b", "reevaluate", "nightly"} <= set(registered.plans) and not registered.uploads
    assert "nightly" in registered.active and registered.plans["nightly"].spec.entity_metadata.schedule.cron_schedule.schedule
    for name, template in registered.tasks.items():
        (container,) = template.k8s_pod.pod_spec["containers"]
        assert container["image"] == IMAGE and container["args"][0] == "pyflyte-execute", name
