"""Deliveries of MLflow's webhook: which count, which wait for their launch, and which are done.

A delivery that counts is written down before it is acknowledged, and is forgotten only once its launch has succeeded. So it
survives a kill of the receiver, and a launch that failed is tried again.
"""

import base64
import contextlib
import hashlib
import hmac
import json
import re
import time
from collections.abc import Collection, Mapping

from bard_core.store import storage

ID, TIMESTAMP, SIGNATURE = "X-MLflow-Delivery-Id", "X-MLflow-Timestamp", "X-MLflow-Signature"
TOLERANCE_S = 300  # how far a delivery's time may be from ours
LARGEST_VERSION = 2**31 - 1


class RefusedError(Exception):
    """A delivery that does not count; ``status`` is the HTTP answer."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


def signature(secret: str, delivery_id: str, timestamp: str, body: bytes) -> str:
    """MLflow's ``X-MLflow-Signature``: v1 and the HMAC-SHA256 of id, time and body, joined by dots."""
    mac = hmac.new(secret.encode(), f"{delivery_id}.{timestamp}.".encode() + body, hashlib.sha256)
    return f"v1,{base64.b64encode(mac.digest()).decode()}"


class Deliveries:
    """The folder (or S3 prefix) ``memory_uri`` holds those that wait, and the done ones for as long as they could come again."""

    def __init__(self, secret: str, memory_uri: str) -> None:
        if len(secret) < 16:
            raise ValueError("BARD_WEBHOOK_SECRET needs at least 16 characters; make one with: openssl rand -hex 32")
        self._secret = secret
        self._waiting, self._done = storage.join(memory_uri, "waiting"), storage.join(memory_uri, "done")

    def check(self, headers: Mapping[str, str], body: bytes) -> str:
        """Returns the delivery's name; nothing is remembered yet.

        Raises:
            RefusedError: a header is missing, the signature or the time is wrong, or its launch has succeeded before.
        """
        delivery_id, timestamp = headers.get(ID, ""), headers.get(TIMESTAMP, "")
        given = headers.get(SIGNATURE, "")
        if not hmac.compare_digest(given.encode(), signature(self._secret, delivery_id, timestamp, body).encode()):
            raise RefusedError(401, "the signature is wrong")
        if not timestamp.isdecimal() or abs(time.time() - int(timestamp)) > TOLERANCE_S:
            raise RefusedError(401, "the delivery is too old, or its clock or ours is wrong")
        name = hashlib.sha256(delivery_id.encode()).hexdigest()
        if not delivery_id or storage.exists(storage.join(self._done, name)):
            raise RefusedError(200, "delivered before; nothing to do")
        return name

    def keep(self, name: str, version: int) -> bool:
        """Write a delivery down until its launch succeeds; False when it waits already."""
        return storage.create_file(storage.join(self._waiting, name), str(version).encode())

    def waiting(self) -> dict[str, int]:
        """The version of every delivery that waits, by name."""
        found = {}
        for name in storage.list_files(self._waiting):
            with contextlib.suppress(storage.StorageError, ValueError):
                found[name] = int(storage.read_bytes(storage.join(self._waiting, name)))
        return found

    def finish(self, names: Collection[str]) -> None:
        """Their launch has succeeded."""
        for name in names:
            storage.write_bytes(storage.join(self._done, name), str(int(time.time())).encode())
            storage.delete_file(storage.join(self._waiting, name))
        for name in storage.list_files(self._done):
            place = storage.join(self._done, name)
            with contextlib.suppress(storage.StorageError, ValueError):
                if time.time() - int(storage.read_bytes(place)) > 2 * TOLERANCE_S:
                    storage.delete_file(place)


def version_of(body: bytes, registered_model: str) -> int | None:
    """The version that a delivery is about; None for another event or another registered model.

    Raises:
        RefusedError: the body is not an MLflow event.
    """
    try:
        event = json.loads(body)
        if (event["entity"], event["action"]) != ("model_version", "created") or event["data"]["name"] != registered_model:
            return None
        version = event["data"]["version"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise RefusedError(400, f"not an MLflow event ({type(error).__name__})") from error
    whole = (isinstance(version, int) and not isinstance(version, bool)) or isinstance(version, str)
    if not whole or not re.fullmatch("[1-9][0-9]{0,9}", str(version), re.ASCII) or int(version) > LARGEST_VERSION:
        raise RefusedError(400, f"a version is a whole number from 1 to {LARGEST_VERSION}")
    return int(version)
