"""One code version a stage, to be raised when a change of code changes what the stage computes.

A stage's version is in the key of all it makes: the digest that names a training run, the keys of kept answers and of artifacts,
and Flyte's cache. A test fails when code that decides a stage's numbers changes and its version does not (``fingerprints``).
"""

from typing import Literal

Code = Literal["prepare", "resolve", "source", "pbm", "swd", "teacher", "consolidate", "answers", "evaluate", "report"]

VERSIONS: dict[Code, int] = {
    "prepare": 7,
    "resolve": 7,
    "source": 8,
    "pbm": 7,
    "swd": 7,
    "teacher": 7,  # the answers that an offline teacher keeps
    "consolidate": 7,
    "answers": 7,  # what a model says to a benchmark's prompts
    "evaluate": 7,
    "report": 9,
}
