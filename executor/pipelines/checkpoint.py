"""Whether a folder is a complete diffusers checkpoint, before gigabytes of it are read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from executor.pipelines.base import ModelError

_CONFIG_FILES = ("config.json", "scheduler_config.json", "tokenizer_config.json", "preprocessor_config.json")
_WEIGHTS = ("*.safetensors", "*.bin")


def read_index(folder: Path) -> dict[str, Any]:
    """model_index.json of a checkpoint folder whose components are all there.

    Raises:
        ModelError: something is missing or corrupt; the message names the file.
    """
    if not folder.is_dir():
        raise ModelError(f"no model folder at {folder}")
    index = _read_json(folder / "model_index.json")
    if "_class_name" not in index:
        raise ModelError(f"{folder / 'model_index.json'} has no _class_name: not a diffusers pipeline")
    for name, source in index.items():
        is_component = isinstance(source, list) and len(source) == 2 and source[0] is not None
        if is_component and not name.startswith("_"):
            _check_component(folder / name, of_class=str(source[1]))
    return index


def _check_component(folder: Path, of_class: str) -> None:
    if not folder.is_dir():
        raise ModelError(f"the checkpoint is incomplete: {folder} is missing")
    configs = [folder / name for name in _CONFIG_FILES if (folder / name).exists()]
    if not configs:
        raise ModelError(f"the checkpoint is incomplete: {folder} has no configuration ({of_class})")
    for config in configs:
        _read_json(config)
    if (folder / "config.json").exists():
        _check_weights(folder)


def _check_weights(folder: Path) -> None:
    for index in folder.glob("*.index.json"):
        for shard in sorted(set(_read_json(index).get("weight_map", {}).values())):
            if not (folder / shard).exists():
                raise ModelError(f"the checkpoint is incomplete: {folder / shard} is missing")
    files = [file for pattern in _WEIGHTS for file in sorted(folder.glob(pattern))]
    if not files:
        raise ModelError(f"the checkpoint is incomplete: {folder} has no weights")
    for file in files:
        if file.suffix != ".safetensors":
            continue
        try:
            # Reads the header and compares it with the length of the file; no tensor is read.
            with safe_open(file, framework="pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise ModelError(f"corrupt weights in {file}: {error}") from error


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text())
    except FileNotFoundError:
        raise ModelError(f"the checkpoint is incomplete: {file} is missing") from None
    except (OSError, ValueError) as error:
        raise ModelError(f"cannot read {file}: {error}") from error
    if not isinstance(content, dict):
        raise ModelError(f"cannot read {file}: not a JSON object")
    return content
