"""What survives a restart: requests in SQLite (WAL), images and checkpoints in files beside it.

data-dir/journal.sqlite   one row a request: its status as of its last change of stage
data-dir/images/ID.png
data-dir/checkpoints/ID.STEP
"""

import math
import os
import sqlite3
from collections.abc import Iterable
from pathlib import Path

from tetriserve.v1 import types_pb2

_SCHEMA = """
CREATE TABLE IF NOT EXISTS requests (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    stage INTEGER NOT NULL,
    status BLOB NOT NULL
);
CREATE INDEX IF NOT EXISTS requests_by_stage ON requests (stage);
"""
_ENDED = (
    types_pb2.STAGE_DONE,
    types_pb2.STAGE_FAILED,
    types_pb2.STAGE_CANCELLED,
    types_pb2.STAGE_DROPPED,
)


class JournalError(Exception):
    """The data folder cannot be used; the message says why."""


class Journal:
    """Requests by id, in the order of their submission. Used from one thread at a time."""

    def __init__(self, folder: Path) -> None:
        self._images, self._checkpoints = folder / "images", folder / "checkpoints"
        try:
            for each in (self._images, self._checkpoints):
                each.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(folder / "journal.sqlite", timeout=1, check_same_thread=False)
            # One scheduler a folder: two would plan the same requests.
            self._db.execute("PRAGMA locking_mode = EXCLUSIVE")
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")
            self._db.executescript(_SCHEMA)
            self._db.commit()
        except OSError as error:
            raise JournalError(f"{error.filename}: {error.strerror}") from None
        except sqlite3.Error as error:
            hint = "; another scheduler uses it" if "locked" in str(error) else ""
            raise JournalError(f"{folder}: {error}{hint}") from None

    def add(self, status: types_pb2.RequestStatus) -> None:
        """Accept a request; it is on disk when this returns. Raises KeyError where the id is taken."""
        row = (status.request.id, status.stage, status.SerializeToString())
        try:
            with self._db:
                self._db.execute("INSERT INTO requests (id, stage, status) VALUES (?, ?, ?)", row)
        except sqlite3.IntegrityError:
            raise KeyError(status.request.id) from None

    def update(self, status: types_pb2.RequestStatus) -> None:
        """Write a request's status over the one before."""
        row = (status.stage, status.SerializeToString(), status.request.id)
        with self._db:
            self._db.execute("UPDATE requests SET stage = ?, status = ? WHERE id = ?", row)

    def get(self, request_id: str) -> types_pb2.RequestStatus | None:
        """A request's status, or None."""
        found = self._db.execute("SELECT status FROM requests WHERE id = ?", (request_id,)).fetchone()
        return types_pb2.RequestStatus.FromString(found[0]) if found else None

    def page(
        self, before: int | None, stages: Iterable[int], limit: int
    ) -> list[tuple[int, types_pb2.RequestStatus]]:
        """At most `limit` requests with their sequence numbers, newest first, all below `before`."""
        stages = list(stages)
        where, values = ["1"], list[int]()
        if before is not None:
            where.append("seq < ?")
            values.append(before)
        if stages:
            where.append(f"stage IN ({', '.join('?' * len(stages))})")
            values += stages
        rows = self._db.execute(
            f"SELECT seq, status FROM requests WHERE {' AND '.join(where)} ORDER BY seq DESC LIMIT ?",
            [*values, limit],
        )
        return [(seq, types_pb2.RequestStatus.FromString(blob)) for seq, blob in rows]

    def outstanding(self) -> list[types_pb2.RequestStatus]:
        """Requests that have not ended, oldest first."""
        rows = self._db.execute(
            f"SELECT status FROM requests WHERE stage NOT IN ({', '.join('?' * len(_ENDED))}) ORDER BY seq",
            _ENDED,
        )
        return [types_pb2.RequestStatus.FromString(blob) for (blob,) in rows]

    def image(self, request_id: str) -> Path:
        """Where the request's picture is, or will be."""
        return self._images / f"{request_id}.png"

    def checkpoint(self, request_id: str) -> tuple[int, Path] | None:
        """The furthest checkpoint and the steps behind it."""
        return max(self._checkpoints_of(request_id), default=None)

    def save_image(self, request_id: str, data: bytes) -> None:
        """Keep a finished picture."""
        _write(self.image(request_id), data, durable=True)

    def save_checkpoint(self, request_id: str, step: int, data: bytes) -> None:
        """Keep a latent, in place of earlier ones of the request."""
        _write(self._checkpoints / f"{request_id}.{step}", data, durable=False)
        self.drop_checkpoints(request_id, below=step)

    def drop_checkpoints(self, request_id: str, below: float = math.inf) -> None:
        """Delete the request's checkpoints with fewer steps than `below`."""
        for step, path in self._checkpoints_of(request_id):
            if step < below:
                path.unlink(missing_ok=True)

    def _checkpoints_of(self, request_id: str) -> list[tuple[int, Path]]:
        paths = self._checkpoints.glob(f"{request_id}.*")
        # An id can hold dots, and so be the beginning of another.
        return [(int(p.suffix[1:]), p) for p in paths if p.stem == request_id and p.suffix[1:].isdigit()]

    def close(self) -> None:
        """Give the folder back."""
        self._db.close()


def _write(path: Path, data: bytes, durable: bool) -> None:
    """Replace a file at once: readers see the old one or the new one, never a part."""
    draft = path.with_name(path.name + ".part")
    with draft.open("wb") as file:
        file.write(data)
        if durable:
            file.flush()
            os.fsync(file.fileno())
    draft.replace(path)
