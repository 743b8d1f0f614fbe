"""Name the lines of a user's code, and what went wrong there."""

import linecache
import os
import sys

import torch

_INTERNAL = (os.path.dirname(torch.__file__) + os.sep, os.path.dirname(__file__) + os.sep)


def caller() -> str:
    """Name the line of the user's forward that is running: `folder/file.py:12: code`."""
    frame = sys._getframe(2)
    while frame and frame.f_code.co_filename.startswith(_INTERNAL):
        frame = frame.f_back
    return _place(frame.f_code.co_filename, frame.f_lineno) if frame else "?"


def told(error: BaseException) -> str:
    """Return kind and first line of an error."""
    first = str(error).strip().split("\n")[0]
    return f"{type(error).__name__}: {first}" if first else type(error).__name__


def location(error: BaseException) -> str:
    """Name the innermost line of the user's code that an exception passed through."""
    steps, traceback = [], error.__traceback__
    while traceback:
        steps.append((traceback.tb_frame.f_code.co_filename, traceback.tb_lineno))
        traceback = traceback.tb_next
    own = [s for s in steps if not s[0].startswith(_INTERNAL)]
    return _place(*(own or steps)[-1])


def _place(filename: str, line: int) -> str:
    code = linecache.getline(filename, line).strip()
    short = os.sep.join(filename.split(os.sep)[-2:])
    return f"{short}:{line}: {code}" if code else f"{short}:{line}"
