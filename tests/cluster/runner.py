"""A small stand-in for FlytePropeller: runs a packaged workflow's own container commands, one process a pod.

Every pod has a fresh home, and talks to the others through the object store alone, as on a cluster. Handles what the project's
workflows use: tasks, nested dynamic workflows, mapped tasks with a success ratio, and the cache.

Not FlytePropeller: nodes run one after the other, resources are not enforced, and a Ray task joins a Ray of its own pod.
"""

import hashlib
import importlib
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import boto3
import yaml
from flyteidl.admin import task_pb2, workflow_pb2
from flyteidl.core import dynamic_job_pb2, errors_pb2
from flyteidl.core.literals_pb2 import Literal, LiteralCollection, LiteralMap, Scalar, Void
from flyteidl.core.types_pb2 import Error

ROOT = Path(__file__).resolve().parents[2]
HANDED_ON = ("AWS_", "HF_", "LANG", "MLFLOW_", "OMP_", "PATH", "PYTHONPATH", "RAY_", "TOKENIZERS_", "TRANSFORMERS_")


class PodFailed(Exception):
    """A pod ended without outputs: names its task and log, and ends with its error."""


@dataclass
class Pod:
    """One pod that ran: its task, its place in the workflow, its exit code and its log."""

    task: str
    place: str
    code: int
    log: Path


@dataclass
class Runner:
    """Runs workflows.

    Args:
        tasks, workflows: templates by name, of a package or as registered.
        bucket: an existing bucket of the S3 API at ``AWS_ENDPOINT_URL``. workshop: a folder for the pods' homes and logs.
    """

    tasks: dict[str, Any]
    workflows: dict[str, Any]
    bucket: str
    workshop: Path
    pods: list[Pod] = field(default_factory=list)
    doomed: set[str] = field(default_factory=set)  # tasks whose next pod is killed, as one that takes too much memory

    def __post_init__(self) -> None:
        self.s3 = boto3.client("s3", endpoint_url=os.environ["AWS_ENDPOINT_URL"])

    @classmethod
    def of_package(cls, package: Path, bucket: str, workshop: Path) -> "Runner":
        """A runner of what ``pyflyte package`` wrote."""
        runner = cls({}, {}, bucket, workshop)
        with tarfile.open(package) as archive:
            for member in archive:
                if member.name.endswith("_1.pb"):
                    task = task_pb2.TaskSpec.FromString(archive.extractfile(member).read())
                    runner.tasks[task.template.id.name] = task.template
                elif member.name.endswith("_2.pb"):
                    workflow = workflow_pb2.WorkflowSpec.FromString(archive.extractfile(member).read())
                    runner.workflows[workflow.template.id.name] = workflow.template
        return runner

    def run(self, workflow: str, inputs: LiteralMap, execution: str) -> LiteralMap:
        """Run a workflow to its end; ``execution`` is the prefix of its data in the bucket. Raises PodFailed."""
        template = self.workflows[workflow]
        try:
            return self._graph(template.nodes, template.outputs, inputs, execution)
        except PodFailed as failed:
            if template.HasField("failure_node"):
                error = Literal(scalar=Scalar(error=Error(message=str(failed))))
                given = {b.var: _bound(b.binding, {"": inputs, "start-node": inputs}) for b in template.failure_node.inputs}
                self._node(template.failure_node, LiteralMap(literals={**given, "err": error}), f"{execution}/failure")
            raise

    def _graph(self, nodes: Sequence[Any], outputs: Sequence[Any], inputs: LiteralMap, place: str) -> LiteralMap:
        """Run nodes as soon as what they need is there."""
        done: dict[str, LiteralMap] = {"start-node": inputs, "": inputs}
        waiting = [node for node in nodes if node.id not in ("start-node", "end-node")]
        while waiting:
            node = next(node for node in waiting if set(node.upstream_node_ids) <= done.keys())
            waiting.remove(node)
            given = LiteralMap(literals={binding.var: _bound(binding.binding, done) for binding in node.inputs})
            done[node.id] = self._node(node, given, f"{place}/{node.id}")
        return LiteralMap(literals={binding.var: _bound(binding.binding, done) for binding in outputs})

    def _node(self, node: Any, given: LiteralMap, place: str) -> LiteralMap:
        if node.HasField("task_node"):
            return self.task(self.tasks[node.task_node.reference_id.name], given, place)
        if node.HasField("array_node"):
            return self._mapped(node.array_node, given, place)
        raise NotImplementedError(f"{place}: a node that is neither a task nor a mapped task")

    def _mapped(self, array: Any, given: LiteralMap, place: str) -> LiteralMap:
        """One pod an element; those that fail leave nothing, as long as enough succeed."""
        template = self.tasks[array.node.task_node.reference_id.name]
        over = [v.collection for k, v in given.literals.items() if k not in array.bound_inputs and v.HasField("collection")]
        count, found = len(over[0].literals), []
        for index in range(count):
            try:
                found.append(self.task(template, given, f"{place}/{index}", index).literals["o0"])
            except PodFailed:
                if not array.min_success_ratio:
                    raise
                found.append(Literal(scalar=Scalar(none_type=Void())))
        failed = sum(literal.scalar.HasField("none_type") for literal in found)
        if count - failed < array.min_success_ratio * count:
            raise PodFailed(f"{place}: {failed} of {count} elements failed")
        return LiteralMap(literals={"o0": Literal(collection=LiteralCollection(literals=found))})

    def task(self, template: Any, given: LiteralMap, place: str, index: int | None = None) -> LiteralMap:
        """Run one pod, and what it asks for when it is a dynamic workflow."""
        key = self._cache_key(template, given)
        if key and (kept := self._get(key, LiteralMap)) is not None:
            return kept
        self._pod(template, given, place, index)
        outputs = self._get(f"{place}/0/outputs.pb", LiteralMap)
        if (futures := self._get(f"{place}/0/futures.pb", dynamic_job_pb2.DynamicJobSpec)) is not None:
            self.tasks |= {task.id.name: task for task in futures.tasks}
            outputs = self._graph(futures.nodes, futures.outputs, LiteralMap(), f"{place}/dynamic")
        error = self._get(f"{place}/0/error.pb", errors_pb2.ErrorDocument)
        if outputs is None or error is not None:
            pod = self.pods[-1]
            raise PodFailed(
                f"{pod.task} ({place}), log {pod.log}:\n{error.error.message if error else pod.log.read_text()[-2000:]}"
            )
        if key:
            self._put(key, outputs)
        return outputs

    def _cache_key(self, template: Any, given: LiteralMap) -> str | None:
        """Where a cached task's outputs are kept: by its version and the hashes of the inputs that count."""
        if not template.metadata.discoverable:
            return None
        counted = {name: v for name, v in given.literals.items() if name not in template.metadata.cache_ignore_input_vars}
        text = "".join(
            f"{name}={v.hash or v.SerializeToString(deterministic=True).hex()};" for name, v in sorted(counted.items())
        )
        digest = hashlib.sha256(f"{template.metadata.discovery_version};{text}".encode()).hexdigest()
        return f"cache/{template.id.name}/{digest}.pb"

    def _pod(self, template: Any, given: LiteralMap, place: str, index: int | None) -> None:
        folder = self.workshop / f"{len(self.pods):03d}-{template.id.name.rsplit('.', 1)[-1]}"
        (folder / "home").mkdir(parents=True)
        command, environment = _container(template)
        values = {
            "{{.input}}": self._put(f"{place}/inputs.pb", given),
            "{{.inputPrefix}}": f"s3://{self.bucket}/{place}",
            "{{.outputPrefix}}": f"s3://{self.bucket}/{place}/0",
            "{{.rawOutputDataPrefix}}": f"s3://{self.bucket}/raw/{uuid.uuid4().hex}",
            "{{.checkpointOutputPrefix}}": f"s3://{self.bucket}/raw/{uuid.uuid4().hex}",
            "{{.prevCheckpointPrefix}}": '""',
        }
        environment |= {name: value for name, value in os.environ.items() if name.startswith(HANDED_ON)}
        temp = tempfile.mkdtemp(prefix="pod-", dir="/tmp")  # short: Ray's sockets are below it
        environment |= {"HOME": str(folder / "home"), "TMPDIR": temp, "BARD_HOME": str(folder / "home" / ".bard")}
        environment |= {
            f"FLYTE_INTERNAL_TASK_{k}": v for k, v in (("PROJECT", "bard"), ("DOMAIN", "development"), ("VERSION", "1"))
        }
        environment |= {"FLYTE_INTERNAL_TASK_NAME": template.id.name, "FLYTE_INTERNAL_EXECUTION_ID": "f0"}
        environment |= {"FLYTE_INTERNAL_EXECUTION_PROJECT": "bard", "FLYTE_INTERNAL_EXECUTION_DOMAIN": "development"}
        if index is not None:
            environment |= {"BATCH_JOB_ARRAY_INDEX_VAR_NAME": "FLYTE_K8S_ARRAY_INDEX", "FLYTE_K8S_ARRAY_INDEX": str(index)}
        log = folder / "log"
        with log.open("w") as out:
            arguments = [values.get(argument, argument) for argument in command]
            pod = subprocess.Popen(arguments, env=environment, cwd=folder / "home", stdout=out, stderr=subprocess.STDOUT)
            if template.id.name in self.doomed:
                self.doomed.remove(template.id.name)
                pod.kill()
            ended = pod.wait()
            if ended < 0:
                print(f"killed by {signal.Signals(-ended).name}", file=out)
        self.pods.append(Pod(template.id.name, place, ended, log))
        shutil.rmtree(folder / "home")
        shutil.rmtree(temp, ignore_errors=True)

    def _put(self, key: str, message: Any) -> str:
        self.s3.put_object(Bucket=self.bucket, Key=key, Body=message.SerializeToString(deterministic=True))
        return f"s3://{self.bucket}/{key}"

    def _get(self, key: str, kind: Any) -> Any:
        try:
            return kind.FromString(self.s3.get_object(Bucket=self.bucket, Key=key)["Body"].read())
        except self.s3.exceptions.NoSuchKey:
            return None


def _container(template: Any) -> tuple[list[str], dict[str, str]]:
    """Command and environment of a task's container, whether it stands alone or in a pod."""
    if template.WhichOneof("target") == "container":
        container = template.container
        return [*container.command, *container.args], {item.key: item.value for item in container.env}
    (container,) = template.k8s_pod.pod_spec["containers"]
    command = [*container.get_or_create_list("command"), *container["args"]] if "command" in container else [*container["args"]]
    return [str(part) for part in command], {item["name"]: item["value"] for item in container["env"]}


def _bound(binding: Any, done: Mapping[str, LiteralMap]) -> Literal:
    """What a binding stands for, once the nodes it names are done."""
    kind = binding.WhichOneof("value")
    if kind == "scalar":
        return Literal(scalar=binding.scalar)
    if kind == "promise":
        return done[binding.promise.node_id].literals[binding.promise.var]
    if kind == "collection":
        items = [_bound(item, done) for item in binding.collection.bindings]
        return Literal(collection=LiteralCollection(literals=items))
    return Literal(map=LiteralMap(literals={name: _bound(item, done) for name, item in binding.map.bindings.items()}))


def inputs_of(workflow: str, config: Mapping[str, Any]) -> LiteralMap:
    """A configuration file's sections as literals, made by flytekit itself, as ``pyflyte run --remote`` does."""
    from flytekit.core.context_manager import FlyteContextManager
    from flytekit.core.type_engine import TypeEngine

    module, name = workflow.rsplit(".", 1)
    interface = getattr(importlib.import_module(module), name).python_interface
    values = {}
    for key, (kind, default) in interface.inputs_with_defaults.items():
        given = config.get(key, default)
        values[key] = kind.model_validate(given) if hasattr(kind, "model_validate") and isinstance(given, Mapping) else given
    context = FlyteContextManager.current_context()
    return TypeEngine.dict_to_literal_map(context, values, dict(interface.inputs)).to_flyte_idl()


def package(output: Path) -> Path:
    """``make package`` with made-up digests."""
    spec = importlib.util.spec_from_file_location("package", ROOT / "deploy" / "package.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    images = yaml.safe_load((ROOT / "containers" / "images.lock").read_text(encoding="utf-8"))
    module.package(dict.fromkeys(images, "example.org/bard@sha256:" + "0" * 64), output)
    return output


if __name__ == "__main__":
    archive, name, config_file, bucket_name, folder = sys.argv[1:]
    sections = yaml.safe_load(Path(config_file).read_text(encoding="utf-8"))
    print(Runner.of_package(Path(archive), bucket_name, Path(folder)).run(name, inputs_of(name, sections), uuid.uuid4().hex))
