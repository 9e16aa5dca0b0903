"""Our models inside lmms-eval: the model ``bard`` (entry point), and one call that scores a loaded model on a suite.

From the command line of lmms-eval: ``--model bard --model_args pretrained=<folder>,mode=block,confidence_threshold=0.9``.
The response cache of lmms-eval is never used: it is keyed by the text of the model's arguments, not by its weights.
"""

import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

import torch
from lmms_eval.api.instance import Instance
from lmms_eval.api.model import lmms
from lmms_eval.models.registry_v2 import ModelManifest
from lmms_eval.protocol import ChatMessages
from tqdm import tqdm

from bard_core.decoding import GenerationOutput, generate, generate_autoregressive
from bard_core.models import load

MODEL_ID = "bard"


def manifest() -> ModelManifest:
    """The entry point of group ``lmms_eval.models``."""
    return ModelManifest(model_id=MODEL_ID, chat_class_path="bard_core.evaluation.lmms_plugin.BardChat")


@dataclass(frozen=True)
class Answer:
    """One sample's answer and its honest counts."""

    doc_id: int
    text: str
    real_tokens: int
    forwards: int


@dataclass(frozen=True)
class Scores:
    """What a task gave.

    Attributes:
        metrics: the task's aggregated scores by name.
        records: one a sample, in the suite's order: id, doc_id, text (the answer), real_tokens, forwards, reference, scores.
        prompt_variant: the prompt texts lmms-eval chose for the model's name; None where the task has one prompt only.
    """

    metrics: dict[str, float]
    records: list[dict[str, Any]]
    prompt_variant: dict[str, Any] | None


class BardChat(lmms):  # type: ignore[misc]
    """Chat model of lmms-eval over our decoders; keeps an :class:`Answer` a sample in ``answers``.

    Args:
        pretrained: Hugging Face folder or hub id.
        mode: ``block`` (block diffusion, with the block size that the model records) or ``ar``.
        batch_size: prompts decoded together.
        strategy, confidence_threshold, denoising_steps, max_new_tokens: as for ``bard_core.decoding.generate``.
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
        }
        self.answers: list[Answer] = []
        self.requests: list[Instance] = []
        self.progress: TextIO = sys.stderr

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Decode all requests in batches, in order."""
        self.requests = list(requests)
        texts: list[str] = []
        bar = tqdm(total=len(requests), desc="answering", unit="sample", file=self.progress, leave=False)
        for start in range(0, len(requests), self.prompts_a_batch):
            batch = requests[start : start + self.prompts_a_batch]
            output = self.decode(self.encode([self._chat(request) for request in batch]))
            answers = self.processor.batch_decode(output.sequences, skip_special_tokens=True)
            for request, text, row in zip(batch, answers, output.stats.rows, strict=True):
                self.answers.append(Answer(int(request.doc_id), text, row.real_tokens, row.forwards))
            texts += answers
            bar.update(len(batch))
        bar.close()
        return texts

    def _chat(self, request: Instance) -> list[dict[str, Any]]:
        """A request as Hugging Face chat messages."""
        _, doc_to_messages, _, doc_id, task, split = request.args
        return list(ChatMessages(messages=doc_to_messages(self.task_dict[task][split][doc_id])).to_hf_messages())

    def encode(self, conversations: list[list[dict[str, Any]]]) -> dict[str, torch.Tensor]:
        """Left-padded processor inputs of a batch of chats."""
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
        """Answer a batch in this model's mode."""
        if self.mode == "ar":
            return generate_autoregressive(self.model, inputs, max_new_tokens=self.max_new_tokens)
        return generate(self.model, inputs, max_new_tokens=self.max_new_tokens, **self.options)

    def some_prompts(self, count: int) -> list[dict[str, torch.Tensor]]:
        """Up to ``count`` encoded prompts, one a batch, spread evenly over the requests answered last."""
        step = max(1, len(self.requests) // count)
        return [self.encode([self._chat(request)]) for request in self.requests[::step][:count]]

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


def score(chat: BardChat, task_folder: Path, task: str, limit: int | None) -> Scores:
    """Run one task of ``task_folder`` through lmms-eval; ``limit`` caps its samples.

    Raises:
        RuntimeError: lmms-eval gave no number for a metric.
    """
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.tasks import TaskManager

    manager = TaskManager(verbosity="ERROR", include_path=[str(task_folder)], include_defaults=False, model_name=MODEL_ID)
    chat.answers.clear()
    found = simple_evaluate(
        model=chat, tasks=[task], task_manager=manager, limit=limit, bootstrap_iters=0, verbosity="ERROR", log_samples=True
    )
    metrics = _metrics(task, found["results"][task])
    answers = {answer.doc_id: answer for answer in chat.answers}
    records = []
    for sample in sorted(found["samples"][task], key=lambda sample: int(sample["doc_id"])):
        doc_id = int(sample["doc_id"])
        scores = {name: float(sample[name]) for name in metrics if name in sample}
        identity = {"id": str(sample["doc"].get("id", doc_id)), **asdict(answers[doc_id])}
        records.append({**identity, "reference": str(sample["target"]), **scores})
    return Scores(metrics, records, found["configs"][task].get("lmms_eval_specific_kwargs"))


def _metrics(task: str, results: dict[str, Any]) -> dict[str, float]:
    """Aggregated scores without lmms-eval's own errors, which it gives as numbers or as "N/A"."""
    metrics = {}
    for key, value in results.items():
        name, separator, _ = key.partition(",")
        if not separator or name.endswith(("_stderr", "_stderr_clt", "_stderr_clustered")):
            continue
        try:
            metrics[name] = float(value)
        except (TypeError, ValueError) as error:
            raise RuntimeError(f"lmms-eval task {task!r} gave {value!r} for {name}: see what its samples lack") from error
    return metrics
