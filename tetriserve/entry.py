"""How a command begins: Ctrl-C while it is still being imported ends it without a word.

Commands import this alone at first, so it must stay light.
"""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

INTERRUPTED = 130
"""Exit status of what was interrupted, as shells say it."""


@contextmanager
def quietly_interrupted() -> Iterator[None]:
    """Around imports. An ignored SIGINT stays ignored."""
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    # No exception: libraries that are being imported may make another one of it.
    signal.signal(signal.SIGINT, lambda *_: os._exit(INTERRUPTED))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
