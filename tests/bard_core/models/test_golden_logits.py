"""The stock model under our mask gives the paper's logits, to 1e-4."""

import numpy as np
import pytest
import torch

from bard_core.models import load
from bard_core.models.attention import encode_images, hidden_states


@pytest.mark.parametrize("prompt", ["text", "image"])
@pytest.mark.parametrize("block_size", [4, 8])
@torch.no_grad()
def test_training_layout_logits(golden_dir, training_mask, prompt, block_size):
    io = np.load(golden_dir / "model_io.npz")
    case = {name: torch.from_numpy(io[name]) for name in io.files}
    model = load(golden_dir / "model", block_size=block_size, mask_token_id=510)
    key = f"{prompt}_train_b{block_size}"
    clean, noisy = case[f"{key}_clean"], case[f"{key}_noisy"]
    ids = torch.cat([case[f"{prompt}_input_ids"], clean, noisy], dim=1)
    mask = training_mask(case[f"{prompt}_input_ids"].shape[1], clean.shape[1], block_size)
    images = None
    if prompt == "image":
        images = encode_images(model, case["image_pixel_values"], case["image_image_grid_thw"])
    hidden = hidden_states(model, ids, case[f"{key}_position_ids"], mask[None, None], images)
    logits = model.lm_head(hidden[:, -noisy.shape[1] :])
    assert torch.allclose(logits, case[f"{key}_noisy_logits"], atol=1e-4)
