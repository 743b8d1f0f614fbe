"""Read and write files so that nothing is lost: whole or not at all."""

import contextlib
import csv
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from autoslim.errors import AutoSlimError, RunError

_PART = ".part"  # how a file is named that is being written


@contextlib.contextmanager
def atomic_write(path: str | Path, mode: str = "w") -> Iterator[IO]:
    """Open a file that replaces `path` only when it has been written completely.

    What writers of `path` that were killed left beside it is removed after a day.

    Raises:
        RunError: the disk is full or read-only, or the folder cannot be made; `path` is as it was.
    """
    path = Path(path)
    temporary = None
    if os.path.exists(path) and not os.path.isfile(path):
        raise RunError(f"{path} is a folder or a device, not a file that can be replaced; pass the name of a file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(path)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=_PART)
        with os.fdopen(handle, mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except OSError as error:
        raise RunError(f"{path} cannot be written ({error.strerror or error}); free the disk or pass another folder") from error
    finally:
        if temporary and os.path.exists(temporary):
            os.unlink(temporary)


def _remove_abandoned(path: Path) -> None:
    for name in os.listdir(path.parent):
        if name.startswith(f".{path.name}.") and name.endswith(_PART):
            with contextlib.suppress(OSError):
                if time.time() - os.path.getmtime(path.parent / name) > 86400:
                    os.unlink(path.parent / name)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_json(path: str | Path, document, compact: str | None = None) -> None:
    """Write JSON atomically, indented; the entries of the object under key `compact` take one line each."""
    text = json.dumps(document, indent=1)
    if compact and document.get(compact):
        entries = document[compact]
        lines = ",\n".join(f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in entries.items())
        text = text.replace(json.dumps({compact: entries}, indent=1)[2:-2], f" {json.dumps(compact)}: {{\n{lines}\n }}")
    with atomic_write(path) as file:
        file.write(text + "\n")


def write_csv(path: str | Path, rows: list[dict]) -> None:
    """Write rows with the columns of the first as CSV, atomically."""
    with atomic_write(path) as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def read_json(path: str | Path, error: type[AutoSlimError]):
    """Read a JSON document; a missing, unreadable or truncated file raises `error` with one line."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise error(f"{path} does not exist; pass the path of an existing JSON file") from None
    except OSError as problem:
        raise error(f"{path} cannot be read ({problem.strerror}); pass a readable JSON file") from problem
    except (ValueError, RecursionError) as problem:  # a UnicodeDecodeError is a ValueError
        raise error(f"{path} is not whole JSON ({problem}); it is truncated or another kind of file") from problem


def probe_writable(folder: str | Path) -> None:
    """Make a folder and check that files can be written into it, before work is spent.

    Raises:
        RunError: the folder cannot be made or written.
    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise RunError(f"folder {folder} cannot be written ({error.strerror}); pass another folder") from error


@contextlib.contextmanager
def held(folder: str | Path) -> Iterator[None]:
    """Make a folder and keep it from other processes that would write into it, for the length of a `with` block.

    What was made and is still empty at the end is taken away. A process that is killed holds nothing any more. Where the system
    cannot lock folders, the folder is made and not kept.

    Raises:
        RunError: another process holds it, or it cannot be made or written.
    """
    folder = Path(folder)
    made = [path for path in (folder, *folder.parents) if not path.exists()]

    def refuse() -> None:
        raise RunError(f"{folder} is written by another process; wait for its end, or pass another --out")

    with contextlib.ExitStack() as stack:
        probe_writable(folder)
        while not _lock(folder, os.O_RDONLY, stack, refuse):
            stack.close()
            probe_writable(folder)
        try:
            yield
        finally:
            for path in made:
                with contextlib.suppress(OSError):
                    path.rmdir()


@contextlib.contextmanager
def in_turn(path: str | Path, waits: Callable[[], None]) -> Iterator[None]:
    """Let one process after the other into a `with` block that reads and rewrites a file.

    A process that is killed leaves the block. Where nothing can be locked, or the folder cannot be written, nobody waits.

    Args:
        waits: called if another process is there.
    """
    path = Path(path)
    lock = path.with_name(f".{path.name}.lock")  # the file itself is replaced whenever it is written
    with contextlib.ExitStack() as stack:
        while not _lock(lock, os.O_RDWR | os.O_CREAT, stack, waits):
            stack.close()
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                os.unlink(lock)


def _lock(path: Path, flags: int, stack: contextlib.ExitStack, busy: Callable[[], None]) -> bool:
    """Lock a file or folder until a stack is closed; returns False if it was taken away meanwhile.

    Where another process has it, `busy` is called, which may raise, and its end is waited for.
    """
    try:
        import fcntl

        handle = os.open(path, flags, 0o666)
    except (ImportError, OSError):  # on Windows, and where it cannot be opened
        return True
    stack.callback(os.close, handle)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            busy()
            fcntl.flock(handle, fcntl.LOCK_EX)
    except OSError:  # the system cannot lock it
        return True
    stack.callback(fcntl.flock, handle, fcntl.LOCK_UN)  # processes that were forked meanwhile have the handle, too
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(handle), os.stat(path))
    return False


def digest(path: str | Path) -> str:
    """Return the first 16 hex digits of a file's SHA-256."""
    sha = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            sha.update(block)
    return sha.hexdigest()[:16]
