"""Our models inside lmms-eval: the model ``bard`` (entry point).

From the command line of lmms-eval: ``--model bard --model_args pretrained=<folder>,mode=block,confidence_threshold=0.9``.
The response cache of lmms-eval is never used: it is keyed by the text of the model's arguments, not by its weights.
"""

import sys
from collections.abc import Sequence
from typing import Any, TextIO

import torch
from lmms_eval.api.instance import Instance
from lmms_eval.api.model import lmms
from lmms_eval.models.registry_v2 import ModelManifest
from lmms_eval.protocol import ChatMessages
from tqdm import tqdm

from bard_core.decoding import GenerationOutput, generate, generate_autoregressive
from bard_core.evaluation.answers import Answer, AnswerStore, prompt_digest
from bard_core.evaluation.suites import Benchmark
from bard_core.evaluation.video import DEFAULT_FRAMES, read_frames
from bard_core.models import load

MODEL_ID = "bard"
Chat = list[dict[str, Any]]


def manifest() -> ModelManifest:
    """The entry point of group ``lmms_eval.models``."""
    return ModelManifest(model_id=MODEL_ID, chat_class_path="bard_core.evaluation.lmms_plugin.BardChat")


class ShardAnsweredError(Exception):
    """Not a failure: this process has answered its share, and scoring is another's work."""


class BardChat(lmms):  # type: ignore[misc]
    """Chat model of lmms-eval over our decoders; keeps an :class:`Answer` a sample in ``answers``, by document.

    Args:
        pretrained: Hugging Face folder or hub id.
        mode: ``block`` (block diffusion, with the block size that the model records) or ``ar``.
        batch_size: prompts decoded together.
        strategy, confidence_threshold, denoising_steps, max_new_tokens, compiled: as for ``bard_core.decoding.generate``.
        device: where a model that is loaded here goes; None: CUDA when there is one.
        model, processor: already loaded ones, instead of those of ``pretrained``.
    """

    is_simple = False

    def __init__(
        self,
        pretrained: str,
        mode: str = "block",
        batch_size: int | str = 1,
        strategy: str = "dynamic",
        confidence_threshold: float = 0.9,
        denoising_steps: int | None = None,
        max_new_tokens: int = 256,
        compiled: bool = False,
        device: str | None = None,
        model: Any = None,
        processor: Any = None,
    ) -> None:
        super().__init__()
        from transformers import AutoProcessor

        read_processor: Any = AutoProcessor.from_pretrained  # untyped in transformers
        if mode not in ("block", "ar"):
            raise ValueError(f"mode must be 'block' or 'ar', got {mode!r}")
        self.model = load_for_decoding(pretrained, device) if model is None else model
        self.processor = read_processor(pretrained) if processor is None else processor
        self.mode, self.prompts_a_batch, self.max_new_tokens = mode, int(batch_size), int(max_new_tokens)
        self.options: Any = {
            "strategy": strategy,
            "confidence_threshold": float(confidence_threshold),
            "denoising_steps": denoising_steps,
            "compiled": compiled,
        }
        self.default_tokens = self.max_new_tokens
        self.default_size = getattr(self.processor.image_processor, "size", None)
        self.interleave, self.video_frames = True, DEFAULT_FRAMES
        self.answers: dict[int, Answer] = {}
        self.store: AnswerStore | None = None
        self.shard: tuple[int, int] | None = None
        self.progress: TextIO = sys.stderr

    def follow(self, benchmark: Benchmark) -> None:
        """Take a benchmark's own limits for the calls to come."""
        self.max_new_tokens = benchmark.max_new_tokens or self.default_tokens
        self.interleave, self.video_frames = benchmark.interleave_visuals, benchmark.video_frames or DEFAULT_FRAMES
        if self.default_size is not None:
            self.processor.image_processor.size = {
                "shortest_edge": benchmark.min_pixels or self.default_size["shortest_edge"],
                "longest_edge": benchmark.max_pixels or self.default_size["longest_edge"],
            }

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Answer all requests in batches, in order; what the store knows is not asked again, what crashes is left empty.

        Raises:
            RuntimeError: every request crashed.
            ShardAnsweredError: this process answers a share only, which is now in the store.
        """
        mine = requests if self.shard is None else requests[self.shard[0] :: self.shard[1]]
        self.answers = {}
        bar = tqdm(total=len(mine), desc="answering", unit="sample", file=self.progress, leave=False)
        for start in range(0, len(mine), self.prompts_a_batch):
            batch = mine[start : start + self.prompts_a_batch]
            self._answer_batch(batch)
            bar.update(len(batch))
        bar.close()
        if self.store is not None:
            self.store.flush()
        errors = [answer.error for answer in self.answers.values() if answer.error is not None]
        if errors and len(errors) == len(self.answers):
            raise RuntimeError(f"all {len(errors)} samples crashed; the first: {errors[0]}")
        if self.shard is not None:
            raise ShardAnsweredError
        return [self.answers[int(request.doc_id)].text for request in requests]

    def _answer_batch(self, batch: Sequence[Instance]) -> None:
        """Fill ``answers`` for these requests."""
        waiting: list[tuple[int, str, Chat]] = []
        for request in batch:
            doc_id = int(request.doc_id)
            try:
                chat = self._chat(request)
                prompt = prompt_digest(chat)
            except Exception as error:  # noqa: BLE001 - one broken document must not lose the others
                self.answers[doc_id] = Answer("", "", 0, 0, f"{type(error).__name__}: {error}")
                continue
            known = self.store.get(prompt) if self.store is not None else None
            if known is None:
                waiting.append((doc_id, prompt, chat))
            else:
                self.answers[doc_id] = known
        answers = self._decode_or_blame([(prompt, chat) for _, prompt, chat in waiting])
        self.answers.update({doc_id: answer for (doc_id, _, _), answer in zip(waiting, answers, strict=True)})
        if self.store is not None:
            self.store.add(answers)

    def _decode_or_blame(self, batch: Sequence[tuple[str, Chat]]) -> list[Answer]:
        """Answers of a batch; when it crashes, of its samples one by one, the culprits with their error."""
        if not batch:
            return []
        try:
            output = self.decode(self.encode([chat for _, chat in batch]))
            texts = self.processor.batch_decode(output.sequences, skip_special_tokens=True)
        except Exception as error:  # noqa: BLE001 - see above; a batch too large for the memory ends here as well
            if len(batch) == 1:
                return [Answer(batch[0][0], "", 0, 0, f"{type(error).__name__}: {error}")]
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            return [answer for one in batch for answer in self._decode_or_blame([one])]
        rows = output.stats.rows
        return [
            Answer(prompt, text, row.real_tokens, row.forwards) for (prompt, _), text, row in zip(batch, texts, rows, strict=True)
        ]

    def _chat(self, request: Instance) -> Chat:
        """A request as Hugging Face chat messages."""
        _, doc_to_messages, _, doc_id, task, split = request.args
        return self.chat_of(doc_to_messages(self.task_dict[task][split][doc_id]))

    def chat_of(self, messages: list[dict[str, Any]]) -> Chat:
        """lmms-eval's messages as Hugging Face's, images and videos first where the benchmark says so."""
        chat: Chat = list(ChatMessages(messages=messages).to_hf_messages())
        if not self.interleave:
            for message in chat:
                message["content"].sort(key=lambda item: item["type"] == "text")
        return chat

    def encode(self, conversations: Sequence[Chat]) -> dict[str, torch.Tensor]:
        """Left-padded processor inputs of a batch of chats."""
        options: dict[str, Any] = {"padding": True, "padding_side": "left"}
        conversations, videos = self._with_frames(conversations)
        if videos:
            options.update(video_metadata=videos, do_sample_frames=False)
        inputs = self.processor.apply_chat_template(
            conversations,
            tokenize=True,
            add_generation_prompt=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs=options,
        )
        return {name: value.to(self.model.device) for name, value in inputs.items()}

    def _with_frames(self, conversations: Sequence[Chat]) -> tuple[list[Chat], list[dict[str, Any]]]:
        """Paths of videos become their frames; returns new chats and the frames' metadata in order."""
        metadata: list[dict[str, Any]] = []

        def read(item: dict[str, Any]) -> dict[str, Any]:
            if item["type"] != "video" or not isinstance(item["video"], str):
                return item
            frames, about = read_frames(item["video"], self.video_frames)
            metadata.append(about)
            return {"type": "video", "video": frames}

        chats = [[{**message, "content": [read(i) for i in message["content"]]} for message in chat] for chat in conversations]
        return chats, metadata

    def decode(self, inputs: dict[str, torch.Tensor]) -> GenerationOutput:
        """Answer a batch in this model's mode."""
        if self.mode == "ar":
            return generate_autoregressive(self.model, inputs, max_new_tokens=self.max_new_tokens)
        return generate(self.model, inputs, max_new_tokens=self.max_new_tokens, **self.options)

    def some_prompts(self, task: Any, count: int) -> list[dict[str, torch.Tensor]]:
        """Up to ``count`` encoded prompts, one a batch, spread evenly over a loaded task's documents."""
        documents = task.eval_docs
        step = max(1, len(documents) // count)
        chosen = range(0, len(documents), step)[:count]
        return [self.encode([self.chat_of(task.doc_to_messages(documents[index]))]) for index in chosen]

    def clean(self) -> None:
        """lmms-eval drops the model after a task, to make room for a local judge; speed is still to be measured."""

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        raise NotImplementedError("block diffusion gives no token likelihoods: use generate_until tasks")

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        raise NotImplementedError("multi-round tasks are not supported: use generate_until tasks")


def load_for_decoding(path_or_id: str, device: str | None = None) -> Any:
    """A model on CUDA in bfloat16 where there is a GPU, else on the CPU in float32."""
    place = device or ("cuda" if torch.cuda.is_available() else "cpu")
    return load(path_or_id, device=place, dtype=torch.bfloat16 if place.startswith("cuda") else torch.float32)
