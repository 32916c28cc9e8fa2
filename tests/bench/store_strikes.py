"""Run by test_store with strike.c preloaded: store_strikes.py STRIKE.SO FOLDER ERRNO.

Forks a child for every file operation N of a small run in FOLDER/N/run; the child is struck at N (killed, or refused
with ERRNO from there on). Prints one JSON line each: N, what the child ended with, the cells it had added.
"""

import ctypes
import json
import os
import sys
from pathlib import Path

from tokenmill.bench.store import Store
from tokenmill.errors import StoreError

SETTINGS = {"track": "cache", "methods": ["full"], "seed": 0}
CELLS = 4


def small_run(folder, log, *, resume=False):
    """A whole run of four cells and one result file; every cell is written to `log` once the store has it."""
    with Store(folder, SETTINGS, resume=resume) as store:
        for sample in range(CELLS):
            if not store.done("task", sample, "full"):
                store.add("task", sample, "full", {"score": sample}, 0.5)
                log.write(f"{sample}\n")
                log.flush()
        store.write("results.json", "{}\n")


def child(strike, place, number, error):
    place.mkdir()
    with (place / "log").open("w") as log:
        strike.strike_at(str(place / "run").encode(), number, error)
        try:
            small_run(place / "run", log)
        except StoreError as said:
            (place / "said").write_text(str(said))
            os._exit(2)
        except BaseException as bug:
            (place / "said").write_text(repr(bug))
            os._exit(1)
        if strike.strike_calls() < number:
            os._exit(100)  # there is no such operation any more
        os._exit(0)


if __name__ == "__main__":
    strike, base, error = ctypes.CDLL(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    for number in range(1, 500):
        if not (pid := os.fork()):
            child(strike, base / str(number), number, error)
        ended = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if ended == 100:
            break
        print(json.dumps({"number": number, "ended": ended}), flush=True)
