"""Memory that truly runs out in the middle of a stage: the step, its rows and its samples are named, and the advice helps."""

import os
import subprocess
import sys

import pytest

from bard_core.data.reader import Reader
from bard_core.training.spec import run_of
from bard_core.training.stage import prepare_base

from .conftest import stage_specs

# After the first step, a limit of the address space: what the process has, and ROOM more. glibc gives every freed block back.
TRAIN = """
import resource, sys
import torch
from bard_core.training.spec import StageSpec, run_of
from bard_core.training.stage import run_stage

torch.set_num_threads(1)
spec, base, room = StageSpec.model_validate_json(sys.argv[1]), sys.argv[2], int(sys.argv[3])

def limit(record):
    pages = int(open("/proc/self/statm").read().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + room, resource.RLIM_INFINITY))

run_stage(spec, base, run_of(spec), limit)
"""
ROOM = 24 * 2**20


def trained(spec):
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0", "MALLOC_ARENA_MAX": "1"}
    command = [sys.executable, "-c", TRAIN, spec.model_dump_json(), prepare_base(spec, run_of(spec)), str(ROOM)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.slow
@pytest.mark.faults
def test_memory_runs_out_and_the_advice_helps(tiny_dataset, source_model, bard_home, faults):
    options = {"steps": 3, "batch_size": 64, "checkpoint_every": 3}
    done = trained(stage_specs(tiny_dataset, source_model, **options)["pbm"])
    assert done.returncode != 0, done.stderr
    (said,) = [line for line in done.stderr.splitlines() if "OutOfMemory: " in line]
    assert "memory ran out at step 2 over rows of" in said and "raise train.accumulation" in said, said
    names = {example.id for example in Reader(tiny_dataset, "train")}
    assert sum(f"'{name}'" in said for name in names) > len(names) / 2, said
    helped = trained(stage_specs(tiny_dataset, source_model, accumulation=16, **options)["pbm"])
    assert helped.returncode == 0, helped.stderr
    faults.survived("memory out of range in the middle of a stage", "step and samples named; more accumulation goes through")
