"""A dataclass of options as a command line."""

import argparse
from dataclasses import fields

from lab.errors import Parser


def flag(name: str) -> str:
    """A field's name as it is typed: kd_beam -> --kd-beam."""
    return "--" + name.strip("_").replace("_", "-")


def build_parser(table) -> Parser:
    """The dataclass of options as a command line. Bad usage exits with 2 and one line."""
    parser = Parser(description="L2KD: Algorithm 1 and its baselines")
    for f in fields(table):
        help = f.metadata["help"]
        shown = "" if "default" in help or f.default == "" else f" (default {f.default})"
        keywords = {"default": f.default, "dest": f.name, "help": help + shown}
        if f.type is bool:
            keywords["action"] = argparse.BooleanOptionalAction
        elif f.metadata["choices"]:
            keywords["choices"] = f.metadata["choices"]
        else:
            keywords |= {"type": f.type, "metavar": f.name.strip("_").upper()}
        parser.add_argument(flag(f.name), **keywords)
    return parser
