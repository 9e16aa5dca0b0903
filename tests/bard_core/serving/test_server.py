"""The server, spoken to by the official client over a real socket: the engine's answers, streamed, shared, limited, cancelled."""

import base64
import http.client
import io
import json
import re
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import openai
import pytest
import uvicorn
from PIL import Image

from bard_core.decoding import generate
from bard_core.serving.server import Limits, create_app

KEY = "secret"


@contextmanager
def serving(chat, limits):
    config = uvicorn.Config(create_app(chat, "tiny", limits, KEY), host="127.0.0.1", port=0, log_level="error")
    running = uvicorn.Server(config)
    thread = threading.Thread(target=running.run, daemon=True)
    thread.start()
    while not running.started:
        time.sleep(0.02)
    yield f"http://127.0.0.1:{running.servers[0].sockets[0].getsockname()[1]}"
    running.should_exit = True
    thread.join(timeout=60)
    assert not thread.is_alive()


@pytest.fixture(scope="module")
def server(chat):
    others = {thread for thread in threading.enumerate() if thread.name == "decoding"}
    limits = Limits(max_rows=4, max_waiting=8, max_new_tokens=2000, max_images=2, max_prompt_tokens=200, max_pixels=128 * 128)
    with serving(chat, limits) as address:
        yield address
    assert {thread for thread in threading.enumerate() if thread.name == "decoding"} == others


@pytest.fixture(scope="module")
def client(server):
    return openai.OpenAI(base_url=f"{server}/v1", api_key=KEY, max_retries=0)


def url_of(shade, side=64):
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), (shade, 0, 0)).save(buffer, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def asked(text, *urls):
    return [
        {
            "role": "user",
            "content": [*({"type": "image_url", "image_url": {"url": url}} for url in urls), {"type": "text", "text": text}],
        }
    ]


def engine(chat, text, *shades, **options):
    items = [{"type": "image", "image": Image.new("RGB", (64, 64), (shade, 0, 0))} for shade in shades]
    inputs = chat.inputs([{"role": "user", "content": [*items, {"type": "text", "text": text}]}])
    output = generate(chat.model, inputs, **options)
    return chat.text(output.sequences[0].tolist()), output.stats


def test_an_answer_is_the_engines_whole_and_streamed(client, chat):
    text, stats = engine(chat, "Read A.", 200, max_new_tokens=12)
    whole = client.chat.completions.create(model="tiny", messages=asked("Read A.", url_of(200)), max_tokens=12)
    assert whole.choices[0].message.content == text
    assert whole.choices[0].finish_reason == ("length" if stats.real_tokens == 12 else "stop")
    assert (whole.usage.completion_tokens, whole.usage.forwards) == (stats.real_tokens, stats.forwards)
    assert whole.usage.tokens_per_forward == stats.tokens_per_forward
    parts = list(
        client.chat.completions.create(
            model="tiny",
            messages=asked("Read A.", url_of(200)),
            max_tokens=12,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    said = [part.choices[0].delta.content for part in parts if part.choices and part.choices[0].delta.content]
    assert "".join(said) == text and parts[-1].usage.completion_tokens == stats.real_tokens
    assert [part.choices[0].finish_reason for part in parts if part.choices][-1] == whole.choices[0].finish_reason


def test_many_at_once_share_batches_and_each_hears_its_own(client, chat):
    """Different pictures, lengths and thresholds; some share a batch, none sees another's answer."""
    questions = [
        (f"Read {letter}.", shade, 5 + 3 * (shade % 4)) for letter, shade in zip("ABCDEFGH", range(20, 180, 20), strict=True)
    ]

    def ask(question):
        text, shade, longest = question
        made = client.chat.completions.create(model="tiny", messages=asked(text, url_of(shade)), max_tokens=longest)
        return made.choices[0].message.content

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, questions))
    expected = [engine(chat, text, shade, max_new_tokens=longest)[0] for text, shade, longest in questions]
    assert answers == expected


def test_options_seed_and_stop_reach_the_engine(client, chat):
    def ask(**options):
        made = client.chat.completions.create(model="tiny", messages=asked("Read B.", url_of(90)), max_tokens=16, **options)
        return made.choices[0]

    sampled = engine(chat, "Read B.", 90, max_new_tokens=16, temperature=1.0, seed=7)[0]
    assert ask(temperature=1.0, seed=7).message.content == sampled == ask(temperature=1.0, seed=7).message.content
    loose, _ = engine(chat, "Read B.", 90, max_new_tokens=16, confidence_threshold=0.01)
    assert ask(extra_body={"confidence_threshold": 0.01}).message.content == loose
    plain = ask().message.content
    stop = next(character for character in plain if character.isascii())
    ended = ask(stop=[stop])
    assert ended.finish_reason == "stop" and ended.message.content.index(stop) == len(ended.message.content) - 1


def test_steps_can_be_watched(server):
    body = {"model": "tiny", "messages": asked("Read A."), "max_tokens": 8, "stream": True, "show_steps": True}
    events = [json.loads(line[6:]) for line in post(server, body).decode().split("\n\n") if line.startswith("data: {")]
    frames = [event["frame"] for event in events if "frame" in event]
    assert frames[0]["tokens"] < 8 and frames[-1]["tokens"] == len(frames[-1]["cells"]) <= 8
    said = "".join(event["choices"][0]["delta"].get("content", "") for event in events)
    assert "".join(cell["text"] for cell in frames[-1]["cells"]) == said


@pytest.mark.slow
def test_the_page_shows_the_denoising(browser, chat):
    """In a real browser: masks first, then words in the colour of their confidence, at last the engine's number of tokens."""
    picture, stats = url_of(200), engine(chat, "Read A.", 200, max_new_tokens=24)[1]
    with serving(chat, Limits(max_new_tokens=24)) as address:
        browser.open(address)
        browser.until("the page", lambda: browser.run("!!document.getElementById('ask')"))
        browser.run(
            "var seen = [], drawn = draw; draw = frame => { drawn(frame); seen.push(at('text').textContent) };"
            f"picture = {picture!r}; at('prompt').value = 'Read A.'; at('key').value = {KEY!r}; at('ask').click()"
        )
        browser.until("the answer", lambda: browser.run("!at('ask').disabled && at('pace').innerText"), 120)
        seen, pace = browser.run("seen"), browser.run("at('pace').innerText")
        colours = browser.run("[...new Set([...at('text').children].map(cell => cell.className.split(' ')[0]))]")
    left = [text.count("░") for text in seen]
    assert left[0] > left[-1] == 0 and len(seen) > 6
    assert set(colours) <= {"sure", "less", "least"} and colours
    assert re.fullmatch(rf"{stats.real_tokens} tokens in {stats.forwards} steps, [\d.]+ s", pace)


def post(server, body, key=KEY):
    headers = {"content-type": "application/json", "authorization": f"Bearer {key}"}
    request = urllib.request.Request(f"{server}/v1/chat/completions", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=60) as answer:
        return answer.read()


@pytest.mark.parametrize(
    ("change", "status", "words"),
    [
        ({"model": "gpt"}, 404, "no model 'gpt' here; there is 'tiny'"),
        ({"max_tokens": 2001}, 400, "at most 2000"),
        ({"temperature": -1}, 400, "temperature: "),
        ({"messages": []}, 400, "messages: "),
        ({"tools": []}, 400, "tools: Extra inputs are not permitted"),
        ({"messages": asked("x", "https://example.com/a.png")}, 400, "fetches no addresses"),
        ({"messages": asked("x", "file:///etc/passwd")}, 400, "fetches no addresses"),
        ({"messages": asked("x", "data:image/png;base64,AAAA")}, 400, "the image cannot be read"),
        ({"messages": asked("x", url_of(1), url_of(2), url_of(3))}, 400, "more than 2 images"),
        ({"messages": asked("x", url_of(1, 256))}, 400, "256 x 256 pixels; at most"),
        ({"messages": asked("word " * 400)}, 400, "the prompt has .* tokens; at most 200"),
        ({"denoising_steps": 9}, 400, "denoising_steps is 9"),
    ],
)
def test_what_cannot_be_answered_is_refused_with_a_reason(server, change, status, words):
    with pytest.raises(urllib.error.HTTPError) as refused:
        post(server, {"model": "tiny", "messages": asked("Read A."), "max_tokens": 4, **change})
    body = json.loads(refused.value.read())["error"]
    assert refused.value.code == status and re.search(words, body["message"]), body


def test_the_key_is_asked_for_but_not_by_health_and_metrics(server, client):
    for name in ("wrong", "", "sécret"):
        with pytest.raises(openai.AuthenticationError, match="API key"):
            openai.OpenAI(base_url=f"{server}/v1", api_key=name.encode("ascii", "replace").decode() or "none").models.list()
    assert [model.id for model in client.models.list()] == ["tiny"]
    for path, words in (("health", "ok"), ("metrics", "bard_tokens_total"), ("", "<title>Bard: tiny</title>")):
        with urllib.request.urlopen(f"{server}/{path}", timeout=20) as answer:
            assert words in answer.read().decode()


def test_a_client_that_leaves_is_forgotten(server, client):
    """Answers of up to 2000 tokens are left, streamed and whole, and their rows become free."""
    long = {"model": "tiny", "messages": asked("Read A."), "max_tokens": 2000, "extra_body": {"confidence_threshold": 1.0}}
    parts = client.chat.completions.create(**long, stream=True)
    next(iter(parts))
    parts.close()
    with pytest.raises(openai.APITimeoutError):
        client.with_options(timeout=0.1).chat.completions.create(**long)
    deadline = time.monotonic() + 60
    while "bard_rows 0.0" not in (text := urllib.request.urlopen(f"{server}/metrics", timeout=20).read().decode()):
        assert time.monotonic() < deadline, text
        time.sleep(0.05)


def test_a_full_queue_says_come_again(chat):
    with serving(chat, Limits(max_rows=1, max_waiting=1, max_new_tokens=2000)) as address:
        client = openai.OpenAI(base_url=f"{address}/v1", api_key=KEY, max_retries=0)
        ask = {"model": "tiny", "messages": asked("Read A."), "stream": True, "extra_body": {"confidence_threshold": 1.0}}
        first = client.chat.completions.create(**ask)
        next(part for part in first if part.choices[0].delta.content)
        second = client.chat.completions.create(**ask)
        with pytest.raises(openai.RateLimitError, match="requests wait already") as refused:
            client.chat.completions.create(**ask)
        assert refused.value.response.headers["retry-after"] == "1"
        first.close()
        second.close()


@pytest.mark.parametrize("told", [True, False])
def test_a_body_is_not_read_beyond_its_limit_nor_without_the_key(chat, told):
    """Told by its length, or only seen as it comes."""
    body = json.dumps({"model": "tiny", "messages": asked("word " * 9000)}).encode()
    pieces = body if told else iter([body[:20_000], body[20_000:]])
    with serving(chat, Limits(max_body_bytes=30_000)) as address:
        for key, status, words in ((KEY, 413, "larger than 30000 bytes"), ("wrong", 401, "API key")):
            connection = http.client.HTTPConnection(address.removeprefix("http://"), timeout=60)
            headers = {"content-type": "application/json", "authorization": f"Bearer {key}"}
            connection.request("POST", "/v1/chat/completions", pieces, headers, encode_chunked=not told)
            answer = connection.getresponse()
            assert (answer.status, words in json.loads(answer.read())["error"]["message"]) == (status, True)
            connection.close()
            pieces = body if told else iter([body])
