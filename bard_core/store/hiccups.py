"""What a place may do to us: fail for a moment, and it is tried again; or for good, and a ``StorageError`` says so.

What passes is told by its kind: a lost connection, a time-out, "slow down", an input/output error of a network disk. A full
disk, a missing right and expired credentials do not pass.
"""

import errno
import logging
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

log = logging.getLogger(__name__)
Value = TypeVar("Value")

PAUSES_S = (0.1, 0.5, 2.0)  # before the second, third and fourth try
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
REFUSED = {errno.EACCES, errno.EPERM, errno.EROFS}
LASTING = {
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EEXIST,
    errno.ENOTEMPTY,
    errno.ENAMETOOLONG,
    errno.EINVAL,
    errno.EXDEV,
}
NETWORK = {"aiobotocore", "aiohttp", "botocore", "urllib3"}  # their failures are no OSError


class StorageError(Exception):
    """A place cannot be read or written: says which, why and how to fix it."""


class NothingThereError(StorageError):
    """There is no such file or folder."""


def tried(uri: str, action: Callable[[], Value], needed: int | None = None) -> Value:
    """The action's result, after more tries where the failure may pass. ``needed``: bytes it writes, named on a full disk.

    Raises:
        StorageError: it never worked, or cannot. FileExistsError: as the action says.
    """
    for pause_s in (*PAUSES_S, None):
        try:
            return action()
        except (StorageError, FileExistsError):
            raise
        except Exception as error:
            if not _of_a_place(error):
                raise
            if pause_s is None or not passing(error):
                raise explained(uri, error, needed) from error
            log.warning("%s: %s; trying again in %.1f s", uri, _cause(error), pause_s)
            time.sleep(pause_s)
    raise AssertionError("the last try returns or raises")


@contextmanager
def persistent(uri: str) -> Iterator[None]:
    """Failures of the body are explained, and not tried again."""
    try:
        yield
    except OSError as error:
        raise explained(uri, error) from error


def _of_a_place(error: Exception) -> bool:
    return isinstance(error, OSError) or type(error).__module__.split(".")[0] in NETWORK


def _signs(error: BaseException) -> set[str]:
    """Names of what lies at the bottom of an error: s3fs hides boto's in its own."""
    signs, seen = set(), error
    while seen is not None:
        signs |= {type(seen).__name__, str(getattr(seen, "response", {}).get("Error", {}).get("Code", ""))}
        seen = seen.__cause__  # type: ignore[assignment]
    return signs


def passing(error: BaseException) -> bool:
    """Whether the same call may work in a moment."""
    if isinstance(error, OSError) and error.errno in FULL | REFUSED | LASTING:
        return False
    if isinstance(error, FileNotFoundError | PermissionError | NotADirectoryError | IsADirectoryError):
        return False
    return not _signs(error) & {"NoCredentialsError", "PartialCredentialsError", "ProfileNotFound", "ParamValidationError"}


def _cause(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:300]


def explained(uri: str, error: BaseException, needed: int | None = None) -> StorageError:
    """The error as a StorageError: place, cause, cure."""
    cause, signs, number = _cause(error), _signs(error), getattr(error, "errno", None)
    if isinstance(error, FileNotFoundError):
        return NothingThereError(f"{uri}: nothing there")
    if number in FULL:
        return StorageError(f"{uri}: {no_room(Path(uri).parent, needed)} ({cause})")
    if signs & {"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired"} or "expired" in cause.lower():
        return StorageError(f"{uri}: the credentials have expired ({cause}); renew them and run the same command again")
    if signs & {"NoCredentialsError", "PartialCredentialsError", "ProfileNotFound"}:
        return StorageError(f"{uri}: there are no credentials ({cause}); set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
    if isinstance(error, PermissionError) or number in REFUSED:
        where = "what these credentials may do there" if "://" in uri else "its owner and mode, or name another folder"
        return StorageError(f"{uri}: access is refused ({cause}); check {where}")
    if number in LASTING:
        return StorageError(f"{uri}: cannot be used ({cause}); name another place, or move away what is in its way")
    again = "see that the place is up and reachable (AWS_ENDPOINT_URL, network, mount), then run the same command again"
    return StorageError(f"{uri}: failed {len(PAUSES_S) + 1} times ({cause}); {again}")


def no_room(path: Path, needed: int | None = None) -> str:
    """Folder, needed and free bytes, for a message about a full disk."""
    folder = next((parent for parent in (path, *path.parents) if parent.is_dir()), Path("/"))
    wants = f", {needed:,} are needed" if needed is not None else ""
    return (
        f"no room in {folder}: {shutil.disk_usage(folder).free:,} bytes are free{wants}; make room and run the same command again"
    )
