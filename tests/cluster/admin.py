"""A small stand-in for FlyteAdmin and its data proxy: takes what ``pyflyte run --remote`` registers, uploads and starts.

Not FlyteAdmin: one project, nothing is checked or run, and uploads go to a bucket of the S3 API at ``AWS_ENDPOINT_URL``.
"""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import boto3
import grpc
from flyteidl.admin import execution_pb2, launch_plan_pb2, task_pb2, version_pb2, workflow_pb2
from flyteidl.service import admin_pb2_grpc, dataproxy_pb2, dataproxy_pb2_grpc


@dataclass
class Registered:
    """What a client sent: templates and launch plans by name, executions in order, keys of uploads.

    ``active``: names of launch plans whose schedules run.
    """

    tasks: dict[str, Any] = field(default_factory=dict)
    workflows: dict[str, Any] = field(default_factory=dict)
    plans: dict[str, Any] = field(default_factory=dict)
    executions: list[Any] = field(default_factory=list)
    uploads: list[str] = field(default_factory=list)
    active: list[str] = field(default_factory=list)


class Admin(admin_pb2_grpc.AdminServiceServicer):
    def __init__(self, registered: Registered) -> None:
        self.registered = registered

    def GetVersion(self, request: Any, context: Any) -> Any:
        return version_pb2.GetVersionResponse()

    def CreateTask(self, request: Any, context: Any) -> Any:
        template = self.registered.tasks[request.id.name] = request.spec.template
        template.id.CopyFrom(request.id)
        return task_pb2.TaskCreateResponse()

    def CreateWorkflow(self, request: Any, context: Any) -> Any:
        template = self.registered.workflows[request.id.name] = request.spec.template
        template.id.CopyFrom(request.id)
        return workflow_pb2.WorkflowCreateResponse()

    def CreateLaunchPlan(self, request: Any, context: Any) -> Any:
        self.registered.plans[request.id.name] = request
        return launch_plan_pb2.LaunchPlanCreateResponse()

    def GetLaunchPlan(self, request: Any, context: Any) -> Any:
        found = self.registered.plans.get(request.id.name)
        if found is None:
            context.abort(grpc.StatusCode.NOT_FOUND, request.id.name)
        return launch_plan_pb2.LaunchPlan(id=found.id, spec=found.spec)

    def UpdateLaunchPlan(self, request: Any, context: Any) -> Any:
        if request.state == launch_plan_pb2.ACTIVE:
            self.registered.active.append(request.id.name)
        return launch_plan_pb2.LaunchPlanUpdateResponse()

    def GetWorkflow(self, request: Any, context: Any) -> Any:
        found = self.registered.workflows.get(request.id.name)
        if found is None:
            context.abort(grpc.StatusCode.NOT_FOUND, request.id.name)
        workflow = workflow_pb2.Workflow(id=found.id)
        workflow.closure.compiled_workflow.primary.template.CopyFrom(found)
        for template in self.registered.tasks.values():
            workflow.closure.compiled_workflow.tasks.add().template.CopyFrom(template)
        return workflow

    def GetTask(self, request: Any, context: Any) -> Any:
        context.abort(grpc.StatusCode.NOT_FOUND, request.id.name)

    def CreateExecution(self, request: Any, context: Any) -> Any:
        self.registered.executions.append(request)
        name = {"project": request.project, "domain": request.domain, "name": request.name or "f1"}
        return execution_pb2.ExecutionCreateResponse(id=name)

    def GetExecution(self, request: Any, context: Any) -> Any:
        return execution_pb2.Execution(id=request.id)


class Uploads(dataproxy_pb2_grpc.DataProxyServiceServicer):
    def __init__(self, registered: Registered, bucket: str) -> None:
        self.registered, self.bucket = registered, bucket
        self.s3 = boto3.client("s3", endpoint_url=os.environ["AWS_ENDPOINT_URL"])

    def CreateUploadLocation(self, request: Any, context: Any) -> Any:
        key = f"uploads/{request.filename_root or len(self.registered.uploads)}/{request.filename}"
        self.registered.uploads.append(key)
        url = self.s3.generate_presigned_url("put_object", Params={"Bucket": self.bucket, "Key": key}, ExpiresIn=600)
        return dataproxy_pb2.CreateUploadLocationResponse(signed_url=url, native_url=f"s3://{self.bucket}/{key}")


@contextmanager
def serving(bucket: str) -> Iterator[tuple[Registered, dict[str, str]]]:
    """What clients send, and the environment that leads them here, while the body runs."""
    registered, server = Registered(), grpc.server(ThreadPoolExecutor(4))
    admin_pb2_grpc.add_AdminServiceServicer_to_server(Admin(registered), server)
    dataproxy_pb2_grpc.add_DataProxyServiceServicer_to_server(Uploads(registered, bucket), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield registered, {"FLYTE_PLATFORM_URL": f"127.0.0.1:{port}", "FLYTE_PLATFORM_INSECURE": "true"}
    finally:
        server.stop(None).wait()
