"""Our models inside lmms-eval: the model ``bard`` (entry point).

From the command line of lmms-eval: ``--model bard --model_args pretrained=<folder>,mode=block,confidence_threshold=0.9``. A
task's ``gen_kwargs`` are honoured or refused; a benchmark of a suite (``follow``) names its limit and stop strings itself.
The response cache of lmms-eval is never used: it is keyed by the text of the model's arguments, not by its weights.
"""

import sys
from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any, TextIO

import torch
from lmms_eval.api.instance import Instance
from lmms_eval.api.model import lmms
from lmms_eval.models.registry_v2 import ModelManifest
from lmms_eval.protocol import ChatMessages

from bard_core.data.conversation import with_system_turn
from bard_core.decoding import GenerationOutput, generate, generate_autoregressive
from bard_core.evaluation import gen_kwargs
from bard_core.evaluation.answers import Answer, AnswerStore, prompt_digest
from bard_core.evaluation.gen_kwargs import Asked
from bard_core.evaluation.suites import Benchmark
from bard_core.evaluation.video import DEFAULT_FRAMES, with_frames
from bard_core.models import bard_settings, load
from bard_core.progress import Bar

MODEL_ID = "bard"
Chat = list[dict[str, Any]]


def manifest() -> ModelManifest:
    """The entry point of group ``lmms_eval.models``."""
    return ModelManifest(model_id=MODEL_ID, chat_class_path="bard_core.evaluation.lmms_plugin.BardChat")


class ShardAnsweredError(Exception):
    """Not a failure: this process has answered its share, and scoring is another's work."""


class BardChat(lmms):  # type: ignore[misc]
    """Chat model of lmms-eval over our decoders; keeps an :class:`Answer` a sample in ``answers``, by task and document.

    Args:
        pretrained: Hugging Face folder or hub id.
        mode: ``block`` (block diffusion) or ``ar``.
        batch_size: prompts decoded together.
        block_size: None: what the model's config records.
        strategy, confidence_threshold, denoising_steps, revision_threshold, compiled: as for ``bard_core.decoding.generate``.
        max_new_tokens: longest answer where the task names none.
        system_prompt: of prompts that bring no system turn; None: what the model's config records.
        min_pixels, max_pixels: bounds of an image; None: as the processor says.
        max_num_frames: frames taken of a video.
        interleave_visuals: False: images and videos come before the text of their message.
        attn_implementation: sdpa; the explicit masks of block diffusion run on nothing else.
        device: where a model that is loaded here goes; None: CUDA when there is one.
        model, processor: already loaded ones, instead of those of ``pretrained``.

    Raises:
        ValueError: an argument's value is not possible, naming it and what is.
    """

    is_simple = False

    def __init__(
        self,
        pretrained: str,
        mode: str = "block",
        batch_size: int | str = 1,
        block_size: int | None = None,
        strategy: str = "dynamic",
        confidence_threshold: float = 0.9,
        denoising_steps: int | None = None,
        revision_threshold: float | None = None,
        max_new_tokens: int = 256,
        compiled: bool = False,
        system_prompt: str | None = None,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        max_num_frames: int = DEFAULT_FRAMES,
        interleave_visuals: bool = True,
        attn_implementation: str | None = None,
        device: str | None = None,
        model: Any = None,
        processor: Any = None,
    ) -> None:
        super().__init__()
        from transformers import AutoProcessor

        read_processor: Any = AutoProcessor.from_pretrained  # untyped in transformers
        if mode not in ("block", "ar"):
            raise ValueError(f"mode must be 'block' or 'ar', got {mode!r}")
        if mode == "ar" and block_size is not None:
            raise ValueError(f"block_size={block_size} has no meaning with mode=ar, which decodes token by token")
        if attn_implementation not in (None, "sdpa"):
            raise ValueError(
                f"attn_implementation must be sdpa, which takes the masks of block diffusion, got {attn_implementation!r}"
            )
        self.model = load_for_decoding(pretrained, device) if model is None else model
        self.processor = read_processor(pretrained) if processor is None else processor
        self.mode, self.prompts_a_batch, self.max_new_tokens = mode, int(batch_size), int(max_new_tokens)
        self.options: Any = {
            "block_size": block_size,
            "strategy": strategy,
            "confidence_threshold": float(confidence_threshold),
            "denoising_steps": denoising_steps,
            "revision_threshold": None if revision_threshold is None else float(revision_threshold),
            "compiled": compiled,
        }
        recorded = bard_settings(self.model)
        self.block_size = recorded.block_size if block_size is None else block_size
        self.system_prompt = recorded.system_prompt if system_prompt is None else system_prompt
        self.benchmark: Benchmark | None = None
        self.interleave, self.video_frames = interleave_visuals, int(max_num_frames)
        self.frames = self.video_frames
        self.bounds = self._bounds()
        self._limit_pixels(min_pixels, max_pixels)
        self.bounds = self._bounds()
        self.answers: dict[tuple[str, int], Answer] = {}
        self.store: AnswerStore | None = None
        self.shard: tuple[int, int] | None = None
        self.progress: TextIO = sys.stderr

    def follow(self, benchmark: Benchmark) -> None:
        """Ask as a benchmark of a suite says, from the next call on."""
        self.benchmark = benchmark
        self.interleave, self.frames = benchmark.interleave_visuals, benchmark.video_frames or self.video_frames
        self._limit_pixels(benchmark.min_pixels, benchmark.max_pixels)

    def _limit_pixels(self, fewest: int | None, most: int | None) -> None:
        """Bound the images; None: as at the start."""
        if not self.bounds.keys() >= {"shortest_edge", "longest_edge"}:
            if fewest is not None or most is not None:
                raise ValueError(
                    f"min_pixels and max_pixels do not fit {type(self.processor).__name__}, which has no such bounds"
                )
            return
        least, largest = fewest or self.bounds["shortest_edge"], most or self.bounds["longest_edge"]
        if least > largest:
            raise ValueError(f"min_pixels {least} is above max_pixels {largest}; what is not given is the processor's own")
        self.processor.image_processor.size = {"shortest_edge": least, "longest_edge": largest}

    def _bounds(self) -> dict[str, int]:
        return dict(getattr(getattr(self.processor, "image_processor", None), "size", None) or {})

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Answer all requests in batches, in order; what the store knows is not asked again, what crashes is left empty.

        Raises:
            GenerationKwargsError: a task asks for what our decoders do not do; nothing was decoded then.
            RuntimeError: every request crashed.
            ShardAnsweredError: this process answers a share only, which is now in the store.
        """
        mine = requests if self.shard is None else requests[self.shard[0] :: self.shard[1]]
        wanted = [self._asked(request) for request in mine]
        self.answers = {}
        bar = Bar(total=len(mine), desc="answering", unit="sample", file=self.progress, leave=False)
        for asked, pairs in groupby(zip(wanted, mine, strict=True), key=lambda pair: pair[0]):
            alike = [request for _, request in pairs]
            for start in range(0, len(alike), self.prompts_a_batch):
                batch = alike[start : start + self.prompts_a_batch]
                self._answer_batch(batch, asked)
                bar.update(len(batch))
        bar.close()
        if self.store is not None:
            self.store.flush()
        errors = [answer.error for answer in self.answers.values() if answer.error is not None]
        if errors and len(errors) == len(self.answers):
            raise RuntimeError(f"all {len(errors)} samples crashed; the first: {errors[0]}")
        if self.shard is not None:
            raise ShardAnsweredError
        return [self._finished(self.answers[_document(request)].text) for request in requests]

    def _asked(self, request: Instance) -> Asked:
        """What the task asks of generation; a benchmark's own limit and stop strings stand in for the task's."""
        asked = gen_kwargs.read(request.args[2], self.mode)
        if self.benchmark is None:
            return asked
        limit = self.benchmark.max_new_tokens
        if limit is not None and self.benchmark.whole_blocks and self.mode == "block":
            limit = -(-limit // self.block_size) * self.block_size
        return replace(asked, max_new_tokens=limit, until=self.benchmark.until)

    def _finished(self, text: str) -> str:
        """An answer as it is scored."""
        if self.benchmark is not None and self.benchmark.strip_full_stop:
            return text.strip().removesuffix(".")
        return text

    def _answer_batch(self, batch: Sequence[Instance], asked: Asked) -> None:
        """Fill ``answers`` for these requests, which ask for the same."""
        waiting: list[tuple[tuple[str, int], str, Chat]] = []
        for request in batch:
            document = _document(request)
            try:
                chat = self._chat(request)
                prompt = prompt_digest(chat)
            except Exception as error:  # noqa: BLE001 - one broken document must not lose the others
                self.answers[document] = Answer("", "", 0, 0, f"{type(error).__name__}: {error}")
                continue
            known = self.store.get(prompt) if self.store is not None else None
            if known is None:
                waiting.append((document, prompt, chat))
            else:
                self.answers[document] = known
        answers = self._decode_or_blame([(prompt, chat) for _, prompt, chat in waiting], asked)
        self.answers.update({document: answer for (document, _, _), answer in zip(waiting, answers, strict=True)})
        if self.store is not None:
            self.store.add(answers)

    def _decode_or_blame(self, batch: Sequence[tuple[str, Chat]], asked: Asked) -> list[Answer]:
        """Answers of a batch; when it crashes, of its samples one by one, the culprits with their error."""
        if not batch:
            return []
        try:
            output = self.decode(self.encode([chat for _, chat in batch]), asked)
            texts = self.processor.batch_decode(output.sequences, skip_special_tokens=True)
        except Exception as error:  # noqa: BLE001 - see above; a batch too large for the memory ends here as well
            if len(batch) == 1:
                return [Answer(batch[0][0], "", 0, 0, f"{type(error).__name__}: {error}")]
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            return [answer for one in batch for answer in self._decode_or_blame([one], asked)]
        return [
            Answer(prompt, _before(text, asked.until), row.real_tokens, row.forwards)
            for (prompt, _), text, row in zip(batch, texts, output.stats.rows, strict=True)
        ]

    def _chat(self, request: Instance) -> Chat:
        """A request as Hugging Face chat messages."""
        _, doc_to_messages, _, doc_id, task, split = request.args
        return self.chat_of(doc_to_messages(self.task_dict[task][split][doc_id]))

    def chat_of(self, messages: list[dict[str, Any]]) -> Chat:
        """lmms-eval's messages as Hugging Face's, led by the system prompt, visuals first where the benchmark says so."""
        chat: Chat = with_system_turn(ChatMessages(messages=messages).to_hf_messages(), self.system_prompt)
        if not self.interleave:
            for message in chat:
                message["content"].sort(key=lambda item: item["type"] == "text")
        return chat

    def encode(self, conversations: Sequence[Chat]) -> dict[str, torch.Tensor]:
        """Left-padded processor inputs of a batch of chats."""
        options: dict[str, Any] = {"padding": True, "padding_side": "left"}
        conversations, videos = with_frames(conversations, self.frames)
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

    def decode(self, inputs: dict[str, torch.Tensor], asked: Asked = Asked()) -> GenerationOutput:
        """Answer a batch in this model's mode."""
        limit = asked.max_new_tokens or self.max_new_tokens
        stops: Any = {"stop_strings": asked.until, "tokenizer": self.processor} if asked.until else {}
        if self.mode == "ar":
            return generate_autoregressive(self.model, inputs, max_new_tokens=limit, **stops)
        return generate(self.model, inputs, max_new_tokens=limit, **self.options, **asked.sampling, **stops)

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


def _document(request: Instance) -> tuple[str, int]:
    """lmms-eval hands over the requests of all tasks together, and numbers documents within a task."""
    return str(request.task_name), int(request.doc_id)


def _before(text: str, stops: Sequence[str]) -> str:
    """The text up to the first stop string in it."""
    return text[: min((text.index(stop) for stop in stops if stop in text), default=len(text))]


def load_for_decoding(path_or_id: str, device: str | None = None) -> Any:
    """A model on CUDA in bfloat16 where there is a GPU, else on the CPU in float32."""
    place = device or ("cuda" if torch.cuda.is_available() else "cpu")
    return load(path_or_id, device=place, dtype=torch.bfloat16 if place.startswith("cuda") else torch.float32)
