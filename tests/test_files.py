"""Files are written whole or not at all."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from autoslim.errors import RunError
from autoslim.files import atomic_write, held, in_turn


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_what_fails_leaves_the_file_as_it_was(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), atomic_write(path) as file:
        file.write("new")
        raise ZeroDivisionError
    assert path.read_text() == "old" and names(tmp_path) == ["a.json"]
    with atomic_write(path) as file:
        file.write("new")
    assert path.read_text() == "new" and names(tmp_path) == ["a.json"]


def test_names_in_any_language_are_written_alike_whatever_the_locale(tmp_path):
    code = "from autoslim.files import atomic_write\nwith atomic_write('out') as file: file.write('gr\\xf6\\xdfe')"
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env={**os.environ, **plain}, check=True)
    assert (tmp_path / "out").read_text(encoding="utf-8") == "gr\xf6\xdfe"


def test_a_file_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "a.json", tmp_path, tmp_path / ("a" * 300)):
        with pytest.raises(RunError, match=str(path)), atomic_write(path):
            pass


def test_leftovers_of_killed_writers_are_removed_after_a_day(tmp_path):
    mine = [".a.json.x7.part", ".a.json.x8.part"]
    others = [".a.json.20240131", ".b.json.x7.part", "a.json.x7.part"]
    for name in mine + others:
        (tmp_path / name).write_text("")
    old = time.time() - 2 * 86400
    for name in [mine[0], *others]:
        os.utime(tmp_path / name, (old, old))
    with atomic_write(tmp_path / "a.json") as file:
        file.write("")
    assert names(tmp_path) == sorted([mine[1], *others, "a.json"])


def test_a_folder_is_held_by_one_process_until_that_ends(tmp_path):
    folder = tmp_path / "run"
    code = f"from autoslim.files import held\nwith held({str(folder)!r}):\n    print('held', flush=True)\n    input()"
    other = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdout.readline() == "held\n"
    with pytest.raises(RunError, match=f"{folder} is written by another process; wait for its end"), held(folder):
        pass
    other.kill()
    other.communicate()
    with held(folder):
        (folder / "a.json").write_text("")
    assert names(folder) == ["a.json"]


def test_processes_rewrite_a_file_in_turn(tmp_path):
    path, told = tmp_path / "a.json", []
    code = f"from autoslim.files import in_turn\nwith in_turn({str(path)!r}, input):\n    print('in', flush=True)\n    input()\n"
    code += f"    open({str(path)!r}, 'w').write('theirs')"

    def other():
        process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert process.stdout.readline() == "in\n"
        return process

    first = other()
    with in_turn(path, lambda: told.append(first.communicate("\n"))):
        assert told and path.read_text() == "theirs" and names(tmp_path) == [".a.json.lock", "a.json"]
    assert names(tmp_path) == ["a.json"]
    killed = other()
    killed.kill()
    killed.communicate()
    with in_turn(path, lambda: pytest.fail("waits for a process that is gone")):
        pass
    assert names(tmp_path) == ["a.json"]
    with in_turn(tmp_path / "no" / "folder", lambda: pytest.fail("there is nobody")):
        pass


FORKS = """
import os, signal, sys
from autoslim.files import held
with held(sys.argv[1]):
    worker = os.fork()
    if not worker:
        signal.pause()
try:
    with held(sys.argv[1]):
        pass
finally:
    os.kill(worker, signal.SIGKILL)
"""


def test_a_folder_is_free_again_though_a_worker_lives_on(tmp_path):
    subprocess.run([sys.executable, "-c", FORKS, tmp_path], check=True)


def test_a_folder_that_was_made_for_nothing_is_taken_away(tmp_path):
    with pytest.raises(ZeroDivisionError), held(tmp_path / "new" / "er"):
        raise ZeroDivisionError
    (tmp_path / "empty").mkdir()
    with held(tmp_path / "empty"):
        pass
    assert names(tmp_path) == ["empty"]


def test_who_is_too_late_leaves_the_folder_to_the_first(tmp_path, monkeypatch):
    with held(tmp_path / "new"):
        monkeypatch.setattr(Path, "exists", lambda path: path != tmp_path / "new")  # when the other one looked
        with pytest.raises(RunError, match="is written by another process"), held(tmp_path / "new"):
            pass
        monkeypatch.undo()
        assert names(tmp_path) == ["new"]
