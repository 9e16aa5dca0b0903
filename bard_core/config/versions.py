"""One code version a stage, to be raised when a change of code changes what the stage computes.

A stage's version is in the key of all it makes: the digest that names a training run, the keys of kept answers and of artifacts,
and Flyte's cache. A test fails when code that decides a stage's numbers changes and its version does not (``fingerprints``).
"""

from typing import Literal

Code = Literal["prepare", "resolve", "source", "pbm", "swd", "teacher", "consolidate", "answers", "evaluate", "report"]

VERSIONS: dict[Code, int] = {
    "prepare": 8,
    "resolve": 7,
    "source": 9,
    "pbm": 8,
    "swd": 8,
    "teacher": 8,  # the answers that an offline teacher keeps
    "consolidate": 8,
    "answers": 9,  # what a model says to a benchmark's prompts
    "evaluate": 9,
    "report": 15,
}
