"""The command line: one file a verb, loaded when it is used."""

import difflib
import importlib
import keyword
import logging
import sys

import click

from autoslim import __version__
from autoslim.allocator import keep_freed_memory
from autoslim.errors import AutoSlimError

# Verb to its line in `autoslim --help`; the command of a verb is the function of that name in the module of that name.
VERBS = {
    "demo": "the whole job on built-in data, then what to run next",
    "spaces": "list the search spaces that ship",
    "inspect": "show channel groups, their choices, and what is frozen and why",
    "profile": "show multiply-adds, parameters and bytes at any width",
    "latency-table": "measure layers on this machine, for `search --latency-target`, and check what that predicts",
    "train": "train a supernet, a US-Net or an S-Net",
    "search": "slim a supernet to every target: multiply-adds, parameters, bytes, memory, latency",
    "retrain": "train a found configuration from scratch, or several jointly",
    "evaluate": "score a supernet, a US-Net, an S-Net or a retrained network",
    "plot": "draw spectra, found channels, search paths, training curves, batch norms, top images",
    "study": "compare slimmable networks as the papers do: widths, natural, stages, calibration, rank",
    "import": "write a configuration from a published or hand-written channel list, or at a width multiplier",
}


class Verbs(click.Group):
    """A group that imports a verb's module only when that verb runs."""

    def list_commands(self, ctx):
        return list(VERBS)

    def get_command(self, ctx, name):
        if name not in VERBS:
            return None
        name = name.replace("-", "_") + ("_" if keyword.iskeyword(name) else "")
        return getattr(importlib.import_module(f"autoslim.commands.{name}"), name)

    def resolve_command(self, ctx, args):
        if args and args[0] not in VERBS:
            near = difflib.get_close_matches(args[0], VERBS, 1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            ctx.fail(f"unknown verb {args[0]!r}; {hint}the verbs are {', '.join(VERBS)}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx, formatter):
        with formatter.section("Verbs"):
            formatter.write_dl(list(VERBS.items()))


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="autoslim")
def cli():
    """Find the channel numbers of a convolutional network.

    Bring a CNN and a budget of multiply-adds; get back channel configurations that meet it, and what they cost.
    """


def main(args: list[str] | None = None) -> None:
    """Run the program: exit code 0, 1 for an error that one line explains, 2 for wrong usage."""
    logging.basicConfig(handlers=[AboveBars()], format="%(message)s", level=logging.INFO)
    logging.getLogger("matplotlib").setLevel(logging.WARNING)
    keep_freed_memory()
    try:
        cli.main(args=args, prog_name="autoslim", standalone_mode=False)
    except click.UsageError as error:
        if isinstance(error, getattr(click.exceptions, "NoArgsIsHelpError", ())):  # of click 8.2 and later
            error.show()
            sys.exit(2)
        command = error.ctx.command_path if error.ctx else "autoslim"
        _stop(f"{error.format_message()} (see `{command} --help`)", 2)
    except click.ClickException as error:
        _stop(error.format_message(), 1)
    except AutoSlimError as error:
        _stop(str(error), 1)
    except (KeyboardInterrupt, click.Abort):
        _stop("interrupted; what was finished is kept: run the same command again to go on from there", 1)
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":
            raise
        _stop("the GPU is out of memory; lower what this verb has of --batch-size, --batch and --memory-budget, or pass "
              "--device cpu", 1)  # fmt: skip
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)
    except OSError as error:
        _stop(f"{error.filename or 'a file'}: {error.strerror or error}; free the disk or pass a folder that can be written", 1)


class AboveBars(logging.Handler):
    """Writes messages to stderr, on lines of their own above the progress bars that are shown."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one message."""
        from tqdm import tqdm

        tqdm.write(self.format(record), file=sys.stderr)


def _stop(message: str, code: int) -> None:
    print(f"autoslim: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(code)
