"""The registry: a checkpoint's LoggedModel as a version of one registered model, with aliases for the best and its challenger."""

import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from bard_core.config.sections.storage import TrackingConfig
from bard_core.store.refs import DatasetRef, ModelRef
from bard_core.tracking import runs
from bard_core.tracking.models import DIGEST_TAG, _log_model

MODEL, SOURCE, DATASET = "bard.model", "bard.source", "bard.dataset"
_ONE_AT_A_TIME = threading.Lock()


@dataclass(frozen=True)
class Version:
    """A registered checkpoint and what is needed to judge it: its baseline of speed and the data it was trained on."""

    number: int
    model: ModelRef
    source: ModelRef
    dataset: DatasetRef
    aliases: tuple[str, ...]
    tags: dict[str, str]


def register(config: TrackingConfig, model: ModelRef, source: ModelRef, dataset: DatasetRef) -> int:
    """The number of the version with exactly these weights, found or created. Of two created at once the lower stays."""
    client, _ = runs.client_of(config)
    name = config.registered_model
    if (found := numbers(config, model.key)) != []:
        return found[0]
    _create_registered_model(client, name)
    model_id = _log_model(config, None, model)
    refs = {MODEL: model, SOURCE: source, DATASET: dataset}
    tags = {DIGEST_TAG: model.key, **{key: json.dumps(ref.model_dump(mode="json")) for key, ref in refs.items()}}
    with _global_uri(config):
        created = client.create_model_version(
            name, source=f"models:/{model_id}", model_id=model_id, tags=tags, description=model.name
        )
    first, *later = numbers(config, model.key)
    if int(created.version) in later:
        client.delete_model_version(name, str(created.version))
    return first


@contextmanager
def _global_uri(config: TrackingConfig) -> Iterator[None]:
    """An sqlite registry looks a ``models:/`` source up at MLflow's global uri, not at its client's; it is put back after."""
    import mlflow

    if not (uri := runs.tracking_uri(config)).startswith("sqlite"):
        yield
        return
    with _ONE_AT_A_TIME:
        before = os.environ.get("MLFLOW_TRACKING_URI")
        mlflow.set_tracking_uri(uri)
        try:
            yield
        finally:
            mlflow.set_tracking_uri(before)  # type: ignore[arg-type] # None unsets it


def _create_registered_model(client: Any, name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def numbers(config: TrackingConfig, digest: str) -> list[int]:
    """The versions with these weights, ascending."""
    return sorted(int(found.version) for found in _all(config) if found.tags.get(DIGEST_TAG) == digest)


def _all(config: TrackingConfig) -> list[Any]:
    """MLflow's model versions, all pages."""
    client, _ = runs.client_of(config)
    found: list[Any] = []
    token: str | None = None
    while True:
        page = client.search_model_versions(f"name='{config.registered_model}'", max_results=200, page_token=token)
        found += page
        token = page.token
        if not token:
            return found


def versions(config: TrackingConfig) -> list[Version]:
    """All versions that Bard registered, by number; none where nothing was registered yet."""
    client, _ = runs.client_of(config)
    found = [item for item in _all(config) if MODEL in item.tags]
    aliases = client.get_registered_model(config.registered_model).aliases if found else {}
    return sorted(
        (
            Version(
                number=int(item.version),
                model=_model_ref(item.tags[MODEL]),
                source=_model_ref(item.tags[SOURCE]),
                dataset=DatasetRef.model_validate_json(item.tags[DATASET]),
                aliases=tuple(sorted(alias for alias, number in aliases.items() if int(number) == int(item.version))),
                tags={key: value for key, value in item.tags.items() if key not in (MODEL, SOURCE, DATASET)},
            )
            for item in found
        ),
        key=lambda version: version.number,
    )


def _model_ref(text: str) -> ModelRef:
    """A ref as it was registered, perhaps by a Bard whose refs said more."""
    return ModelRef(**{name: value for name, value in json.loads(text).items() if name in ModelRef.model_fields})


def set_alias(config: TrackingConfig, alias: str, number: int | None) -> None:
    """Point an alias at a version; None takes it away."""
    client, _ = runs.client_of(config)
    if number is None:
        client.delete_registered_model_alias(config.registered_model, alias)
    else:
        client.set_registered_model_alias(config.registered_model, alias, str(number))


def tag_version(config: TrackingConfig, number: int, tags: dict[str, str]) -> None:
    client, _ = runs.client_of(config)
    for key, value in tags.items():
        client.set_model_version_tag(config.registered_model, str(number), key, value)
