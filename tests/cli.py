"""The command line in process, for tests."""

import json

from autoslim.commands import main


def run(*args) -> int:
    try:
        main([str(a) for a in args])
    except SystemExit as stop:
        return stop.code
    return 0


def refused(capsys, *args, code=1) -> str:
    """Return the one line that says why; nothing may stand on stdout."""
    capsys.readouterr()
    assert run(*args) == code
    out, err = capsys.readouterr()
    assert out == ""
    lines = [line for line in err.splitlines() if line]
    assert lines[-1].startswith("autoslim: ")
    return lines[-1]


def printed(capsys, *args):
    """Return the JSON document that a verb prints."""
    capsys.readouterr()
    assert run(*args, "--json") == 0
    return json.loads(capsys.readouterr().out)
