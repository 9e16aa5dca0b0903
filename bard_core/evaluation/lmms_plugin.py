"""Our models inside lmms-eval: the model ``bard`` (entry point), and one call that scores a loaded model on a suite.

From the command line of lmms-eval: ``--model bard --model_args pretrained=<folder>,mode=block,confidence_threshold=0.9``.
"""

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from lmms_eval.api.instance import Instance
from lmms_eval.api.model import lmms
from lmms_eval.models.registry_v2 import ModelManifest
from lmms_eval.protocol import ChatMessages
from tqdm import tqdm

from bard_core.decoding import GenerationOutput, generate, generate_autoregressive
from bard_core.models import load


def manifest() -> ModelManifest:
    """The entry point of group ``lmms_eval.models``."""
    return ModelManifest(model_id="bard", chat_class_path="bard_core.evaluation.lmms_plugin.BardChat")


@dataclass(frozen=True)
class Answer:
    """One sample's answer and its honest counts."""

    doc_id: int
    text: str
    real_tokens: int
    forwards: int


class BardChat(lmms):  # type: ignore[misc]
    """Chat model of lmms-eval over our decoders; keeps an :class:`Answer` a sample in ``answers``."""

    is_simple = False

    def __init__(
        self,
        pretrained: str = "",
        mode: str = "block",
        batch_size: int | str = 1,
        confidence_threshold: float = 0.9,
        strategy: str = "dynamic",
        denoising_steps: int | None = None,
        max_new_tokens: int = 256,
        device: str = "cpu",
        model: Any = None,
        processor: Any = None,
    ) -> None:
        super().__init__()
        from transformers import AutoProcessor

        if mode not in ("block", "ar"):
            raise ValueError(f"mode must be 'block' or 'ar', got {mode!r}")
        self.model = model if model is not None else load(pretrained, device=device)
        self.processor = processor if processor is not None else AutoProcessor.from_pretrained(pretrained)
        self.mode, self.batch_size_per_step, self.max_new_tokens = mode, int(batch_size), int(max_new_tokens)
        self.options = {
            "strategy": strategy,
            "confidence_threshold": float(confidence_threshold),
            "denoising_steps": denoising_steps,
        }
        self.answers: list[Answer] = []
        self.decode_s = 0.0

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Decode all requests in batches, in order."""
        texts = []
        size = self.batch_size_per_step
        for start in tqdm(range(0, len(requests), size), desc="answering", unit="batch", leave=False):
            batch = requests[start : start + size]
            inputs = self.encode([self._messages(request) for request in batch])
            began = time.perf_counter()
            output = self.decode(inputs)
            self.decode_s += time.perf_counter() - began
            answers = self.processor.batch_decode(output.sequences, skip_special_tokens=True)
            for request, text, row in zip(batch, answers, output.stats.rows, strict=True):
                self.answers.append(Answer(int(request.args[3]), text, row.real_tokens, row.forwards))
            texts += answers
        return texts

    def _messages(self, request: Instance) -> list[dict[str, Any]]:
        _, doc_to_messages, _, doc_id, task, split = request.args
        chat = ChatMessages(messages=doc_to_messages(self.task_dict[task][split][doc_id]))
        return list(chat.to_hf_messages())

    def encode(self, conversations: list[list[dict[str, Any]]]) -> dict[str, torch.Tensor]:
        """Left-padded processor inputs of a batch of chats, on the model's device."""
        inputs = self.processor.apply_chat_template(
            conversations,
            tokenize=True,
            add_generation_prompt=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True, "padding_side": "left"},
        )
        return {name: value.to(self.model.device) for name, value in inputs.items()}

    def decode(self, inputs: dict[str, torch.Tensor]) -> GenerationOutput:
        if self.mode == "ar":
            return generate_autoregressive(self.model, inputs, max_new_tokens=self.max_new_tokens)
        return generate(self.model, inputs, max_new_tokens=self.max_new_tokens, **self.options)

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        raise NotImplementedError("block diffusion gives no token likelihoods: use generate_until tasks")

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        raise NotImplementedError("multi-round tasks are not supported: use generate_until tasks")


def first_prompts(chat: BardChat, task_folder: Path, task: str, count: int) -> list[dict[str, torch.Tensor]]:
    """Encoded prompts of a task's first documents, one a batch."""
    from lmms_eval.tasks import TaskManager, get_task_dict

    manager = TaskManager(verbosity="ERROR", include_path=[str(task_folder)], include_defaults=False)
    found = get_task_dict([task], manager)[task]
    documents = found.test_docs()
    chosen = [documents[i] for i in range(min(count, len(documents)))]
    return [chat.encode([ChatMessages(messages=found.doc_to_messages(document)).to_hf_messages()]) for document in chosen]


def score(chat: BardChat, task_folder: Path, task: str, limit: int | None) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Run one task of ``task_folder`` through lmms-eval.

    Returns:
        (metrics by name, one record a sample: doc_id, answer, reference, scores, real_tokens, forwards).

    Raises:
        RuntimeError: lmms-eval gave no number for a metric.
    """
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.tasks import TaskManager

    manager = TaskManager(verbosity="ERROR", include_path=[str(task_folder)], include_defaults=False)
    chat.answers.clear()
    found = simple_evaluate(
        model=chat, tasks=[task], task_manager=manager, limit=limit, bootstrap_iters=0, verbosity="ERROR", log_samples=True
    )
    metrics = {}
    for name, value in found["results"][task].items():
        metric = name.split(",")[0]
        if metric in ("alias", "samples") or "stderr" in metric or metric.startswith(" "):
            continue
        try:
            metrics[metric] = float(value)
        except (TypeError, ValueError) as error:
            raise RuntimeError(f"lmms-eval task {task!r} gave {value!r} for {metric}: see its samples for what went wrong") from error
    answers = {answer.doc_id: answer for answer in chat.answers}
    records = []
    for sample in found["samples"][task]:
        answer = answers[int(sample["doc_id"])]
        scores = {name: float(sample[name]) for name in metrics if name in sample}
        records.append({**asdict(answer), "reference": str(sample["target"]), **scores})
    return metrics, records
