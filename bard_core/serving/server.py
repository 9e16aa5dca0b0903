"""``bard serve``: OpenAI's chat completions over HTTP, streamed a block at a time, with a page at ``/`` to try it.

    curl localhost:8000/v1/chat/completions -d '{"model": "bard", "messages": [{"role": "user", "content": "Hello"}]}'

One thread decodes (``batching``); these coroutines only translate. A client that goes away is forgotten at the next block.
"""

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response, StreamingResponse
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bard_core.serving import batching
from bard_core.serving.batching import Batcher, BusyError, Ended
from bard_core.serving.chat import Chat
from bard_core.serving.frames import Frame
from bard_core.serving.protocol import Completion, RefusedError, chat_messages

PAGE = Path(__file__).with_name("page.html")


@dataclass(frozen=True)
class Limits:
    """What one request may ask for, and how many may ask."""

    max_rows: int = 16
    max_waiting: int = 64
    max_new_tokens: int = 1024
    max_prompt_tokens: int = 8192
    max_images: int = 8
    max_pixels: int = 2048 * 2048
    max_body_bytes: int = 32 * 2**20


class Metrics:
    """What Prometheus asks for."""

    def __init__(self, batcher: Batcher) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter("bard_requests", "answered requests by how they ended", ["end"], registry=self.registry)
        self.tokens = Counter("bard_tokens", "tokens answered", registry=self.registry)
        self.forwards = Counter("bard_forwards", "forwards that requests took part in", registry=self.registry)
        self.seconds = Histogram("bard_request_seconds", "from asked to answered", registry=self.registry)
        Gauge("bard_rows", "requests being decoded", registry=self.registry).set_function(lambda: batcher.rows)
        Gauge("bard_waiting", "requests that wait", registry=self.registry).set_function(lambda: len(batcher.waiting))


class Door:
    """Looks at a request before its body is read: the key, and the size, as it is told and as it comes."""

    def __init__(self, app: ASGIApp, api_key: str | None, max_body_bytes: int) -> None:
        self.app, self.key, self.most = app, api_key, max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        headers, seen = Headers(scope=scope), 0
        given = headers.get("authorization", "").removeprefix("Bearer ")
        if self.key is not None and scope["path"].startswith("/v1/") and not _same(given, self.key):
            words = "the API key is missing or wrong: send Authorization: Bearer <key>"
            return await _error(401, words)(scope, receive, send)
        too_large = f"the request is larger than {self.most} bytes"
        if int(headers.get("content-length", 0)) > self.most:
            return await _error(413, too_large)(scope, receive, send)

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self.most:
                raise HTTPException(413, too_large)
            return message

        await self.app(scope, counted, send)


def _same(given: str, key: str) -> bool:
    return secrets.compare_digest(given.encode(), key.encode())


class Answer:
    """One request, heard from a coroutine."""

    def __init__(self, chat: Chat, inputs: Any, asked: Completion, limits: Limits) -> None:
        self.chat, self.name = chat, f"chatcmpl-{secrets.token_hex(12)}"
        self.said: asyncio.Queue[batching.Said] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def hear(said: batching.Said) -> None:
            loop.call_soon_threadsafe(self.said.put_nowait, said)

        self.request = batching.Request(
            inputs=dict(inputs),
            options=asked.options(),
            max_new_tokens=asked.longest or limits.max_new_tokens,
            hear=hear,
            watched=asked.stream and asked.show_steps,
        )
        self.prompt_tokens = int(inputs["input_ids"].shape[1])

    async def pieces(self) -> AsyncIterator[str | Frame | Ended]:
        """New text a block, what a watcher sees, the end. Bytes of a character that a block cuts wait for the next."""
        told = ""
        while True:
            said = await self.said.get()
            if isinstance(said, Frame):
                yield said
                continue
            text = self.chat.text(self.request.tokens)
            if not isinstance(said, Ended):
                text = text.rstrip("\ufffd")
            if len(text) > len(told):
                yield text[len(told) :]
                told = text
            if isinstance(said, Ended):
                yield said
                return

    def usage(self) -> dict[str, Any]:
        tokens, forwards = len(self.request.tokens), self.request.forwards
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": tokens,
            "total_tokens": self.prompt_tokens + tokens,
            "forwards": forwards,
            "tokens_per_forward": tokens / forwards if forwards else 0.0,
        }


def create_app(chat: Chat, name: str, limits: Limits = Limits(), api_key: str | None = None) -> FastAPI:
    """The application; ``name`` is how clients call the model. It starts its decoding thread, and ends it when it shuts down."""
    batcher = Batcher(chat, limits.max_rows, limits.max_waiting)
    metrics = Metrics(batcher)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await run_in_threadpool(batcher.close)

    app = FastAPI(title="Bard", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.add_middleware(Door, api_key=api_key, max_body_bytes=limits.max_body_bytes)

    @app.exception_handler(RefusedError)
    async def refused(request: Request, error: RefusedError) -> JSONResponse:
        return _error(error.status, str(error))

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        return _error(400, f"{'.'.join(map(str, first['loc'][1:]))}: {first['msg']}")

    @app.exception_handler(HTTPException)
    async def other(request: Request, error: HTTPException) -> JSONResponse:
        return _error(error.status_code, str(error.detail))

    @app.get("/", response_class=HTMLResponse)
    async def page() -> str:
        return PAGE.read_text(encoding="utf-8").replace("@MODEL@", name)

    @app.get("/health")
    async def health() -> Response:
        return PlainTextResponse("ok" if batcher.alive else "the decoding thread has died", 200 if batcher.alive else 503)

    @app.get("/metrics")
    async def measured() -> Response:
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [{"id": name, "object": "model", "created": 0, "owned_by": "bard"}]}

    @app.post("/v1/chat/completions", response_model=None)
    async def complete(asked: Completion, http: Request) -> Response:
        if asked.model != name:
            raise RefusedError(404, f"no model {asked.model!r} here; there is {name!r}")
        if (asked.longest or 1) > limits.max_new_tokens:
            raise RefusedError(400, f"max_tokens is {asked.longest}; at most {limits.max_new_tokens}")
        try:
            inputs = await run_in_threadpool(
                lambda: chat.inputs(chat_messages(asked.messages, limits.max_images, limits.max_pixels))
            )
        except ValueError as error:
            raise RefusedError(400, str(error)) from error
        answer = Answer(chat, inputs, asked, limits)
        if answer.prompt_tokens > limits.max_prompt_tokens:
            raise RefusedError(400, f"the prompt has {answer.prompt_tokens} tokens; at most {limits.max_prompt_tokens}")
        try:
            batcher.submit(answer.request)
        except BusyError as busy:
            raise RefusedError(429, str(busy)) from busy
        if asked.stream:
            return StreamingResponse(_streamed(answer, asked, name, metrics), media_type="text/event-stream")
        return await _whole(answer, http, name, metrics)

    return app


async def _whole(answer: Answer, http: Request, name: str, metrics: Metrics) -> Response:
    """One JSON body; the request is forgotten when its client leaves."""
    gone = asyncio.create_task(_disconnected(http))
    reading = asyncio.create_task(_text(answer))
    try:
        await asyncio.wait({gone, reading}, return_when=asyncio.FIRST_COMPLETED)
        if not reading.done():
            return Response(status_code=499)
        text, end = reading.result()
    finally:
        gone.cancel()
        reading.cancel()
        _closed(answer, metrics)
    if end.reason == "error":
        return _error(400, end.words)
    choice = {"index": 0, "finish_reason": end.reason, "message": {"role": "assistant", "content": text}}
    return JSONResponse({**_head(answer, name, "chat.completion"), "choices": [choice], "usage": answer.usage()})


async def _text(answer: Answer) -> tuple[str, Ended]:
    async for piece in answer.pieces():
        if isinstance(piece, Ended):
            return answer.chat.text(answer.request.tokens), piece
    raise AssertionError("an answer ends with Ended")


async def _disconnected(http: Request) -> None:
    while not await http.is_disconnected():
        await asyncio.sleep(0.2)


async def _streamed(answer: Answer, asked: Completion, name: str, metrics: Metrics) -> AsyncIterator[str]:
    """Server-sent events, a block each; closed early, the request is forgotten."""
    head = _head(answer, name, "chat.completion.chunk")

    def event(delta: dict[str, Any], end: str | None = None, **more: Any) -> str:
        return f"data: {json.dumps({**head, 'choices': [{'index': 0, 'delta': delta, 'finish_reason': end}], **more})}\n\n"

    try:
        yield event({"role": "assistant", "content": ""})
        async for piece in answer.pieces():
            if isinstance(piece, str):
                yield event({"content": piece})
            elif isinstance(piece, Frame):
                yield event({}, frame=asdict(piece))
            elif piece.reason == "error":
                yield f"data: {json.dumps(_error_body(400, piece.words))}\n\n"
            else:
                yield event({}, piece.reason)
        if asked.stream_options and asked.stream_options.include_usage:
            yield f"data: {json.dumps({**head, 'choices': [], 'usage': answer.usage()})}\n\n"
        yield "data: [DONE]\n\n"
    finally:
        _closed(answer, metrics)


def _closed(answer: Answer, metrics: Metrics) -> None:
    """Count a request that is over, for whatever reason."""
    metrics.requests.labels("answered" if answer.request.ended else "left").inc()
    answer.request.cancel()
    metrics.tokens.inc(len(answer.request.tokens))
    metrics.forwards.inc(answer.request.forwards)
    metrics.seconds.observe(time.perf_counter() - answer.request.started)


def _head(answer: Answer, name: str, kind: str) -> dict[str, Any]:
    return {"id": answer.name, "object": kind, "created": int(time.time()), "model": name}


def _error(status: int, words: str) -> JSONResponse:
    headers = {"Retry-After": "1"} if status == 429 else {}
    return JSONResponse(_error_body(status, words), status_code=status, headers=headers)


def _error_body(status: int, words: str) -> dict[str, Any]:
    kind = "invalid_request_error" if status < 500 else "server_error"
    return {"error": {"message": words, "type": kind, "code": status, "param": None}}
