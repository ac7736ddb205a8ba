"""Errors that the user can do something about.

The message is one line: what is wrong, in which file, option or task, and what to do next. The command lines print it
after `error: ` and exit with 1, without a traceback. Any other exception is a bug.
"""


class LabError(ValueError):
    """The base of them all."""


class DataError(LabError):
    """A data file that is missing, broken or not what it should be."""


class ModelFileError(LabError):
    """A model's file that is missing, broken or not a GPT-2."""


class RunError(LabError):
    """A run that can't start or go on."""
