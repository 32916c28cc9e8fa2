"""A model's chat template, rendered within bounds: it is a program that came with the model's files.

transformers renders it in a sandbox, which reaches no files and runs no Python, but may go on for ever or fill the
memory. So a template is first rendered in a process of its own that has few seconds and little memory.
"""

from __future__ import annotations

import contextlib
import multiprocessing.connection
import os
import resource
import signal
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenmill.errors import InputError

SECONDS = 5.0
MEMORY = 1 << 30  # bytes beside what the process has
LONGEST = 1 << 26  # characters

_tried: set[str] = set()


def render_chat(tokenizer: Any, messages: Sequence[dict[str, Any]], **options: Any) -> str:
    """The messages as text in the model's chat format; options are those of `apply_chat_template`.

    Raises InputError for a template that refuses the messages, is broken, or does not end within bounds.
    """
    key = repr((tokenizer.chat_template, [m.get("role") for m in messages], sorted(options.items())))
    if key not in _tried:
        _try(tokenizer, messages, options)
        _tried.add(key)
    try:
        return _render(tokenizer, messages, options)
    except Exception as error:  # a template may break in any way
        raise _broken(_reason(error)) from None


def _render(tokenizer: Any, messages: Sequence[dict[str, Any]], options: dict[str, Any]) -> str:
    text = str(tokenizer.apply_chat_template(list(messages), tokenize=False, **options))
    if len(text) > LONGEST:
        raise ValueError(f"its text has {len(text):,} characters")
    return text


def _try(tokenizer: Any, messages: Sequence[dict[str, Any]], options: dict[str, Any]) -> None:
    """Render in a forked child; InputError if that breaks, is killed or takes too long."""
    here, there = multiprocessing.connection.Pipe(duplex=False)
    with warnings.catch_warnings():  # the child runs the template alone and ends: no lock of another thread is taken
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        code = 1
        try:
            here.close()
            _limit()
            try:
                _render(tokenizer, messages, options)
                reason = ""
            except BaseException as error:
                reason = _reason(error)
            there.send(reason)
            code = 0
        finally:
            os._exit(code)
    there.close()
    try:
        reason = here.recv() if here.poll(SECONDS) else f"it does not end within {SECONDS:g} seconds"
    except EOFError:  # the child died
        reason = f"it needs more than {MEMORY >> 20} MB of memory"
    finally:
        here.close()
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    if reason:
        raise _broken(reason)


def _limit() -> None:
    statm = Path("/proc/self/statm")
    if statm.is_file():  # elsewhere the time alone is bounded
        size = int(statm.read_text().split()[0]) * resource.getpagesize() + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (size, resource.getrlimit(resource.RLIMIT_AS)[1]))


def _reason(error: BaseException) -> str:
    if isinstance(error, MemoryError):
        return f"it needs more than {MEMORY >> 20} MB of memory"
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def _broken(reason: str) -> InputError:
    return InputError(
        f"the model's chat template cannot render these messages ({reason}); mend chat_template.jinja or "
        "tokenizer_config.json in the model's folder, or give the prompt as plain text"
    )
