"""Where artifacts, runs and models are kept."""

import re
from typing import Annotated

from pydantic import AfterValidator, Field

from bard_core.config.strict import StrictModel


def _place(uri: str) -> str:
    """Ray's workers have working folders of their own, so a relative folder would be another place there."""
    if uri and not uri.startswith(("/", "~")) and not re.match(r"(s3|gs|gcs|az|abfss?|file|memory)://.", uri):
        raise ValueError(f"{uri!r} is neither an absolute folder nor a place like s3://bucket/prefix")
    return uri


def _server(uri: str) -> str:
    if uri and not re.match(r"(https?|sqlite|postgresql|mysql|mssql|databricks)\b.*:", f"{uri}:"):
        raise ValueError(f"{uri!r} is no MLflow server; allowed: http://..., https://..., or a database such as sqlite:///...")
    return uri


def _no_path(name: str) -> str:
    if ":" in name or ".." in name or "/" in name:
        raise ValueError(f"{name!r} is no name in MLflow; allowed: one without '/', ':' and '..'")
    return name


Place = Annotated[str, AfterValidator(_place)]


MlflowName = Annotated[str, AfterValidator(_no_path)]


class StorageConfig(StrictModel):
    """Where artifacts live."""

    root_uri: Place = Field(
        "", description="Folder or s3:// prefix of all artifacts; empty: $BARD_HOME, else .bard beside the code"
    )


class TrackingConfig(StrictModel):
    """Where MLflow keeps runs and models."""

    tracking_uri: Annotated[str, AfterValidator(_server)] = Field(
        "", description="MLflow server; empty: $MLFLOW_TRACKING_URI, else sqlite in $BARD_HOME"
    )
    experiment: MlflowName = Field("bard", min_length=1, description="MLflow experiment name")
    registered_model: MlflowName = Field("bard", min_length=1, description="Registered model whose versions are the checkpoints")
