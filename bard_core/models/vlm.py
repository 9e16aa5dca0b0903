"""Load a stock Hugging Face model and record what makes it a block-diffusion one: block size, mask token, clean attention.

BARD is the stock model under another mask and another objective, so everything here is a switch: the settings travel as a
plain ``bard`` entry of ``config.json`` and any tool that ignores it still loads the checkpoint.
"""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from bard_core.diffusion.names import MASK_TOKEN, CleanAttention, PrefixBlocks
from bard_core.models.patches import embed_by_product
from bard_core.models.released import read_config
from bard_core.models.turns import TurnMarkers
from bard_core.models.weights import fill, stored_by_name


@dataclass(frozen=True)
class BardSettings:
    """What the ``bard`` entry of ``config.json`` holds.

    Attributes:
        block_size: 1 is an autoregressive model.
        mask_token_id: the token that a noisy position starts from.
        prefix_blocks: how a prompt's blocks were laid out in training: ``turns`` start them anew where an assistant turn starts
            and where it ends; ``uniform`` counts them from the prompt's first token, as the release does.
        system_prompt: the system turn of training samples that had none of their own (see ``data.conversation``).
        turn_start, turn_end: the token ids that open an assistant turn and the one that ends it, for ``turns``.
    """

    block_size: int
    mask_token_id: int | None
    clean_attention: CleanAttention = "block"
    system_prompt: str | None = None
    prefix_blocks: PrefixBlocks = "uniform"
    turn_start: tuple[int, ...] = ()
    turn_end: int | None = None

    @property
    def turns(self) -> TurnMarkers | None:
        """What to find a prompt's turns by; None where its blocks do not depend on them."""
        if self.prefix_blocks == "uniform":
            return None
        if not self.turn_start or self.turn_end is None:
            raise ValueError(
                "the model's config says prefix_blocks: turns but not what marks one: record turn_start and turn_end "
                "(bard_core.models.turns.turn_markers reads them off a processor)"
            )
        return TurnMarkers(self.turn_start, self.turn_end)


def bard_settings(model: Any) -> BardSettings:
    """The settings in the model's config; a stock model without any is autoregressive."""
    return settings_in(model.config)


def settings_in(config: Any) -> BardSettings:
    """The settings that a transformers config carries."""
    recorded = getattr(config, "bard", None)
    if not recorded:
        return BardSettings(block_size=1, mask_token_id=None)
    return BardSettings(**{**recorded, "turn_start": tuple(recorded.get("turn_start", ()))})


def record_settings(model: Any, settings: BardSettings) -> None:
    """Write the settings into the model's config, from where ``save_pretrained`` carries them along."""
    if settings.mask_token_id is not None and not 0 <= settings.mask_token_id < embedding_rows(model):
        raise ValueError(
            f"mask_token_id {settings.mask_token_id} is outside the embedding of {embedding_rows(model)} rows: "
            "add the token with bard_core.models.vlm.add_mask_token(model, tokenizer)"
        )
    model.config.bard = asdict(settings) | {"turn_start": list(settings.turn_start)}


def auto_class(model_type: str) -> Any:
    """The transformers class that loads models of this type: with images where it can, else a causal language model.

    Raises:
        ValueError: it is neither.
    """
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    )

    if model_type in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        return AutoModelForImageTextToText
    if model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return AutoModelForCausalLM
    raise ValueError(f"model type {model_type!r} is neither image-text-to-text nor a causal language model")


def empty_model(config: Any) -> Any:
    """The architecture of a transformers config, with shapes and no memory (meta device)."""
    with torch.device("meta"):
        return auto_class(config.model_type).from_config(config)


def load(
    path_or_id: str | Path,
    block_size: int | None = None,
    mask_token_id: int | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | Literal["auto"] | None = None,
) -> Any:
    """Load any image-text or text-only causal model, in eval mode, with its Bard settings recorded.

    Args:
        path_or_id: Hugging Face folder or hub id, one of the paper's release included.
        block_size, mask_token_id: override what ``config.json`` records; needed for a model that was never converted.
        dtype: default: float32; "auto": as stored.

    Raises:
        ValueError: the architecture is neither image-text-to-text nor causal, it has layers without full attention, or the
            mask token is outside the embedding.
        OSError: nothing to load there (from transformers).
    """
    config = _attended_fully(path_or_id)
    kind = config.dtype if dtype == "auto" else dtype
    target = torch.device(device or "cpu")
    if target.type != "cpu" and Path(path_or_id).is_dir():
        model = _outlined(config, kind or torch.float32, Path(path_or_id))
        if stored_by_name(model, Path(path_or_id)):  # no copy on the host
            fill(model, Path(path_or_id), target)
            return _recorded(model, block_size, mask_token_id)
    auto = auto_class(config.model_type)
    model = auto.from_pretrained(path_or_id, config=config, dtype=dtype or torch.float32, attn_implementation="sdpa")
    embed_by_product(model)
    return _recorded(model.to(target), block_size, mask_token_id)


def outline(folder: Path) -> Any | None:
    """The model of a folder as ``load`` gives it in float32, without its weights (meta device): ``models.weights.fill`` puts
    them in, after it was sharded. None: they are stored under other names, and only ``load`` reads them.

    Raises:
        ValueError: as ``load`` does.
    """
    model = _outlined(_attended_fully(folder), torch.float32, folder)
    return _recorded(model, None, None) if stored_by_name(model, folder) else None


def _attended_fully(path_or_id: str | Path) -> Any:
    """The config, of an architecture that has full attention in every layer."""
    config = read_config(path_or_id)
    auto_class(config.model_type)
    other = sorted(set(getattr(config.get_text_config(decoder=True), "layer_types", None) or ()) - {"full_attention"})
    if other:
        raise ValueError(f"{path_or_id} has {', '.join(other)} layers: an explicit mask needs full attention in every layer")
    return config


def _outlined(config: Any, dtype: torch.dtype, folder: Path) -> Any:
    from transformers import GenerationConfig

    with torch.device("meta"):
        model = auto_class(config.model_type).from_config(config, dtype=dtype, attn_implementation="sdpa")
    if (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder)
    embed_by_product(model)
    return model


def _recorded(model: Any, block_size: int | None, mask_token_id: int | None) -> Any:
    given: dict[str, Any] = {"block_size": block_size, "mask_token_id": mask_token_id}
    record_settings(model, replace(bard_settings(model), **{name: value for name, value in given.items() if value is not None}))
    return model.eval()


def embedding_rows(model: Any) -> int:
    return int(model.get_input_embeddings().weight.shape[0])


def known_mask_token(tokenizer: Any) -> int | None:
    """The id of the mask token that a tokenizer has already, under whatever name; None: it has none."""
    named = getattr(tokenizer, "mask_token_id", None)
    return int(named) if named is not None else tokenizer.get_vocab().get(MASK_TOKEN)


def add_mask_token(model: Any, tokenizer: Any) -> int:
    """Make sure that there is a mask token with an id and an embedding; returns the id.

    Rows that the model already keeps spare (vocabularies padded for speed) are used before the embedding grows; an untied
    head grows with it. The row starts as the mean of the others, where an unseen token does least harm.
    """
    if known_mask_token(tokenizer) is None:
        tokenizer.add_special_tokens({"additional_special_tokens": [MASK_TOKEN]}, replace_extra_special_tokens=False)
    mask_id = known_mask_token(tokenizer)
    assert mask_id is not None
    if mask_id >= embedding_rows(model):
        model.resize_token_embeddings(mask_id + 1, mean_resizing=False)
    with torch.no_grad():
        for weight in {id(w): w for w in (model.get_input_embeddings().weight, model.get_output_embeddings().weight)}.values():
            weight[mask_id] = weight[:mask_id].float().mean(0).to(weight.dtype)
    return mask_id


def reserved_ids(model: Any, tokenizer: Any) -> list[int]:
    """Ids that random noise must not draw: special tokens of the tokenizer, and what the model reads as images or video."""
    special = {int(i) for i in tokenizer.convert_tokens_to_ids(tokenizer.all_special_tokens)}
    special |= {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    visual = {value for name, value in model.config.to_dict().items() if name.endswith("_token_id") and isinstance(value, int)}
    mask_id = bard_settings(model).mask_token_id
    return sorted(special | visual | ({mask_id} if mask_id is not None else set()))


def backbone(model: Any) -> Any:
    """The part that maps tokens (and images) to hidden states, without the head."""
    return model.model


def vision_tower(model: Any) -> nn.Module | None:
    """The vision encoder, or None for a text-only model."""
    return _part(model, ("visual", "vision_tower", "vision_model"))


def merger_parameters(model: Any) -> list[nn.Parameter]:
    """Parameters between the vision encoder and the language model: Qwen's mergers, others' projector or connector."""
    tower, bridge = vision_tower(model), _part(model, ("multi_modal_projector", "connector"))
    inside = [p for name, p in tower.named_parameters() if "merger" in name] if tower else []
    return inside + (list(bridge.parameters()) if bridge else [])


def vision_parameters(model: Any) -> list[nn.Parameter]:
    """Parameters that only images reach: the tower's and the mergers'."""
    tower = vision_tower(model)
    return [*dict.fromkeys([*(tower.parameters() if tower else ()), *merger_parameters(model)])]


def same_vision(one: Any, other: Any) -> bool:
    """Whether two models see alike: their towers and mergers hold the same numbers."""
    sides = [vision_parameters(m) for m in (one, other)]
    return len(sides[0]) == len(sides[1]) and all(torch.equal(a, b.to(a)) for a, b in zip(*sides, strict=True))


PATCHES = ("patch_size", "temporal_patch_size", "spatial_merge_size", "in_channels")


def same_patches(one: Any, other: Any) -> bool:
    """Whether two models cut an image alike, so that what one is given the other can be: same patches, same number of tokens."""
    sides = [getattr(model.config, "vision_config", None) for model in (one, other)]
    return all(len({getattr(side, name, None) for side in sides}) == 1 for name in PATCHES)


def decoder_layers(model: Any) -> list[nn.Module]:
    """The decoder layers of the text backbone: the units of sharding, compilation and activation checkpointing.

    Raises:
        ValueError: the decoder keeps them elsewhere.
    """
    layers = getattr(model.get_decoder(), "layers", None)
    if layers is None:
        raise ValueError(f"{type(model).__name__}: its decoder {type(model.get_decoder()).__name__} has no .layers")
    return list(layers)


def _part(model: Any, names: tuple[str, ...]) -> nn.Module | None:
    body = backbone(model)
    return next((part for name in names if isinstance(part := getattr(body, name, None), nn.Module)), None)


def position_ids(model: Any, input_ids_N: Tensor, image_grid_thw: Tensor | None = None) -> Tensor:
    """Positions of one conversation: [3, N] for multimodal rope (temporal, height, width), else [1, N].

    An ``empty_model`` will do: they follow from its config.
    """
    body = backbone(model)
    if not hasattr(body, "get_rope_index"):
        return torch.arange(len(input_ids_N))[None]
    types_N = token_types(model.config, input_ids_N)
    positions, _ = body.get_rope_index(
        input_ids_N[None], image_grid_thw=image_grid_thw, mm_token_type_ids=types_N[None].int(), attention_mask=None
    )
    return positions[:, 0]


def token_types(config: Any, input_ids_N: Tensor) -> Tensor:
    """What each token stands for: 0 text, 1 image, 2 video (uint8)."""
    types = torch.zeros_like(input_ids_N, dtype=torch.uint8)
    for kind, name in ((1, "image_token_id"), (2, "video_token_id")):
        if (token := getattr(config, name, None)) is not None:
            types[input_ids_N == token] = kind
    return types
