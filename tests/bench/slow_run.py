"""Run by test_resume in a process of its own, to be killed: slow_run.py FOLDER LOG DELAY [resume]."""

import signal
import sys
from pathlib import Path

from bench import fakes
from tokenmill.bench import measure
from tokenmill.bench.compare import compare

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs are born deaf to Ctrl-C
folder, log, delay = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])
fakes.install(setattr)
fakes.DELAY = delay
measured = measure.Trial.cell


def logged(trial, recipe):
    value = measured(trial, recipe)
    with log.open("a") as file:
        file.write(f"{trial.sample.task.name} {trial.sample.index} {recipe!r}\n")
    return value


measure.Trial.cell = logged
compare("cache", methods=["knorm", "recent_window"], out=folder, resume="resume" in sys.argv[4:])
