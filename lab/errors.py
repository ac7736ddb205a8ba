"""Errors that the user can do something about, and command lines that print them.

The message is one line: what is wrong, in which file, option or task, and what to do next. The command lines print it
after `error: ` and exit with 1, without a traceback. Any other exception is a bug.
"""

import argparse
import os
import re
import sys
from functools import wraps


class LabError(ValueError):
    """The base of them all."""


class DataError(LabError):
    """A data file that is missing, broken or not what it should be."""


class ModelFileError(LabError):
    """A model's file that is missing, broken or not a GPT-2."""


class RunError(LabError):
    """A run that can't start or go on."""


# ---------------------------------------------------------------------- command lines


class Parser(argparse.ArgumentParser):
    """Bad usage exits with 2 and one line. Options can't be abbreviated, and no word is empty."""

    def __init__(self, *words, **options):
        super().__init__(*words, allow_abbrev=False, **options)

    def parse_known_args(self, args=None, namespace=None):
        words = sys.argv[1:] if args is None else args
        for before, word in zip([None, *words], words):
            if not word.strip() or re.fullmatch(r"--[\w-]+=\s*", word):
                where = word if word.strip() else f"behind {before}" if before else "first"
                self.error(f"{where}: nothing stands there; a variable without a value?")
        return super().parse_known_args(words, namespace)

    def error(self, message: str):
        self.exit(2, f"error: {message} (--help lists the options)\n")


def command(what_stays: str = ""):
    """Decorate a `main(argv)`: it returns the exit code, 0 if it gives none, 1 with one line for an error, and 130 with
    what_stays when it is interrupted."""

    def decorate(main):
        @wraps(main)
        def with_exit_code(argv=None) -> int:
            replace_unprintable()
            try:
                code = main(argv) or 0
                sys.stdout.flush()
                return code
            except BrokenPipeError:  # a reader such as `head` has stopped early; at exit nothing must be flushed to it
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                return 1
            except (LabError, OSError) as e:
                print(f"error: {e}", file=sys.stderr)
                return 1
            except KeyboardInterrupt:
                print(f"interrupted{what_stays}", file=sys.stderr)
                return 130

        return with_exit_code

    return decorate


# ---------------------------------------------------------------------- what is typed and printed


def replace_unprintable() -> None:
    """Print `?` for what a terminal does not have, such as γ, in place of an error."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a notebook's has not, and needs it not
            stream.reconfigure(errors="replace")


def typed_path(option: str, text: str) -> str:
    """A path as a user typed it: stripped, and with a home directory in place of a leading ~.

    Raises ValueError, which names the option, if that is not known, or if the path is no text, but bytes."""
    path = os.path.expanduser(text.strip())
    if path.startswith("~"):
        raise ValueError(f"{option} {text[:200]}: the home directory is not known; set HOME, or give a path without ~")
    for what, name in ((option, path), ("the current folder", os.getcwd())):
        if re.search("[\ud800-\udfff]", name):  # what Python has in place of bytes that are not UTF-8
            shown = name.encode("ascii", "backslashreplace").decode()
            raise ValueError(f"{what}: {shown[:400]} is not UTF-8; rename the folder")
    return path


def expand_paths(options, parser, *names: str) -> None:
    """Each of these options of a command line as `typed_path` reads it. Exits with 2 and one line where it can't."""
    try:
        for name in names:
            if getattr(options, name) is not None:
                setattr(options, name, typed_path(f"--{name.replace('_', '-')}", getattr(options, name)))
    except ValueError as e:
        parser.error(str(e))
