"""One run of the command line in a forked child, with bounds on its time and memory.

The interpreter is warm, so a run costs milliseconds, and nothing it does outlives it.
"""

import json
import os
import resource
import signal
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

SECONDS = 30  # of the CPU
MEMORY = 3 << 30  # bytes beside what the parent has


@dataclass(frozen=True)
class Outcome:
    code: int | None  # None: it was ended for its time
    stdout: str
    stderr: str
    exception: str

    @property
    def fault(self) -> str | None:
        """None for success, or for one line and exit code 2; else what was wrong."""
        lines = self.stderr.splitlines()
        if self.code is None:
            return "took too long"
        if self.exception or "Traceback" in self.stderr + self.stdout:
            return f"a traceback: {self.exception or self.stderr}"
        if self.code not in (0, 2):
            return f"exit code {self.code}: {self.stderr}"
        if self.code == 2 and (len(lines) != 1 or not lines[0].startswith("tokenmill: ")):
            return f"not one line: {self.stderr!r}"
        return None


def run(words: list[str], stdin: bytes = b"", seconds: int = SECONDS) -> Outcome:
    """`tokenmill WORDS` in a child."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        try:
            answer = _answer(words, stdin, seconds)
        except BaseException:
            answer = {"code": 1, "stdout": "", "stderr": "", "exception": traceback.format_exc()[-3000:]}
        try:
            with os.fdopen(writer, "w") as out:
                json.dump(answer, out)
        finally:
            os._exit(0)
    os.close(writer)
    began = time.monotonic()
    with os.fdopen(reader) as pipe:
        os.set_blocking(pipe.fileno(), False)
        text = ""
        while True:
            try:
                part = os.read(pipe.fileno(), 1 << 20)
            except BlockingIOError:
                if time.monotonic() - began > 10 * seconds:  # the machine may be busy; a sleeping child may not
                    os.kill(child, signal.SIGKILL)
                time.sleep(0.005)
                continue
            if not part:
                break
            text += part.decode()
    _, status = os.waitpid(child, 0)
    if text:
        return Outcome(**json.loads(text))
    ended = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
    if ended in (signal.SIGXCPU, signal.SIGKILL):
        return Outcome(None, "", "", "")
    return Outcome(-ended, "", "", f"ended by signal {ended}")


def _answer(words: list[str], stdin: bytes, seconds: int) -> dict[str, object]:
    from typer.testing import CliRunner

    from tokenmill.cli import app

    size = (
        int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() if Path("/proc").is_dir() else 0
    )
    if size:
        resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, resource.RLIM_INFINITY))
    used = resource.getrusage(resource.RUSAGE_SELF)
    limit = int(used.ru_utime + used.ru_stime) + seconds
    resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 5))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    made = CliRunner().invoke(app, words, input=stdin)
    odd = made.exception is not None and not isinstance(made.exception, SystemExit)
    told = "".join(traceback.format_exception(made.exception))[-3000:] if odd else ""
    return {
        "code": made.exit_code,
        "stdout": made.stdout_bytes.decode(errors="replace"),
        "stderr": made.stderr_bytes.decode(errors="replace"),
        "exception": told,
    }
