"""The smallest claim there is, for the tests of this folder."""

from typing import Any

from bard_core.config.sections.storage import StorageConfig
from bard_core.findings.spec import Claim

AT = StorageConfig()
SHORT = {"steps": 2, "batch_size": 2, "checkpoint_every": 2, "log_every": 1}
BLOCKS = {"base": "lab-blocks", **SHORT}


def tiny_claim(**changes: Any) -> Claim:
    """Two variants that share source and data, on the smallest lab there is."""
    body: dict[str, Any] = {
        "name": "tiny",
        "number": 1,
        "question": "Does four beat eight?",
        "settings": {
            "data.lab.train_images": 16,
            "data.lab.eval_images": 4,
            "source.lab_model": {
                "hidden_size": 32,
                "layers": 1,
                "heads": 2,
                "kv_heads": 1,
                "head_dim": 16,
                "intermediate_size": 32,
            },
            **{f"source.train.{name}": value for name, value in SHORT.items()},
            **{f"swd.train.{name}": value for name, value in SHORT.items()},
            "evaluation.speed_samples": 1,
            "evaluation.decoding.max_new_tokens": 16,
            "swd.students": [],
        },
        "variants": {
            "four": {"pbm.stages": [{"block_size": 4, "train": BLOCKS}]},
            "both": {
                "pbm.clean_attention": "released",
                "pbm.stages": [{"block_sizes": [4, 8], "draw": "growing", "train": BLOCKS}],
                "swd.students": ["pbm-b8"],
            },
        },
        "seeds": [0, 1],
        "thresholds": [0.9],
        "comparisons": [
            {
                "question": "four against elastic",
                "candidate": {"variant": "four", "model": "pbm-b4"},
                "baseline": {"variant": "both", "model": "pbm-b4"},
            },
            {
                "question": "distilled against not",
                "candidate": {"variant": "both", "model": "swd-b8"},
                "baseline": {"variant": "both", "model": "pbm-b8"},
                "decides": False,
            },
        ],
    }
    return Claim.model_validate({**body, **changes})
