"""What an engine prints, kept in a file that does not grow without end.

Invariant: the last `LONGEST` bytes at least are there, in ``engine.log`` and the files before it, and the last lines
are in memory too, for the one sentence that says why an engine died.
"""

from __future__ import annotations

import os
from collections import deque
from pathlib import Path

LONGEST = 8 << 20
"""Bytes of a file before the next one is begun."""
FILES = 3
"""Files kept beside the one that is written."""
LAST_LINES = 40
LONGEST_LINE = 2000
TELLING = ("error", "exception", "cannot", "killed", "no space", "not found")
"""Words of a line that says why, rather than where."""


class EngineLog:
    """A log file with rotation."""

    def __init__(self, path: Path, longest: int = LONGEST) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._longest = longest
        self._file = path.open("ab")
        self._last: deque[str] = deque(maxlen=LAST_LINES)

    def write(self, line: bytes) -> None:
        """Append a line, end of line included."""
        self._last.append(line[:LONGEST_LINE].decode("utf-8", "replace").strip())
        if self._file.tell() + len(line) > self._longest:
            self._rotate()
        self._file.write(line)
        self._file.flush()

    def forget(self) -> None:
        """The last words are those of a process that is gone."""
        self._last.clear()

    def last_words(self) -> str:
        """The last line that tells why, else the last line."""
        lines = [line for line in self._last if line]
        telling = [line for line in lines if any(word in line.lower() for word in TELLING)]
        return (telling or lines or [""])[-1][:400]

    def close(self) -> None:
        """Nothing more comes."""
        self._file.close()

    def _rotate(self) -> None:
        self._file.close()
        for number in range(FILES, 0, -1):
            older = self._path.with_name(f"{self._path.name}.{number}")
            newer = self._path if number == 1 else self._path.with_name(f"{self._path.name}.{number - 1}")
            if newer.exists():
                os.replace(newer, older)
        self._file = self._path.open("ab")
