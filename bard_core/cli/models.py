"""What people call a model, to what can be loaded: a folder, s3://, a registered version, a name of the demo, or a hub id."""

import json
import re
from pathlib import Path
from typing import Annotated, Any

import typer

HELP = "a folder, s3:// place, hub id, models:/bard@champion, or a name of the demo such as swd-b32"
DEMO_NAME = re.compile(r"source|(pbm|swd)-b\d+(-\w+)?")

RELEASED = {"low_confidence_dynamic": "dynamic", "low_confidence_static": "static"}  # the released script's names
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1 [default: a GPU where there is one]", show_default=False)]
Dtype = Annotated[
    str | None, typer.Option(help="bfloat16, float16, float32 [default: bfloat16 on a GPU, else float32]", show_default=False)
]


def find_model(name: str) -> str:
    """A local folder, or a hub id.

    Raises:
        typer.BadParameter: there is no such model; says which there are. ArtifactError: it is torn.
    """
    from bard_core.config.references import REGISTERED
    from bard_core.store import artifacts

    folder = Path(name).expanduser()
    if (folder / "config.json").is_file():
        return str(folder)
    if "://" in name:
        return str(artifacts.fetch(name))
    if REGISTERED.fullmatch(name):
        return _registered(name)
    if DEMO_NAME.fullmatch(name):
        return _newest(name)
    if re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not folder.exists():
        return name
    raise typer.BadParameter(f"no model {name!r}: it is neither a folder with a config.json nor {HELP}. {_there_are()}")


def _registered(name: str) -> str:
    from bard_core.data.inputs import InputError, found_model
    from bard_core.store import artifacts

    try:
        return str(artifacts.fetch(found_model(name).place))
    except InputError as error:
        raise typer.BadParameter(str(error)) from error


def _models() -> dict[str, list[Path]]:
    """The demo's models by name, oldest first."""
    from bard_core.store import storage

    found: dict[str, list[Path]] = {}
    folders = (storage.home() / "artifacts" / "models").glob("*-*")
    whole = (folder for folder in folders if "." not in folder.name and (folder / "manifest.json").is_file())  # not .damaged ones
    for folder in sorted(whole, key=lambda f: f.stat().st_mtime):
        found.setdefault(folder.name.rpartition("-")[0], []).append(folder)
    return found


def _newest(name: str) -> str:
    if name not in (known := _models()):
        raise typer.BadParameter(f"no model {name!r}. {_there_are()}")
    return str(known[name][-1])


def _there_are() -> str:
    from bard_core.store import storage

    names = ", ".join(_models())
    return f"In {storage.home()} there are: {names}" if names else f"{storage.home()} holds none yet: make demo trains some"


def model_ref(name: str, stage: str | None = None) -> Any:
    """The ref of a committed model folder, by what its manifest and ``config.json`` say.

    Raises:
        typer.BadParameter: it is no committed folder. ArtifactError: it is torn.
    """
    from bard_core.data.inputs import written_model
    from bard_core.store import artifacts

    folder = find_model(name)
    if not (Path(folder) / artifacts.MANIFEST).is_file():
        raise typer.BadParameter(f"{folder} has no {artifacts.MANIFEST}: give one that Bard has written")
    ref = written_model(folder)
    return ref if stage is None else ref.model_copy(update={"stage": stage})


def evaluation_of(place: str) -> Any:
    """The result that an evaluation's folder holds, of whichever model it judged.

    Raises:
        ArtifactError: it is missing or torn.
    """
    from bard_core.evaluation.evaluate import load_result
    from bard_core.store import artifacts
    from bard_core.store.refs import ModelRef

    manifest = artifacts.read_manifest(place)
    judged = json.loads((artifacts.fetch(place, manifest.digest) / "results.json").read_text(encoding="utf-8"))["model"]
    named = {name: judged[name] for name in ("stage", "block_size")}
    model = ModelRef(uri="", manifest_sha256=manifest.parent_digest or "", parent_sha256=None, **named)
    return load_result(place, manifest.digest, model)


def dataset_ref(place: str) -> Any:
    """The ref of a prepared dataset's folder or s3:// place."""
    from bard_core.store import artifacts
    from bard_core.store.refs import DatasetRef

    manifest = artifacts.read_manifest(place)
    return DatasetRef(uri=place, manifest_sha256=manifest.digest, **manifest.metadata)
