"""One rank that starts from folders, in a process of its own: ``starts_on`` runs this file on every rank by runpy."""

import multiprocessing
import tempfile
import threading
from pathlib import Path

import torch
import torch.distributed as dist

from bard_core.models import load
from bard_core.models.vlm import outline
from bard_core.models.weights import fill
from bard_core.training.objectives import ProgressiveBlockMerging
from bard_core.training.parallel import shard

CPU = torch.device("cpu")


def own_bytes():
    """Memory of this process that is not a file's."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon")]
    return int(line.split()[1]) * 1024


def started(folder):
    """A folder's model, sharded but for its frozen vision tower, and the most bytes that this took over what there was."""
    before, over = own_bytes(), threading.Event()
    seen = [before]

    def watch():
        while not over.wait(0.001):
            seen.append(own_bytes())

    thread = threading.Thread(target=watch)
    thread.start()
    model = outline(folder)
    model.model.visual.requires_grad_(False)
    objective = ProgressiveBlockMerging(model, "block", "mask", 0.0)
    shard(objective, model, "float32", CPU, True)
    fill(model, folder, CPU, within=objective)
    over.set()
    thread.join()
    return model, max(seen) - before


def differing(model, plain):
    """Names of what is not equal, bit for bit, in the two; a shard counts with its fellows."""
    names = []
    for kind in ("named_parameters", "named_buffers"):
        theirs = dict(getattr(plain, kind)())
        for name, value in getattr(model, kind)():
            whole = value.full_tensor() if hasattr(value, "full_tensor") else value
            if not torch.equal(whole, theirs.pop(name)):
                names.append(name)
        names += theirs
    return names


def starts_on(world, preload, *folders):
    """By folder: which tensors are not those of a plain load, as rank 0 sees it, and the peak of each rank."""
    from .workers import on_ranks

    multiprocessing.get_context("forkserver").set_forkserver_preload(preload)
    with tempfile.TemporaryDirectory() as scratch:
        on_ranks(__file__, world, scratch=scratch, folders=[str(folder) for folder in folders])
        ranks = [torch.load(f"{scratch}/{rank}", weights_only=True) for rank in range(world)]
    return [(names, [found[number][1] for found in ranks]) for number, (names, _) in enumerate(ranks[0])]


if __name__ == "rank":
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{scratch}/rendezvous", rank=rank, world_size=world)  # noqa: F821
    results = []
    for folder in map(Path, folders):  # noqa: F821
        model, peak = started(folder)
        results.append((differing(model, load(folder)), peak))
    torch.save(results, f"{scratch}/{rank}")  # noqa: F821
    dist.destroy_process_group()
