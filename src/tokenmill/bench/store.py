"""Where a run keeps what it has measured: one row a finished cell, written at once, in one SQLite file.

A killed run loses the cell in progress and nothing else. A folder belongs to one run at a time (a lock that
dies with its process) and to one set of settings. Opening reads every cell, checks its digest and holds the file
against its own index; afterwards the cells in memory answer, so that a damaged file is noticed once and trusted never.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenmill.errors import StoreError

try:
    import fcntl
except ImportError:  # Windows: SQLite's own lock still keeps two writers apart, with a less clear message
    fcntl = None  # type: ignore[assignment]

SCHEMA = 2
FILE, PART, LOCK = "store.sqlite", ".store.part", "lock"
JOURNALS = ("-journal", "-wal", "-shm")  # what SQLite writes beside a file
RESULTS = ("results.json", "report.html", "recipe.toml")


def _part(name: str) -> str:
    """The name under which a result file is written before it is whole."""
    return f".{name}.part"


PARTS = {PART, *(PART + end for end in JOURNALS), *map(_part, RESULTS)}
TABLES = {
    "settings": "CREATE TABLE settings (value TEXT NOT NULL, digest TEXT NOT NULL)",
    "cells": (
        "CREATE TABLE cells (task TEXT NOT NULL, sample INTEGER NOT NULL, row TEXT NOT NULL, "
        "seconds REAL NOT NULL, value TEXT NOT NULL, digest TEXT NOT NULL, PRIMARY KEY (task, sample, row))"
    ),
}


def _digest(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=repr).encode()).hexdigest()[:32]  # repr: of bytes


class Store:
    """The finished cells of one run: (task, sample, row) -> (value, seconds)."""

    def __init__(self, folder: Path, settings: dict[str, Any], *, resume: bool = False):
        self.folder, self.file = folder, folder / FILE
        self._db: sqlite3.Connection | None = None
        self._cells: dict[tuple[str, int, str], tuple[Any, float]] = {}
        self._lock = _take_lock(folder)
        try:
            self._open(settings, resume)
        except BaseException:
            self.close()
            raise

    def _open(self, settings: dict[str, Any], resume: bool) -> None:
        self._sweep()
        others = [p.name for p in self.folder.iterdir() if p.name != LOCK]
        if others and not resume:
            what = "holds a run already" if FILE in others else f"is not empty ({', '.join(sorted(others)[:4])})"
            raise StoreError(f"{self.folder} {what}; give --resume to go on with it, or another --out")
        if others and FILE not in others:
            raise StoreError(
                f"nothing to resume in {self.folder}: it is not empty and has no {FILE}; use another --out"
            )
        with self._said():
            if not others:  # new, or killed before it began
                self._create(settings)
            self._db = sqlite3.connect(self.file, isolation_level=None, timeout=5)
            self._sql("PRAGMA journal_mode=WAL")
            self._sql("PRAGMA synchronous=FULL")
            self._verify(settings)

    def _sweep(self) -> None:
        """Remove the half-written files of a run that was killed; the lock is ours, so nobody writes them now."""
        try:
            for path in self.folder.iterdir():
                if path.name in PARTS:
                    path.unlink()
        except OSError as error:
            raise StoreError(f"cannot write in {self.folder}: {error.strerror}; choose another --out") from None

    def _create(self, settings: dict[str, Any]) -> None:
        """The file appears whole, under its name, or not at all: one without tables is a damaged one."""
        part = self.folder / PART
        text = json.dumps(settings, sort_keys=True)
        with contextlib.closing(sqlite3.connect(part)) as db, db:
            for statement in TABLES.values():
                db.execute(statement)
            db.execute("INSERT INTO settings VALUES (?, ?)", (text, _digest(text)))
            db.execute(f"PRAGMA user_version={SCHEMA}")
        os.replace(part, self.file)

    def _verify(self, settings: dict[str, Any]) -> None:
        damage = self._sql("PRAGMA integrity_check").fetchone()[0]  # the full one: it holds the index against the rows
        if damage != "ok":
            raise self._corrupt(damage)
        version = self._sql("PRAGMA user_version").fetchone()[0]
        if version != SCHEMA:
            raise StoreError(f"{self.file} has store format {version}, this version writes {SCHEMA}; use another --out")
        found = dict(self._sql("SELECT name, sql FROM sqlite_master WHERE type='table'").fetchall())
        if found != TABLES:
            raise self._corrupt(f"its tables are {', '.join(map(str, found))}, or have other columns")
        rows = self._sql("SELECT value, digest FROM settings").fetchall()
        if len(rows) != 1 or _digest(rows[0][0]) != rows[0][1]:
            raise self._corrupt("the settings do not match their digest")
        for task, sample, row, seconds, value, digest in self._sql("SELECT * FROM cells ORDER BY rowid"):
            if _digest(task, sample, row, seconds, value) != digest:
                raise self._corrupt(f"the cell {task}, sample {sample}, {row} does not match its digest")
            self._cells[task, sample, row] = json.loads(value), seconds
        before, now = json.loads(rows[0][0]), json.loads(json.dumps(settings))
        if different := list(differences(before, now)):
            raise StoreError(
                f"{self.folder} was measured with other settings: {'; '.join(different)}. "
                "Resume with the same, or use another --out"
            )

    def done(self, task: str, sample: int, row: str) -> bool:
        return (task, sample, row) in self._cells

    def add(self, task: str, sample: int, row: str, value: Any, seconds: float) -> None:
        """Write one finished cell; on return it survives a kill. A cell is never written twice."""
        text = json.dumps(value, sort_keys=True, allow_nan=False)
        digest = _digest(task, sample, row, seconds, text)
        with self._said():
            self._sql("INSERT INTO cells VALUES (?, ?, ?, ?, ?, ?)", (task, sample, row, seconds, text, digest))
        self._cells[task, sample, row] = json.loads(text), seconds

    def cells(self) -> dict[tuple[str, int, str], tuple[Any, float]]:
        """Everything measured so far, in the order it was measured."""
        return dict(self._cells)

    def close(self) -> None:
        if self._db is not None:
            self._db.close()
            self._db = None
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _sql(self, statement: str, values: tuple[Any, ...] = ()) -> sqlite3.Cursor:
        assert self._db is not None, "the store is closed"
        return self._db.execute(statement, values)

    def _corrupt(self, detail: object) -> StoreError:
        return StoreError(
            f"{self.file} is damaged ({detail}). Its figures cannot be trusted: "
            "move the folder away and start again, or use another --out"
        )

    @contextlib.contextmanager
    def _said(self) -> Iterator[None]:
        """SQLite's errors in words a user can act on."""
        try:
            yield
        except sqlite3.Error as error:
            text = str(error)
            if "full" in text:
                raise self.full() from None
            if "locked" in text:
                raise StoreError(f"{self.file} is in use by another program; wait for it, then --resume") from None
            if isinstance(error, sqlite3.OperationalError) and ("unable to open" in text or "readonly" in text):
                raise StoreError(f"cannot write {self.file}: {text}; choose another --out") from None
            if "disk I/O" in text:
                raise StoreError(f"cannot write {self.file} ({text}): is the disk full or gone?") from None
            raise self._corrupt(text) from None
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise self.full() from None
            raise StoreError(f"cannot write {self.file}: {error.strerror}; choose another --out") from None

    def full(self) -> StoreError:
        return StoreError(
            f"no space left to write {self.folder}; what was measured before is safe in {FILE}. "
            "Make room, then give --resume"
        )

    def write(self, name: str, text: str) -> Path:
        """A result file: complete or not there at all."""
        path = self.folder / name
        part = path.with_name(_part(name))
        try:
            part.write_text(text, encoding="utf-8")
            os.replace(part, path)
        except OSError as error:
            with contextlib.suppress(OSError):
                part.unlink()
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise self.full() from None
            raise StoreError(f"cannot write {path}: {error.strerror}; the measured cells are safe in {FILE}") from None
        return path


def differences(before: Any, now: Any, where: str = "") -> Iterator[str]:
    """What differs between two settings, in words."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in sorted({*before, *now}):
            yield from differences(before.get(key), now.get(key), f"{where}.{key}" if where else key)
    elif isinstance(before, list) and isinstance(now, list) and all(isinstance(x, str) for x in before + now):
        gone, new = [x for x in before if x not in now], [x for x in now if x not in before]
        parts = [f"without {', '.join(gone)}"] * bool(gone) + [f"with {', '.join(new)} added"] * bool(new)
        if parts or before != now:
            yield f"{where} now {' and '.join(parts) or 'in another order'}"
    elif before != now:
        yield f"{where} was {before}, is now {now}"


def _take_lock(folder: Path) -> int | None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise StoreError(f"{folder} is a file; --out takes a folder") from None
    except OSError as error:
        raise StoreError(f"cannot make the folder {folder}: {error.strerror}; choose another --out") from None
    try:
        handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise StoreError(f"cannot write in {folder}: {error.strerror}; choose another --out") from None
    if fcntl is not None:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            owner = os.read(handle, 32).decode(errors="replace").strip() or "unknown"
            os.close(handle)
            raise StoreError(
                f"another run (process {owner}) is writing into {folder}; wait for it, or use another --out"
            ) from None
    with contextlib.suppress(OSError):  # the pid is a courtesy; a full disk must not hide the store's own message
        os.ftruncate(handle, 0)
        os.pwrite(handle, str(os.getpid()).encode(), 0)
    return handle
