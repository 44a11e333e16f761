"""The checkpoint that is used where no `--model` is given."""

import hashlib
import shutil
import tempfile
from pathlib import Path

import model
from executor.once import alone
from tetriserve.logs import Logger

SOURCE = Path(model.__file__).parent

log = Logger("executor.builtin")


def checkpoint(cache: Path) -> Path:
    """The folder of the trained model; where it is not shipped, of a random one, made once in `cache`."""
    trained = SOURCE / "checkpoint"
    if (trained / "model_index.json").is_file():
        return trained
    # Whoever changes how the random model is made gets a new one.
    recipe = b"".join(path.read_bytes() for path in sorted(SOURCE.glob("*.py")))
    folder = cache / "models" / f"random-{hashlib.sha256(recipe).hexdigest()[:12]}"
    with alone(folder.with_suffix(".lock"), "writing the built-in model"):
        if not folder.is_dir():
            _write(folder)
    return folder


def _write(folder: Path) -> None:
    """Write the checkpoint so that nobody ever sees half of it. Imports torch, so not at the top."""
    from transformers.utils.logging import disable_progress_bar

    from model.layout import write_checkpoint

    disable_progress_bar()
    log.info("writing the built-in model, untrained", folder=folder)
    draft = Path(tempfile.mkdtemp(prefix=folder.name, dir=folder.parent))
    try:
        write_checkpoint(draft)
        draft.rename(folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
