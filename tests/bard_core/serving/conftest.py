"""One small model to be served, for all tests of this folder."""

import pytest

from bard_core.serving.chat import Chat


@pytest.fixture(scope="package")
def chat(tmp_path_factory, make_model):
    return Chat.open(make_model(tmp_path_factory.mktemp("serve") / "pbm-b4", 4, seed=5).uri)
