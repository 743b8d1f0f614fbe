import ast
import subprocess
import sys
from pathlib import Path

import pytest

import autoslim

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "autoslim"
FILES = sorted(PACKAGE.rglob("*.py"))
# Data goes one way: a file imports from its own folder and from those above it.
ORDER = [
    {"allocator", "errors", "files", "factories", "models", "sandwich", "spaces"},
    {"channels"},
    {"slimmable"},
    {"cost"},
    {"data"},
    {"training"},
    {"search"},
    {"report"},
    {"commands"},
    {"__main__", "__init__"},
]


def part(parts):
    """Return the folder (or the file at the top) that a module belongs to."""
    return parts[1] if len(parts) > 1 else "__init__"


def level(name):
    (found,) = [i for i, names in enumerate(ORDER) if name in names]
    return found


def imports(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            folder = ["autoslim", *path.relative_to(PACKAGE).parts[:-1]]
            above = folder[: len(folder) - node.level + 1] if node.level else []
            module = ".".join([*above, *filter(None, [node.module])])
            names = [module]
            if module == "autoslim":
                # A public name counts as an import of the file that it lives in.
                public = [alias.name for alias in node.names if not alias.name.startswith("__")]
                names = [f"autoslim.{autoslim._HOMES.get(name, name)}" for name in public]
        else:
            continue
        yield from ((name.split("."), node.lineno) for name in names if name.split(".")[0] == "autoslim")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_up(path):
    own = part(["autoslim", *path.relative_to(PACKAGE).with_suffix("").parts])
    for target, line in imports(path):
        other = part(target)
        assert other == own or level(other) < level(own) or {other, own} <= ORDER[0], f"line {line}: {'.'.join(target)}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_have_one_job(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400


def test_every_folder_has_its_place_in_the_order():
    names = {part(["autoslim", *path.relative_to(PACKAGE).with_suffix("").parts]) for path in FILES}
    assert names <= set().union(*ORDER)


@pytest.mark.parametrize(
    "code",
    [
        "import autoslim",
        "import autoslim.commands",
        "import runpy; sys.argv = ['autoslim', '--help']; runpy.run_module('autoslim', run_name='__main__')",
    ],
)
def test_starting_does_not_wait_for_torch(code):
    check = "\nfinally:\n    assert 'torch' not in sys.modules and 'pandas' not in sys.modules, 'imported'"
    script = f"import sys\ntry:\n    {code}\nexcept SystemExit as stop:\n    assert not stop.code{check}"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_public_name_exists():
    assert all(getattr(autoslim, name) is not None for name in autoslim.__all__)
    assert set(autoslim.__all__) <= set(dir(autoslim))
    with pytest.raises(AttributeError):
        _ = autoslim.nothing
