"""``bard``, the command line.

bard plan configs/bard_4b.yaml      what a run will cost; needs no GPU
"""

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from bard_core import plan as planning
from bard_core.config import read_pipeline
from bard_core.plan import GPUS, Assumptions


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; 0, or 2 when what it was given is at fault."""
    parser = argparse.ArgumentParser(prog="bard", description="Turn an autoregressive VLM into a block-diffusion one.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    verb = verbs.add_parser("plan", help="what a configuration will cost: memory, tokens, GPU-hours, sizes; needs no GPU")
    verb.add_argument("config", type=Path, help="a file of configs/")
    given = Assumptions()
    verb.add_argument("--gpu", choices=sorted(GPUS), default=given.gpu)
    verb.add_argument("--mfu", type=float, default=given.mfu, help=f"share of peak FLOP/s that is reached ({given.mfu})")
    verb.add_argument("--tokens-per-sample", type=int, help="mean tokens, noisy copies included (default: a full row)")
    verb.add_argument("--image-tokens-per-sample", type=int, default=given.image_tokens_per_sample)
    verb.add_argument("--json", action="store_true", help="the same numbers for machines")
    options = parser.parse_args(arguments)
    assumptions = Assumptions(options.gpu, options.mfu, options.tokens_per_sample, options.image_tokens_per_sample)
    try:
        found = planning.plan(read_pipeline(options.config), assumptions)
    except (OSError, ValueError, ValidationError) as error:
        print(f"bard: {options.config}: {error}", file=sys.stderr)
        return 2
    print(json.dumps(dataclasses.asdict(found), indent=2) if options.json else planning.text(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
