"""Load on ``bard serve``: 1 to 32 clients at once, blocks against autoregression with the same weights, in turn, in one run.

    make bench-serve
    python benchmarks/serve.py --clients 1 4 --requests 2   # a short look

Three servers stand over the same weights: blocks of 8, blocks of 32, and blocks of one token, which is autoregression in the same
engine, a forward a token. Clients are another process and speak OpenAI's protocol; each asks again as soon as it is answered.
Weights are random: every step accepts as many tokens as the other steps (policy ``static``), and no answer ends early. So this
says what a batch costs, not what a model accepts. The server's autoregression is to be seen against the stock model's own
``generate``, which runs once, alone and without a server. On a GPU the shape is that of Qwen3-VL-4B in bfloat16, on a
CPU one of 25 M parameters in float32.

A block costs more arithmetic a token and less memory traffic; the more clients share a forward, the more the arithmetic counts.
``crossover`` is the fewest clients of those tried at which autoregression answers more tokens a second.
Results go to ``benchmarks/results/serve-<machine>.json``.
"""

import argparse
import asyncio
import multiprocessing
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from copy import copy, deepcopy
from dataclasses import asdict, dataclass
from statistics import median, quantiles
from typing import Any

import torch
import uvicorn
from _machine import write
from decode import SHAPES, build

from bard_core.decoding import generate_autoregressive
from bard_core.diffusion.names import MASK_TOKEN
from bard_core.lab.processor import build_lab_processor
from bard_core.models import BardSettings, record_settings
from bard_core.serving.chat import Chat
from bard_core.serving.server import Limits, create_app

CLIENTS = (1, 2, 4, 8, 16, 32)
WORDS, NEW_TOKENS = 120, 64  # of a question and of its answer


@dataclass(frozen=True)
class Mode:
    """A way of decoding: ``steps`` forwards a block."""

    name: str
    block_size: int
    steps: int


AR = Mode("ar", 1, 1)
MODES = (AR, Mode("blocks of 8, 3 steps", 8, 3), Mode("blocks of 32, 12 steps", 32, 12))


def chat_of(model: Any, processor: Any, mode: Mode) -> Chat:
    """The same weights under another block size, with nothing that ends an answer."""
    view = copy(model)
    view.config, view.generation_config = deepcopy(model.config), deepcopy(model.generation_config)
    view.generation_config.eos_token_id = None
    record_settings(view, BardSettings(mode.block_size, processor.tokenizer.convert_tokens_to_ids(MASK_TOKEN)))
    return Chat(view, processor)


@contextmanager
def serving(chat: Chat, most: int) -> Iterator[str]:
    """The address of a server with room for so many at once."""
    app = create_app(chat, "bench", Limits(max_rows=most, max_waiting=most))
    running = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error"))
    thread = threading.Thread(target=running.run, daemon=True)
    thread.start()
    while not running.started:
        time.sleep(0.02)
    yield f"http://127.0.0.1:{running.servers[0].sockets[0].getsockname()[1]}/v1"
    running.should_exit = True
    thread.join()


def load(address: str, mode: Mode, clients: int, requests: int) -> dict[str, float]:
    """What ``clients`` at once see of a server; runs in a process of their own. Raises RuntimeError: a request was refused."""
    from openai import APIError

    try:
        return asyncio.run(_load(address, mode, clients, requests))
    except APIError as error:
        raise RuntimeError(f"{mode.name}: {error}") from None  # the error itself does not travel between processes


async def _load(address: str, mode: Mode, clients: int, requests: int) -> dict[str, float]:
    from openai import AsyncOpenAI

    latencies: list[float] = []
    tokens = 0
    numbers = iter(range(requests))

    async def client(api: AsyncOpenAI) -> None:
        nonlocal tokens
        for number in numbers:
            asked = time.perf_counter()
            made = await api.chat.completions.create(
                model="bench",
                messages=[{"role": "user", "content": " ".join(str((number * 7 + word) % 10) for word in range(WORDS))}],
                max_tokens=NEW_TOKENS,
                extra_body={"strategy": "static", "denoising_steps": mode.steps},
            )
            latencies.append(time.perf_counter() - asked)
            tokens += made.usage.completion_tokens if made.usage else 0

    started = time.perf_counter()
    async with AsyncOpenAI(base_url=address, api_key="none", max_retries=0, timeout=600) as api:
        await asyncio.gather(*(client(api) for _ in range(clients)))
    return summary(latencies, tokens, time.perf_counter() - started)


def summary(latencies: Sequence[float], tokens: int, seconds: float) -> dict[str, float]:
    slowest = quantiles(latencies, n=20, method="inclusive")[-1] if len(latencies) > 1 else latencies[0]
    return {
        "requests": len(latencies),
        "tokens_per_s": tokens / seconds,
        "latency_p50_s": median(latencies),
        "latency_p95_s": slowest,
    }


def crossover(levels: Sequence[dict[str, Any]], mode: str) -> int | None:
    """The fewest clients at which autoregression answers more tokens a second; None: at none of those tried."""
    return next((level["clients"] for level in levels if level[AR.name]["tokens_per_s"] > level[mode]["tokens_per_s"]), None)


def stock(chat: Chat) -> float:
    """Tokens a second of the stock model's own ``generate``, one request, without a server."""
    inputs = chat.inputs([{"role": "user", "content": " ".join(str(word % 10) for word in range(WORDS))}])
    generate_autoregressive(chat.model, inputs, max_new_tokens=4, eos_token_id=[])
    started = time.perf_counter()
    output = generate_autoregressive(chat.model, inputs, max_new_tokens=NEW_TOKENS, eos_token_id=[])
    return output.stats.real_tokens / (time.perf_counter() - started)


def measure(levels: Sequence[int], requests: int) -> dict[str, Any]:
    name, shape = ("4b", SHAPES["4b"]) if torch.cuda.is_available() else ("25m", SHAPES["25m"])
    processor, model = build_lab_processor(), build(shape)
    for token in ("image_token", "video_token", "vision_start_token", "vision_end_token"):
        setattr(model.config, f"{token}_id", getattr(processor, f"{token}_id"))
    found: list[dict[str, Any]] = []
    with ExitStack() as stack:
        clients = stack.enter_context(multiprocessing.get_context("spawn").Pool(1))
        chats = {mode: chat_of(model, processor, mode) for mode in MODES}
        addresses = {mode: stack.enter_context(serving(chat, max(levels))) for mode, chat in chats.items()}
        for mode, address in addresses.items():
            clients.apply(load, (address, mode, 1, 1))
        for count in levels:
            level: dict[str, Any] = {"clients": count}
            for mode, address in addresses.items():
                level[mode.name] = clients.apply(load, (address, mode, count, max(2 * count, requests)))
                print(f"{count:3d} clients, {mode.name:24s}", *(f"{k} {v:.2f}" for k, v in level[mode.name].items()), flush=True)
            found.append(level)
        alone = stock(chats[AR])
    pace = {mode: [level[mode.name]["tokens_per_s"] for level in found] for mode in MODES}
    return {
        "shape": {"name": name, **asdict(shape)},
        "prompt_words": WORDS,
        "new_tokens": NEW_TOKENS,
        "stock_generate_tokens_per_s": alone,
        "levels": found,
        "speedup_over_ar": {mode.name: [one / ar for one, ar in zip(pace[mode], pace[AR], strict=True)] for mode in MODES[1:]},
        "crossover": {mode.name: crossover(found, mode.name) for mode in MODES[1:]},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, nargs="+", default=CLIENTS, help="how many at once")
    parser.add_argument("--requests", type=int, default=8, help="at each, at least so many, and two a client")
    arguments = parser.parse_args()
    body = measure(sorted(arguments.clients), arguments.requests)
    print("crossover:", body["crossover"], "stock generate:", round(body["stock_generate_tokens_per_s"], 1), "tok/s")
    print(write("serve", body))


if __name__ == "__main__":
    main()
