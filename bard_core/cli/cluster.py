"""What doctor looks at beyond this machine: storage, Flyte, secrets, and with ``--cluster`` the Kubernetes cluster itself."""

import os
import uuid
from collections.abc import Iterator
from typing import Any

from bard_core.cli.finding import Finding

PAGE = "deploy/README.md"
SECRETS = {
    ("flyte", "flyte-db"): ("password", "ca.pem"),
    ("mlflow", "mlflow-db"): ("uri", "ca.pem"),
    ("mlflow", "mlflow-auth"): ("basic_auth.ini", "flask-key"),
    ("mlflow", "bard-webhook"): ("secret", "mlflow-username", "mlflow-password"),
    ("bard-development", "bard-training"): ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"),
}
OLDEST = (1, 28)  # Kubernetes
WAIT_S = 5.0


def in_pod() -> bool:
    return "KUBERNETES_SERVICE_HOST" in os.environ


def bucket(root: str) -> Iterator[Finding]:
    """Write a small file below ``root``, read it and delete it."""
    from bard_core.store import storage
    from bard_core.store.hiccups import StorageError

    uri, body = storage.join(root, "doctor", uuid.uuid4().hex), b"bard doctor"
    try:
        storage.write_bytes(uri, body)
        same = storage.read_bytes(uri) == body
        storage.delete_file(uri)
    except StorageError as error:
        mend = f"give this role or these credentials the right to read, write and delete below {root} ({PAGE}, section 1)"
        yield Finding("storage", str(error), mend)
        return
    yield Finding("storage", f"{root}: written, read, deleted", "" if same else "what was read is not what was written")


def flyte() -> Iterator[Finding]:
    """Ask the Flyte that ``FLYTE_PLATFORM_URL`` names for its version."""
    url = os.environ.get("FLYTE_PLATFORM_URL", "").removeprefix("dns:///")
    if not url:
        return
    import grpc

    plain = os.environ.get("FLYTE_PLATFORM_INSECURE", "").lower() in ("1", "true")
    channel = grpc.insecure_channel(url) if plain else grpc.secure_channel(url, grpc.ssl_channel_credentials())
    ask = channel.unary_unary("/flyteidl.service.AdminService/GetVersion")
    try:
        ask(b"", timeout=WAIT_S)
    except grpc.RpcError as error:
        if error.code() is grpc.StatusCode.UNAUTHENTICATED:
            yield Finding("flyte", f"{url}: there, and wants a log-in")
            return
        mend = f"port-forward it and say FLYTE_PLATFORM_INSECURE=true ({PAGE}, section 6), or correct FLYTE_PLATFORM_URL"
        yield Finding("flyte", f"{url}: {error.code().name.lower()}: {error.details()}", mend)
    else:
        yield Finding("flyte", url)
    finally:
        channel.close()


def environment() -> Iterator[Finding]:
    """In a pod: what the secret of the task pods should have brought."""
    if not in_pod():
        return
    names = SECRETS["bard-development", "bard-training"]
    missing = [name for name in names if not os.environ.get(name)]
    mend = f"put {', '.join(missing)} into the secret bard-training of this namespace ({PAGE}, section 4)" if missing else ""
    yield Finding("secrets", f"without {', '.join(missing)}" if missing else ", ".join(names), mend)
    yield Finding("HF_TOKEN", "set" if os.environ.get("HF_TOKEN") else "not set; gated models and data need it")


def kubernetes() -> Iterator[Finding]:
    """The cluster of kubectl's current context: its version, GPUs, Ray's operator, and the secrets with their keys."""
    from kubernetes import client, config
    from kubernetes.client.exceptions import ApiException
    from kubernetes.config.config_exception import ConfigException
    from urllib3.exceptions import HTTPError

    try:
        config.load_kube_config()
        configured = client.Configuration.get_default_copy()
        configured.retries = False
        api = client.ApiClient(configured)
        version = client.VersionApi(api).get_code(_request_timeout=WAIT_S)
        nodes: list[Any] = client.CoreV1Api(api).list_node(_request_timeout=WAIT_S).items
    except (ConfigException, ApiException, HTTPError) as error:
        yield Finding("kubernetes", str(error).splitlines()[0], "make `kubectl get nodes` work: a context, and the right to read")
        return
    found = (int(version.major), int("".join(filter(str.isdigit, version.minor))))
    old = f"upgrade it to {OLDEST[0]}.{OLDEST[1]} or later" if found < OLDEST else ""
    yield Finding("kubernetes", f"{version.git_version}, {len(nodes)} nodes", old)
    gpus = sum(int(node.status.allocatable.get("nvidia.com/gpu", 0)) for node in nodes)
    yield Finding("gpus", str(gpus), "" if gpus else f"add GPU nodes and NVIDIA's device plugin ({PAGE}, section 1)")
    yield from _operator(client.ApisApi(api))
    core = client.CoreV1Api(api)
    for (namespace, name), keys in SECRETS.items():
        yield _secret(core, namespace, name, keys)


def _operator(apis: Any) -> Iterator[Finding]:
    known = {group.name for group in apis.get_api_versions(_request_timeout=WAIT_S).groups}
    mend = "" if "ray.io" in known else f"install kuberay-operator ({PAGE}, section 5)"
    yield Finding("kuberay", "not installed" if mend else "installed", mend)


def _secret(core: Any, namespace: str, name: str, keys: tuple[str, ...]) -> Finding:
    from kubernetes.client.exceptions import ApiException

    try:
        held = core.read_namespaced_secret(name, namespace, _request_timeout=WAIT_S).data or {}
    except ApiException as error:
        why = "missing" if error.status == 404 else f"not to be read: {error.reason}"
        return Finding(f"{namespace}/{name}", why, f"kubectl -n {namespace} create secret generic {name} ... ({PAGE}, section 4)")
    missing = [key for key in keys if key not in held]
    mend = f"add {', '.join(missing)} to it ({PAGE}, section 4)" if missing else ""
    return Finding(f"{namespace}/{name}", f"without {', '.join(missing)}" if missing else "has its keys", mend)
