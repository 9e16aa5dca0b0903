"""What a pipeline is refused for before anything of it runs: one line with key, value, what is there and what to do.

Sections that do not fit each other are refused here, and so are places and machines that cannot do what is asked. What only the
prepared data can tell is refused when a training starts (``data.fit``).
"""

import os
import uuid
from collections.abc import Iterator

from bard_core.config.sections.compute import ComputeConfig
from bard_core.config.sections.data import DataConfig
from bard_core.config.sections.pbm import PBMConfig
from bard_core.config.sections.source import SourceConfig
from bard_core.config.sections.storage import StorageConfig
from bard_core.config.sections.swd import SWDConfig
from bard_core.config.sections.train import TrainConfig
from bard_core.store import storage


class PreflightError(Exception):
    """The pipeline would fail or hang later: says which key, its value, what is there and what to do."""


def check(
    data: DataConfig,
    source: SourceConfig,
    pbm: PBMConfig,
    swd: SWDConfig,
    compute: ComputeConfig,
    storage_config: StorageConfig,
    on_this_machine: bool,
) -> None:
    """Refuse what cannot work. ``on_this_machine``: training runs here, and not on a cluster that this process cannot see.

    Raises:
        PreflightError: the first thing found.
    """
    _places(compute, storage_config)
    _batches(source, pbm, swd, compute)
    if on_this_machine:
        _machine(compute)
    _processor(data)


def _places(compute: ComputeConfig, storage_config: StorageConfig) -> None:
    checkpoints = compute.checkpoints.root_uri
    if storage_config.root_uri and not storage.is_local(storage_config.root_uri) and storage.is_local(checkpoints):
        raise PreflightError(
            f"compute.checkpoints.root_uri is {checkpoints or 'empty, a folder of this machine'}, which nobody reaches who reads "
            f"storage_config.root_uri {storage_config.root_uri}: set it to {storage.join(storage_config.root_uri, 'checkpoints')}"
        )
    places = {"BARD_HOME": str(storage.home()), "storage_config.root_uri": storage_config.root_uri}
    for key, uri in {**places, "compute.checkpoints.root_uri": checkpoints}.items():
        if uri:
            _writable(key, uri)


def _writable(key: str, uri: str) -> None:
    probe = storage.join(uri, f".preflight-{uuid.uuid4().hex}")
    try:
        storage.write_bytes(probe, b"")
        storage.delete_file(probe)
    except storage.StorageError as error:
        cause = str(error).removeprefix(f"{probe}: ")
        raise PreflightError(f"{key} is {uri}, where nothing can be written: {cause}") from error


def trainings(source: SourceConfig, pbm: PBMConfig, swd: SWDConfig) -> Iterator[tuple[str, TrainConfig]]:
    """Every training of a pipeline, under its key."""
    if source.train is not None:
        yield "source.train", source.train
    for number, stage in enumerate(pbm.stages):
        yield f"pbm.stages[{number}].train", stage.train
    if swd.students:
        yield "swd.train", swd.train


def _batches(source: SourceConfig, pbm: PBMConfig, swd: SWDConfig, compute: ComputeConfig) -> None:
    most = compute.num_workers[1] if isinstance(compute.num_workers, tuple) else compute.num_workers
    for key, train in trainings(source, pbm, swd):
        least = most * train.accumulation
        if train.batch_size < least:
            raise PreflightError(
                f"{key}.batch_size is {train.batch_size}, fewer than compute.num_workers x accumulation = {most} x "
                f"{train.accumulation} = {least}: raise it to {least}, or lower one of the others"
            )


def _machine(compute: ComputeConfig) -> None:
    import torch

    fewest = compute.num_workers[0] if isinstance(compute.num_workers, tuple) else compute.num_workers
    cpus, gpus = os.cpu_count() or 1, torch.cuda.device_count()
    if compute.use_gpu and gpus < fewest:
        raise PreflightError(
            f"compute.use_gpu is true with compute.num_workers {compute.num_workers}, but this machine has {gpus} GPUs: "
            f"set {'num_workers to ' + str(gpus) if gpus else 'use_gpu to false'}, or run where there are more"
        )
    if fewest * compute.cpus_per_worker > cpus:
        room = cpus // compute.cpus_per_worker
        advice = f"num_workers to at most {room}" if room else f"cpus_per_worker to at most {max(1, cpus // fewest)}"
        raise PreflightError(
            f"compute.num_workers x cpus_per_worker is {fewest} x {compute.cpus_per_worker}, but this machine has {cpus} CPUs: "
            f"set {advice}"
        )


def _processor(data: DataConfig) -> None:
    from bard_core.data.tokenize import load_processor

    if data.processor == "lab":
        return
    try:
        load_processor(data)
    except Exception as error:
        cause = str(error).strip().splitlines()[0]
        raise PreflightError(
            f"data.processor is {data.processor}, which cannot be loaded ({cause}): "
            "name a folder with a Qwen-VL processor, a hub id, or lab"
        ) from error
