"""The command line around a run: options, errors as one line, interruptions, exit codes."""

import sys

from lab.errors import LabError, replace_unprintable
from lab.run.interruption import interruption
from lab.run.options import parse
from lab.run.ranks import distributed, is_main_process, main_process_first


def command_line(start, argv=None) -> int:
    """Parse the options and call start(args). Returns the exit code, in a notebook, too:

    0 finished, 1 bad data or a failed run, 2 bad usage, 130 and 143 interrupted by SIGINT and SIGTERM."""
    replace_unprintable()
    with distributed():
        try:
            with interruption.caught():
                with main_process_first():
                    args = parse(argv)
                start(args)
            return 0
        except (LabError, OSError) as e:
            sys.stderr.write(f"error: {e}\n")  # in one piece, since other processes may write, too
            return 1
        except SystemExit as e:  # --help and bad usage, or another process has said why
            return e.code or 0
        except KeyboardInterrupt as e:
            if is_main_process():
                print(f"interrupted{e}" if str(e) else "interrupted before the run began", file=sys.stderr)
            return interruption.code
