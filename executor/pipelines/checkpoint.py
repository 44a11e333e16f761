"""Diffusers checkpoints: whether a folder is a complete one, and its models with all of their weights."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from safetensors import SafetensorError, safe_open
from transformers.utils import sentencepiece_model_pb2_new

from executor.pipelines.base import ModelError
from executor.roles import DECODE, DENOISE, ENCODE

_CONFIG_FILES = ("config.json", "scheduler_config.json", "tokenizer_config.json", "preprocessor_config.json")
_WEIGHTS = ("*.safetensors", "*.bin")
_LIBRARIES = ("diffusers", "transformers")
# Of adapters for pictures as prompts.
_UNUSED = ("image_encoder", "feature_extractor")
# A tokenizer has one of these. transformers would go on without, and know no word.
_VOCABULARIES = ("tokenizer.json", "spiece.model", "vocab.json")

# Those of sentencepiece itself may want a newer protobuf than ours.
sys.modules.setdefault("sentencepiece.sentencepiece_model_pb2", sentencepiece_model_pb2_new)


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
    for name, (library, class_name) in _components(index).items():
        if library not in _LIBRARIES or not hasattr(importlib.import_module(library), class_name):
            what = f"{library}.{class_name} as {name}"
            raise ModelError(f"{folder / 'model_index.json'} wants {what}: there is no such class")
        _check_component(folder / name, library, class_name)
    return index


def load_models(folder: Path, dtype: torch.dtype, roles: frozenset[str]) -> dict[str, torch.nn.Module]:
    """All models of a checkpoint that `read_index` has passed, by the name of their folder.

    Those that no role needs are there in shape only, on the meta device.

    diffusers and transformers fill up missing weights with random ones and only log it; here that is an
    error, since every executor would draw another picture.

    Raises:
        ModelError: weights are missing or do not fit the configuration.
    """
    models = {}
    for name, (library, class_name) in _components(read_index(folder)).items():
        if not (folder / name / "config.json").exists():
            continue
        model_class = getattr(importlib.import_module(library), class_name)
        # Rounded in the VAE, what two latents differ by in the last digit would be seen in the picture.
        precision = torch.float32 if _role(name) == DECODE else dtype
        if _role(name) not in roles:
            models[name] = _shape(folder / name, model_class, precision)
            continue
        model, report = model_class.from_pretrained(
            folder / name,
            dtype=precision,
            local_files_only=True,
            # Not ignored, but reported by name.
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
        for problem in ("missing_keys", "mismatched_keys"):
            if keys := sorted(map(str, report[problem])):
                what = problem.removesuffix("_keys")
                raise ModelError(
                    f"{folder / name} has {what} weights: {', '.join(keys[:3])} ({len(keys)} in all)"
                )
        models[name] = model
    return models


def _role(component: str) -> str:
    """The role that needs a component."""
    if component.startswith("text_encoder"):
        return ENCODE
    return DECODE if component.startswith("vae") else DENOISE


def _shape(folder: Path, model_class: Any, dtype: torch.dtype) -> torch.nn.Module:
    """A model without memory for its weights."""
    with torch.device("meta"):
        if hasattr(model_class, "from_config"):  # of diffusers
            model = model_class.from_config(model_class.load_config(folder, local_files_only=True))
        else:
            config_class = model_class.config_class
            model = model_class(config_class.from_pretrained(folder, local_files_only=True))
    # Not diffusers' own `to`, which warns of weights that are not there.
    return torch.nn.Module.to(model, dtype).eval()


def place(parts: Any, device: torch.device) -> Any:
    """Bring what a diffusers pipeline has loaded to the device; returns the pipeline."""
    for part in parts.components.values():
        if isinstance(part, torch.nn.Module) and not any(p.is_meta for p in part.parameters()):
            part.to(device)
    return parts


def load_parts(
    folder: Path,
    pipeline_class: Any,
    dtype: torch.dtype,
    roles: frozenset[str],
    optional: Sequence[str] = (),
) -> Any:
    """A diffusers pipeline with all of its weights, from a checkpoint that `read_index` has passed.

    Args:
        optional: parts that may be left out, with null for them in the index.

    Raises:
        ModelError: weights are missing or do not fit the configuration, or a tokenizer not its encoder.
    """
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    there = _components(_read_json(folder / "model_index.json"))
    takes, _ = pipeline_class._get_signature_keys(pipeline_class)
    if lacking := sorted(set(takes).difference(there, optional, _UNUSED)):
        raise ModelError(f"the checkpoint is incomplete: model_index.json names no {', '.join(lacking)}")
    models: dict[str, Any] = dict(load_models(folder, dtype, roles))
    models |= {name: None for name in optional if name not in there}
    parts = pipeline_class.from_pretrained(folder, local_files_only=True, **models)
    for name, tokenizer in parts.components.items():
        encoder = name.startswith("tokenizer") and getattr(parts, name.replace("tokenizer", "text_encoder"))
        if tokenizer and encoder and len(tokenizer) > encoder.config.vocab_size:
            raise ModelError(
                f"{folder / name} has {len(tokenizer)} tokens, its encoder {encoder.config.vocab_size}: "
                "they are of different models"
            )
    return parts


def check_fit(*pairs: tuple[str, int, str, int]) -> None:
    """Whether parts are of one model: what one gives, and how much of it, and what the other takes.

    Raises:
        ModelError: they are not.
    """
    for one, gives, other, takes in pairs:
        if gives != takes:
            raise ModelError(f"{one} is {gives}, {other} is {takes}: they are of different models")


def _components(index: dict[str, Any]) -> dict[str, tuple[str, str]]:
    """Library and class of each part of a pipeline that is there."""
    return {
        name: (str(source[0]), str(source[1]))
        for name, source in index.items()
        if not name.startswith("_") and isinstance(source, list) and len(source) == 2 and source[0]
    }


def _check_component(folder: Path, library: str, of_class: str) -> None:
    if not folder.is_dir():
        raise ModelError(f"the checkpoint is incomplete: {folder} is missing")
    configs = [folder / name for name in _CONFIG_FILES if (folder / name).exists()]
    if not configs:
        raise ModelError(f"the checkpoint is incomplete: {folder} has no configuration ({of_class})")
    for config in configs:
        content = _read_json(config)
        if library == "diffusers" and "_class_name" not in content:
            raise ModelError(f"{config} has no _class_name: not a configuration of diffusers")
    if (folder / "tokenizer_config.json").exists():
        _check_vocabulary(folder)
    if (folder / "config.json").exists():
        _check_weights(folder)


def _check_vocabulary(folder: Path) -> None:
    file = folder / "tokenizer.json"
    if file.exists() and not {"model", "added_tokens"} <= _read_json(file).keys():
        raise ModelError(f"cannot read {file}: not a tokenizer")
    there = [name for name in _VOCABULARIES if (folder / name).exists()]
    if not there:
        raise ModelError(
            f"the checkpoint is incomplete: {folder} has no vocabulary ({', '.join(_VOCABULARIES)})"
        )
    if there == ["vocab.json"] and not (folder / "merges.txt").exists():
        raise ModelError(f"the checkpoint is incomplete: {folder / 'merges.txt'} is missing")


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
