"""The Ray that training runs on, as far as we start it: joined, checked against what is asked for, found dead, started again."""

import contextlib
import functools
import logging
import os
import threading
import time

from bard_core.config.sections.compute import ComputeConfig
from bard_core.preflight import PreflightError
from tasks import stopping
from tasks.follow import local_ray_trouble as trouble

__all__ = ["check", "join", "restart", "trouble"]
log = logging.getLogger(__name__)
WAIT_S = 300.0  # for the nodes of a cluster that is still starting
SHUTDOWN_S = 30.0


def join() -> None:
    """Start a local Ray, or keep the one that there is: flytekit's plugin may have started or joined it."""
    import ray

    if not ray.is_initialized():
        ray.init(include_dashboard=False)
    stopping.listen()  # ray.init installs a handler of its own


def apart() -> None:
    """Let Ray's processes start in a session of their own: a signal to our process group stops us, and we stop them in order."""
    from ray._private import services

    if not isinstance(services.ConsolePopen, functools.partial):
        services.ConsolePopen = functools.partial(services.ConsolePopen, start_new_session=True)
    # Without its head, Ray ends this process after 60 s; the watchdog comes first.
    os.environ.setdefault("RAY_gcs_rpc_server_reconnect_timeout_s", "600")


def restart() -> None:
    """End a Ray that is half dead, whatever it takes, and start another."""
    import ray
    from ray._private import worker

    node = worker._global_node
    ending = threading.Thread(target=ray.shutdown, daemon=True)
    ending.start()
    ending.join(SHUTDOWN_S)
    if node is not None and node.head:
        with contextlib.suppress(Exception):
            node.kill_all_processes(check_alive=False, allow_graceful=False)
    join()


def check(compute: ComputeConfig) -> None:
    """Refuse what the cluster cannot hold. A local Ray is as large as it will ever be; a cluster may be starting.

    Raises:
        PreflightError: naming key, value, what is there and what to do.
    """
    import ray
    from ray._private import worker

    fewest = compute.num_workers[0] if isinstance(compute.num_workers, tuple) else compute.num_workers
    wanted = {"CPU": fewest * compute.cpus_per_worker, **({"GPU": fewest} if compute.use_gpu else {})}
    local = worker._global_node is not None and worker._global_node.head
    deadline = time.monotonic() + (0.0 if local else WAIT_S)
    while True:
        there = ray.cluster_resources()
        short = [kind for kind, count in wanted.items() if there.get(kind, 0) < count]
        if not short:
            return
        if time.monotonic() > deadline:
            kind = short[-1]
            key = "compute.use_gpu is true" if kind == "GPU" else f"compute.cpus_per_worker is {compute.cpus_per_worker}"
            raise PreflightError(
                f"compute.num_workers is {compute.num_workers} and {key}, which takes {wanted[kind]} {kind}s; Ray has "
                f"{there.get(kind, 0):.0f}: ask for fewer workers{' or use_gpu: false' if kind == 'GPU' else ''}, or add nodes"
            )
        time.sleep(2.0)
