"""Flyte's error, as a failure node gets it.

flytekit keeps the message of the wire, which it cannot write again; yet it does so when it looks which variant of
``FlyteError | None`` a value is, and the failure node fails itself.
"""

from typing import Any

from flytekit.models.literals import Error, Scalar


def read_whole() -> None:
    """Have flytekit read an error into its own class, as it reads every other value."""
    read = Scalar.from_flyte_idl.__func__

    def from_flyte_idl(cls: type[Scalar], message: Any) -> Scalar:
        scalar = read(cls, message)
        if message.HasField("error"):
            scalar._error = Error.from_flyte_idl(message.error)
        return scalar

    Scalar.from_flyte_idl = classmethod(from_flyte_idl)
