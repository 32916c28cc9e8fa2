"""A run that is killed loses at most the cell in progress; what it measured is never measured again."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("slow_run.py")
CELLS = 8 * 5  # eight samples of tasks, five rows: untouched, and two methods at two budgets


def start(folder, log, delay, *words):
    env = {**os.environ, "PYTHONPATH": str(SCRIPT.parent.parent)}
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), str(folder), str(log), str(delay), *words],
        env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def wait_for(log, lines, process, seconds=240):
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        if log.exists() and len(log.read_text().splitlines()) >= lines:
            return
        time.sleep(0.01)
    raise AssertionError(f"the run got nowhere: {process.communicate()[0]}")


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
def test_kill_and_resume_measure_every_cell_once(tmp_path):
    folder, log = tmp_path / "run", tmp_path / "log"
    for kill_after, words in ((4, ()), (15, ("resume",))):
        process = start(folder, log, 0.03, *words)
        wait_for(log, kill_after, process)
        process.kill()
        process.communicate()
        assert not (folder / "results.json").exists()
    process = start(folder, log, 0, "resume")
    said = process.communicate(timeout=300)[0]
    assert process.returncode == 0, said
    counts = Counter(log.read_text().splitlines())
    assert len(counts) == CELLS
    assert sum(counts.values()) <= CELLS + 2  # a kill may fall between measuring a cell and storing it
    rows = json.loads((folder / "results.json").read_text())["rows"]
    assert len(rows) == 5

    # A finished run resumed measures nothing and writes the same figures.
    process = start(folder, log, 0, "resume")
    assert process.communicate(timeout=300)[0]
    assert process.returncode == 0
    assert Counter(log.read_text().splitlines()) == counts
    assert json.loads((folder / "results.json").read_text())["rows"] == rows


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGINT to a process")
def test_ctrl_c_says_how_to_go_on(tmp_path):
    folder, log = tmp_path / "run", tmp_path / "log"
    process = start(folder, log, 0.03)
    wait_for(log, 3, process)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=120)[0]
    assert process.returncode not in (0, 1)
    assert "measured cells are safe" in said
    assert f"tokenmill compare cache --out {folder} --resume --methods 'knorm, recent_window'" in said
    process = start(folder, log, 0, "resume")
    process.communicate(timeout=300)
    assert process.returncode == 0
