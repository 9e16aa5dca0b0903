"""A driver to be killed: trains the stage of a JSON file on Ray, as a task does. Usage: driver.py SPEC.json WORKERS."""

import sys
from pathlib import Path

from bard_core.config.sections.compute import ComputeConfig
from bard_core.config.sections.storage import TrackingConfig
from bard_core.training.spec import StageSpec
from tasks.launch import train_on_ray

spec = StageSpec.model_validate_json(Path(sys.argv[1]).read_text())
fewest, _, most = sys.argv[2].partition("-")
compute = ComputeConfig(num_workers=(int(fewest), int(most)) if most else int(fewest), stop_within_s=60)
print(train_on_ray(spec, compute, TrackingConfig(), None).model_dump_json())
