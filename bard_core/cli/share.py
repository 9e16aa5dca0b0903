"""export, push, serve: a model for others."""

import json
import socket
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer

from bard_core.cli import models
from bard_core.cli.configuration import Json


def add_to(app: typer.Typer) -> None:
    app.command()(export)
    app.command()(push)
    app.command()(serve)


def export(
    model: Annotated[str, typer.Argument(help=models.HELP, show_default=False)],
    output: Annotated[Path, typer.Option("--output", "-o", help="a new folder", show_default=False)],
    title: Annotated[str | None, typer.Option(help="name on the card [default: the folder's]", show_default=False)] = None,
    base_model: Annotated[str | None, typer.Option(help="hub id of what it was converted from")] = None,
    licence: Annotated[str | None, typer.Option("--license", help="of the weights, as the hub writes it")] = None,
    dataset: Annotated[list[str] | None, typer.Option(help="hub id of training data; may be given several times")] = None,
    evaluation: Annotated[list[str] | None, typer.Option(help="folder of an evaluation of it; may be repeated")] = None,
    frontier: Annotated[Path | None, typer.Option(help="a report's frontier.png")] = None,
    recipe: Annotated[Path | None, typer.Option(help="the configuration it was trained by: a report's config.yaml")] = None,
    as_json: Json = False,
) -> None:
    """Write a folder that decodes by blocks with transformers alone, and its model card.

    Example: bard export swd-b32 -o my-model --base-model Qwen/Qwen3-VL-4B-Instruct --license apache-2.0
    """
    folder = Path(models.find_model(model))
    from bard_core.models.export import Card
    from bard_core.models.export import export as write

    results = tuple(models.evaluation_of(place) for place in evaluation or ())
    card = Card(title or output.name, base_model, licence, tuple(dataset or ()), results, frontier, _sections(recipe))
    manifest = write(folder, output, card)
    body = {"uri": str(output), "manifest_sha256": manifest.digest, "files": len(manifest.files)}
    print(json.dumps(body, indent=2) if as_json else f"{output}: {len(manifest.files)} files, {manifest.digest[:12]}")


def _sections(recipe: Path | None) -> Mapping[str, Any]:
    from bard_core.config.file import read_yaml

    found = {} if recipe is None else read_yaml(recipe)
    if not isinstance(found, Mapping):
        raise typer.BadParameter(f"--recipe {recipe} is no configuration")
    return found


def push(
    folder: Annotated[Path, typer.Argument(help="what export has written", exists=True, file_okay=False, show_default=False)],
    to: Annotated[str, typer.Argument(help="owner/name on the hub, or s3://bucket/prefix", show_default=False)],
    private: Annotated[bool, typer.Option("--private", help="a new repository of the hub is private")] = False,
) -> None:
    """Send an exported model to the Hugging Face hub or to S3, after a check that it is whole.

    Example: bard push my-model me/my-model
    """
    from bard_core.store import artifacts, storage

    manifest = artifacts.verify(str(folder))
    if to.startswith("s3://"):
        storage.upload_tree(folder, to, {entry.path for entry in manifest.files})
        artifacts.write_manifest(to, manifest)
        print(to)
        return
    from huggingface_hub import HfApi

    hub = HfApi()
    try:
        hub.create_repo(to, private=private, exist_ok=True)
        print(hub.upload_folder(repo_id=to, folder_path=folder, commit_message=f"bard push, {manifest.digest[:12]}"))
    except Exception as error:  # the hub's own, its client's and the network's
        why = f"{type(error).__name__}: {error}".splitlines()[0]
        raise RuntimeError(f"{to} cannot be written ({why}); set HF_TOKEN to a token that may write there") from error


def serve(
    model: Annotated[str, typer.Argument(help=models.HELP, show_default=False)],
    name: Annotated[str | None, typer.Option(help="how clients call it [default: the folder's name]", show_default=False)] = None,
    host: Annotated[str, typer.Option(help="0.0.0.0: for other machines too")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0: any that is free")] = 8000,
    api_key: Annotated[str | None, typer.Option(envvar="BARD_API_KEY", help="what clients must send", show_default=False)] = None,
    max_rows: Annotated[int, typer.Option(help="requests decoded at a time")] = 16,
    max_waiting: Annotated[int, typer.Option(help="requests that may wait; more are refused")] = 64,
    max_new_tokens: Annotated[int, typer.Option(help="longest answer")] = 1024,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1 [default: a GPU where there is one]")] = None,
    dtype: Annotated[str | None, typer.Option(help="bfloat16, float16 or float32")] = None,
) -> None:
    """Answer over HTTP as OpenAI's chat completions, with a page at / to try it.

    Example: bard serve swd-b32 --port 8000
    """
    folder = models.find_model(model)
    try:
        import uvicorn

        from bard_core.serving.server import Limits, create_app
    except ImportError as error:
        raise RuntimeError(f"serving needs more packages: pip install 'bard[serve]' ({error})") from error
    from bard_core.serving.chat import Chat

    with _listener(host, port) as listener, suppress(KeyboardInterrupt):
        chat = Chat.open(folder, None, device, dtype)
        if chat.block_size == 1:
            raise typer.BadParameter(f"{folder} is autoregressive (block size 1); serve a model that pbm or swd has trained")
        called = name or Path(folder).name
        limits = Limits(max_rows=max_rows, max_waiting=max_waiting, max_new_tokens=max_new_tokens)
        place = f"http://{host}:{listener.getsockname()[1]}"
        print(f"{called} on {place}: a page to try it, /v1/chat/completions, /health, /metrics", flush=True)
        server = uvicorn.Server(uvicorn.Config(create_app(chat, called, limits, api_key), log_level="warning"))
        server.run(sockets=[listener])


def _listener(host: str, port: int) -> socket.socket:
    """Raises RuntimeError: nobody can listen there."""
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        why = str(error.strerror).partition(" (")[0]
        words = f"cannot listen on {host}:{port}: {why}; name another --port, or 0 for any that is free"
        raise RuntimeError(words) from error
