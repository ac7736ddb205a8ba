"""Where a run happens. train.py uses `Run` and `command_line`; the rest is behind them.

command.py       options, errors as one line, exit codes         options.py, device.py
pretrained.py    models and tokenizers, in and out               hub.py, vocabulary.py: from where they come
run.py           what a method needs of a run                    setup.py, encoding.py: its inputs
progress.py      the epochs and updates of a phase, the log      seeds.py
rundir.py        the directory, its lock, what it holds          report.py: what is printed, the curves
teachers.py      the teachers' folder
checkpoint.py    checkpoints                                     resume.py, failure.py, interruption.py
ranks.py         several processes
"""

from lab.run.command import command_line
from lab.run.progress import Phase, Progress
from lab.run.run import Run

__all__ = ["Phase", "Progress", "Run", "command_line"]
