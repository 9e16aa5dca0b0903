"""Evaluation's tests know the small lab dataset as ``dataset``."""

import pytest

from bard_core.store.refs import DatasetRef


@pytest.fixture(scope="session")
def dataset(lab_dataset: DatasetRef) -> DatasetRef:
    return lab_dataset
