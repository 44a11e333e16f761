"""Files that are there whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A draft beside the file, which takes its place when the block ends without an error.

    A link stays one. What is there and no file, such as a pipe, is itself the draft. Raises OSError.
    """
    wanted = Path(path)
    if wanted.exists() and not wanted.is_file():
        yield wanted
        return
    wanted = wanted.resolve()
    draft = wanted.with_name(f".{os.getpid()}-{wanted.name}")
    try:
        yield draft
        draft.replace(wanted)
    finally:
        draft.unlink(missing_ok=True)
