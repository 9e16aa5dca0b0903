"""Tokenizer and processor of the lab, built in code: stock classes of Hugging Face, no download.

A byte-level BPE of a few hundred tokens, with Qwen3-VL's special tokens, the mask token and a chat template in Qwen3-VL's style.
The image and video processors are the stock ones. Patches of 16 pixels are merged 2 x 2, so 32 x 32 pixels are one visual token.
The tokenizer does not depend on the drawn data: every lab world of every seed shares it.
"""

import string
from typing import Any

from bard_core.diffusion.names import MASK_TOKEN
from bard_core.lab import world

PATCH_PX = 16
MERGE = 2
TOKEN_PX = PATCH_PX * MERGE  # side of the square that becomes one visual token
PAD_TOKEN = "<|endoftext|>"
END_TOKEN = "<|im_end|>"
SPECIAL_TOKENS = (
    PAD_TOKEN,
    "<|im_start|>",
    END_TOKEN,
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
    MASK_TOKEN,
)
THINK_TOKENS = ("<think>", "</think>")  # plain added tokens, as in Qwen3: they stay in decoded text
VOCAB_SIZE = 384

CHAT_TEMPLATE = """\
{%- macro render(content) -%}
{%- if content is string -%}{{ content }}
{%- else -%}
{%- for item in content -%}
{%- if item.type == 'image' -%}<|vision_start|><|image_pad|><|vision_end|>
{%- elif item.type == 'video' -%}<|vision_start|><|video_pad|><|vision_end|>
{%- elif item.type == 'text' -%}{{ item.text }}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{%- endmacro -%}
{%- for message in messages -%}
{{ '<|im_start|>' + message.role + '\\n' + render(message.content) + '<|im_end|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"""


def _corpus() -> list[str]:
    """Text the merges are learnt from: every phrase of the world with every letter; digits never merge."""
    lines = ["user\n", "assistant\n", "system\n"] * 8
    letters = string.ascii_uppercase
    for shift in range(len(letters)):
        named = [letters[(shift + step) % len(letters)] for step in range(4)]
        for schema in world.SHARES:
            lines += [world.question(schema, named), world.answer(schema, named, [0, 1, 2, 3])]
    return lines


def build_lab_tokenizer() -> Any:
    """A ``PreTrainedTokenizerFast`` of ``VOCAB_SIZE`` or fewer tokens; eos is <|im_end|>, pad <|endoftext|>."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    words = pre_tokenizers.Split(Regex(r" ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]|\s"), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE - len(THINK_TOKENS),
        min_frequency=2,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(), trainer)
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in THINK_TOKENS])
    wrap: Any = PreTrainedTokenizerFast
    fast = wrap(
        tokenizer_object=tokenizer,
        eos_token=END_TOKEN,
        pad_token=PAD_TOKEN,
        mask_token=MASK_TOKEN,
        additional_special_tokens=[token for token in SPECIAL_TOKENS if token not in (END_TOKEN, PAD_TOKEN, MASK_TOKEN)],
        clean_up_tokenization_spaces=False,
        model_max_length=32768,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def build_lab_processor(max_pixels: int = 2048 * 2048) -> Any:
    """The lab's ``Qwen3VLProcessor``; images whose sides are multiples of 32 px, up to ``max_pixels``, are not resized.

    Round-trips through ``save_pretrained`` / ``AutoProcessor.from_pretrained``.
    """
    from transformers import Qwen2VLImageProcessor, Qwen3VLProcessor, Qwen3VLVideoProcessor

    settings: dict[str, Any] = {"patch_size": PATCH_PX, "merge_size": MERGE, "temporal_patch_size": 2}
    settings |= {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
    settings |= {"size": {"shortest_edge": TOKEN_PX * TOKEN_PX, "longest_edge": max_pixels}}
    build: Any = Qwen3VLProcessor
    return build(
        image_processor=Qwen2VLImageProcessor(**settings),
        tokenizer=build_lab_tokenizer(),
        video_processor=Qwen3VLVideoProcessor(**settings),
        chat_template=CHAT_TEMPLATE,
    )
