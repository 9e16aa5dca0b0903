"""generate and chat: ask a model, and watch the answer being denoised."""

import json
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from bard_core.cli import asking, models
from bard_core.cli.asking import question

if TYPE_CHECKING:
    from bard_core.decoding import GenerationOutput
    from bard_core.serving.chat import Chat
    from bard_core.serving.frames import Canvas


def add_to(app: typer.Typer) -> None:
    for verb in (generate, chat):
        app.command()(verb)


def _option(name: str, words: str, **more: Any) -> Any:
    """An option under our spelling and, with underscores, the released script's."""
    return typer.Option(f"--{name}", *([f"--{name.replace('-', '_')}"] if "-" in name else []), help=words, **more)


Steps = Annotated[int | None, _option("denoising-steps", "steps a block at most [default: the block size]", show_default=False)]
Threshold = Annotated[float, _option("confidence-threshold", "dynamic accepts tokens that are surer than this")]
Strategy = Annotated[
    Literal["dynamic", "static", "entropy", "factor", "self_speculative", "low_confidence_dynamic", "low_confidence_static"],
    typer.Option("--strategy", "--remasking-strategy", "--remasking_strategy", help="what to accept at a step"),
]
NewTokens = Annotated[int, _option("max-new-tokens", "longest answer")]
BlockSize = Annotated[int | None, _option("block-size", "tokens denoised together [default: as trained]", show_default=False)]
System = Annotated[str | None, typer.Option(help="a system message; the paper's models know 'You are a helpful assistant.'")]


@dataclass
class Asked:
    """A question and the options to answer it with."""

    chat: "Chat"
    messages: list[dict[str, Any]]
    options: dict[str, Any]

    def answer(self, canvas: "Canvas | None", watch: bool) -> tuple["GenerationOutput", float]:
        """Decode in blocks; returns the output and its seconds, from prompt to last token."""
        from bard_core.cli import show
        from bard_core.decoding import DoneEvent, generate, stream

        inputs = self.chat.inputs(self.messages)
        started = time.perf_counter()
        if canvas is None:
            return generate(self.chat.model, inputs, **self.options), time.perf_counter() - started
        output, seconds = None, 0.0
        with show.live(canvas) if watch else nullcontext(lambda: None) as update:
            for event in canvas.follow(stream(self.chat.model, inputs, **self.options)):
                if isinstance(event, DoneEvent):
                    output, seconds = event.output, time.perf_counter() - started
                update()
        assert output is not None
        return output, seconds

    def warm_up(self) -> None:
        """What is done once a process is not to count for either side of a comparison."""
        short = Asked(self.chat, self.messages, {**self.options, "max_new_tokens": 1})
        short.answer(None, False)
        short.answer_autoregressively()

    def answer_autoregressively(self) -> tuple["GenerationOutput", float]:
        from bard_core.decoding import generate_autoregressive
        from bard_core.models import bard_settings

        inputs = self.chat.inputs(self.messages)
        started = time.perf_counter()
        output = generate_autoregressive(
            self.chat.model,
            inputs,
            max_new_tokens=self.options["max_new_tokens"],
            stop_strings=self.options["stop_strings"],
            tokenizer=self.chat.tokenizer,
            mask_token_id=bard_settings(self.chat.model).mask_token_id,
        )
        return output, time.perf_counter() - started


def generate(
    model: Annotated[str | None, typer.Argument(help=models.HELP, show_default=False)] = None,
    prompt: Annotated[str, typer.Option("--prompt", "-p", help="what to ask")] = "Please describe this image",
    image: Annotated[list[Path] | None, typer.Option(help="a picture; may be given several times")] = None,
    video: Annotated[list[Path] | None, typer.Option(help="a video file; may be given several times")] = None,
    sample: Annotated[int | None, typer.Option(help="a held-out sample of the demo, from 0", show_default=False)] = None,
    system: System = None,
    show: Annotated[bool, typer.Option("--show", help="watch the blocks fill in")] = False,
    html: Annotated[Path | None, typer.Option(help="keep the run as one page, autoregression beside it")] = None,
    compare_ar: Annotated[bool, typer.Option("--compare-ar", help="answer autoregressively too, and say what was saved")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="the answer and its numbers for machines")] = False,
    max_new_tokens: NewTokens = 256,
    block_size: BlockSize = None,
    denoising_steps: Steps = None,
    strategy: Strategy = "dynamic",
    confidence_threshold: Threshold = 0.9,
    entropy_bound: Annotated[float, _option("entropy-bound", "nats, for strategy entropy")] = 0.5,
    factor: Annotated[float, _option("factor", "for strategy factor; larger accepts more")] = 1.0,
    revision_threshold: Annotated[
        float | None,
        _option("revision-threshold", "open tokens again that fall below; not for mask noise"),
    ] = None,
    temperature: Annotated[float, _option("temperature", "0 is greedy")] = 0.0,
    top_k: Annotated[int, _option("top-k", "sample among so many; 0: all")] = 0,
    top_p: Annotated[float, _option("top-p", "sample within this mass; 1: all")] = 1.0,
    seed: Annotated[int, typer.Option(help="of sampling")] = 0,
    stop: Annotated[list[str] | None, typer.Option(help="end where this text comes; may be given several times")] = None,
    schedule: Annotated[Literal["fused", "paper"], typer.Option(help="paper: the released decoder exactly")] = "fused",
    compiled: Annotated[bool, typer.Option("--compiled", help="through torch.compile (CUDA graphs on a GPU)")] = False,
    device: models.Device = None,
    dtype: models.Dtype = None,
    model_id: Annotated[str | None, typer.Option("--model_id", hidden=True)] = None,
) -> None:
    """Answer a question about pictures, videos or text alone.

    Example: bard generate swd-b32 --image grid.png -p "Read C A B D." --show
    """
    if sample is not None:
        if image or video:
            raise typer.BadParameter("--sample brings its own pictures; leave --image and --video out")
        prompt, image = asking.sample(sample)
    asked = Asked(
        chat=_open(model or model_id, block_size, device, dtype),
        messages=[*_system(system), question(prompt, image or [], video or [])],
        options={
            "strategy": models.RELEASED.get(strategy, strategy),
            "confidence_threshold": confidence_threshold,
            "entropy_bound": entropy_bound,
            "factor": factor,
            "revision_threshold": revision_threshold,
            "max_new_tokens": max_new_tokens,
            "temperature": temperature,
            "top_k": top_k or None,
            "top_p": None if top_p == 1.0 else top_p,
            "seed": seed,
            "stop_strings": tuple(stop or ()),
            "schedule": schedule,
            "compiled": compiled,
        },
    )
    asked.options |= {"tokenizer": asked.chat.tokenizer, "denoising_steps": _steps(asked.chat, denoising_steps)}
    from bard_core.serving.frames import Canvas, as_data

    if asked.chat.block_size == 1:
        if show or html or compare_ar:
            raise typer.BadParameter("this model is autoregressive (block size 1): there are no blocks to show or to compare")
        output, seconds = asked.answer_autoregressively()
        canvas = ar = None
    else:
        if compare_ar or html:
            asked.warm_up()
        canvas = Canvas(asked.chat) if show or html else None
        output, seconds = asked.answer(canvas, show)
        ar = asked.answer_autoregressively() if compare_ar or html else None
    body = _body(asked, output, seconds, ar)
    if html is not None and canvas is not None:
        from bard_core.cli.page import answer_page

        beside = None if ar is None else {"pieces": asked.chat.pieces(ar[0].sequences[0].tolist()), "pace": _pace(body["ar"])}
        about = f"bard generate {model or model_id}, blocks of {asked.chat.block_size}, {strategy}. {_of_ar(asked.chat)}"
        html.parent.mkdir(parents=True, exist_ok=True)
        html.write_text(answer_page(prompt, image or [], as_data(canvas.frames), _pace(body), about, beside), encoding="utf-8")
    if as_json:
        print(json.dumps(body, indent=2, ensure_ascii=False))
        return
    print(body["text"])
    print(f"\n{_pace(body)}", file=sys.stderr)
    if ar is not None:
        print(f"autoregressive: {_pace(body['ar'])}; {body['speedup']:.2f}x as fast in blocks", file=sys.stderr)
        same = body["text"] == body["ar"]["text"]
        print("both say the same" if same else f"autoregressive says: {body['ar']['text']}", file=sys.stderr)
        if not same and (why := _of_ar(asked.chat)):
            print(why, file=sys.stderr)


def chat(
    model: Annotated[str, typer.Argument(help=models.HELP, show_default=False)],
    system: System = None,
    show: Annotated[bool, typer.Option("--show/--no-show", help="watch the blocks fill in")] = True,
    max_new_tokens: NewTokens = 512,
    strategy: Strategy = "dynamic",
    confidence_threshold: Threshold = 0.9,
    device: models.Device = None,
    dtype: models.Dtype = None,
) -> None:
    """Talk with a model over several turns. /image FILE adds a picture to the next turn, /clear forgets, /quit ends.

    Example: bard chat swd-b32
    """
    from bard_core.serving.frames import Canvas

    talk = _open(model, None, device, dtype)
    options = {
        "strategy": models.RELEASED.get(strategy, strategy),
        "confidence_threshold": confidence_threshold,
        "max_new_tokens": max_new_tokens,
        "stop_strings": (),
    }
    messages, pictures = _system(system), list[Path]()
    for line in _lines():
        word, _, rest = line.partition(" ")
        if word == "/quit":
            return
        if word == "/clear":
            messages, pictures = _system(system), []
        elif word == "/image":
            if (path := Path(rest.strip()).expanduser()).is_file():
                pictures.append(path)
            else:
                print(f"no file {path}", file=sys.stderr)
        elif line.strip():
            messages.append(question(line, pictures, []))
            output, seconds = Asked(talk, messages, options).answer(Canvas(talk) if show else None, show)
            text = talk.text(output.sequences[0].tolist())
            messages.append({"role": "assistant", "content": [{"type": "text", "text": text}]})
            pictures = []
            print(text, flush=True)
            print(_pace(_numbers(output, seconds)), file=sys.stderr)


def _lines() -> Iterator[str]:
    """What is typed, a line at a time, to the end of input."""
    while True:
        try:
            yield input("> " if sys.stdin.isatty() else "")
        except EOFError:
            return


def _open(name: str | None, block_size: int | None, device: str | None, dtype: str | None) -> "Chat":
    if name is None:
        raise typer.BadParameter(f"which model? {models.HELP}")
    place = models.find_model(name)
    from transformers.utils.logging import disable_progress_bar

    from bard_core.serving.chat import Chat

    disable_progress_bar()
    return Chat.open(place, block_size, device, dtype)


def _system(words: str | None) -> list[dict[str, Any]]:
    return [] if words is None else [{"role": "system", "content": [{"type": "text", "text": words}]}]


def _of_ar(chat: "Chat") -> str:
    from bard_core.models import bard_settings

    if bard_settings(chat.model).clean_attention == "causal":
        return ""
    return "Trained to read clean text block by block (pbm.clean_attention), these weights keep no autoregressive mode."


def _steps(chat: "Chat", steps: int | None) -> int | None:
    """The released script takes more steps than a block has tokens, and then needs only so many."""
    return steps if steps is None else min(steps, chat.block_size)


def _numbers(output: "GenerationOutput", seconds: float) -> dict[str, Any]:
    stats = output.stats
    return {
        "real_tokens": stats.real_tokens,
        "forwards": stats.forwards,
        "tokens_per_forward": stats.tokens_per_forward,
        "tokens_per_s": stats.real_tokens / seconds,
        "seconds": seconds,
        "time_to_first_token_s": stats.time_to_first_token_s,
        "steps_per_block": stats.steps_per_block[0],
    }


def _body(
    asked: Asked, output: "GenerationOutput", seconds: float, ar: "tuple[GenerationOutput, float] | None"
) -> dict[str, Any]:
    """The answer with its numbers, the autoregressive one beside it."""
    body = {"text": asked.chat.text(output.sequences[0].tolist()), **_numbers(output, seconds)}
    if ar is not None:
        body["ar"] = {"text": asked.chat.text(ar[0].sequences[0].tolist()), **_numbers(*ar)}
        body["speedup"] = body["tokens_per_s"] / body["ar"]["tokens_per_s"]
    return body


def _pace(numbers: dict[str, Any]) -> str:
    return (
        f"{numbers['real_tokens']} tokens in {numbers['forwards']} forwards ({numbers['tokens_per_forward']:.2f} a forward), "
        f"{numbers['seconds']:.2f} s, {numbers['tokens_per_s']:.0f} tok/s"
    )
