"""LoRA adapters: low-rank additions to a transformer's linear layers, chosen by each request.

An adapter is never merged into the weights: a hook adds its part to a layer's output. So switching from
one step to the next is setting a variable, and without an adapter nothing at all is different.
"""

from __future__ import annotations

import hashlib
import inspect
import re
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from tetriserve.logs import Logger

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_KEY = re.compile(r"transformer\.(?P<layer>.+)\.lora_(?P<side>[AB])\.weight")
SAMPLE_BYTES = 1 << 16

log = Logger("executor.adapters")


class AdapterError(ValueError):
    """An adapter that cannot be used; the message names the file and says why."""


@dataclass(frozen=True)
class Addition:
    """To one layer's output: `factor` x `up` (`down` x input), [out, rank] and [rank, in]."""

    down: torch.Tensor
    up: torch.Tensor
    factor: float

    @property
    def nbytes(self) -> int:
        """Memory, in bytes."""
        return self.down.nbytes + self.up.nbytes


Adapter = Mapping[str, Addition]
"""An addition for each layer that it changes, by the layer's name in the transformer."""


class Adapters:
    """The adapters in a folder, those used last in memory, and the one that is on.

    All of them are read once, so that a broken one is found at the start. One thread uses this, the one
    that owns the device.

    Args:
        parts: the diffusers pipeline; it knows the formats of its family's adapters.
        folder: with NAME.safetensors, or NAME/*.safetensors, for each adapter.
        device, dtype: where the additions are, and of which precision.
        limit: bytes of adapters kept in memory; the one in use is there in any case.

    Raises:
        AdapterError: one of them cannot be used.
    """

    def __init__(
        self, parts: Any, folder: Path, device: torch.device, dtype: torch.dtype, limit: int
    ) -> None:
        if not hasattr(parts, "lora_state_dict"):
            raise AdapterError(f"--lora-dir: there are no adapters for {type(parts).__name__}")
        self._parts = parts
        self._device, self._dtype, self._limit = device, dtype, limit
        self._files = dict(_files(folder))
        self._layers = {
            name: layer for name, layer in parts.transformer.named_modules() if name and "." in name
        }
        self._loaded: OrderedDict[str, Adapter] = OrderedDict()
        self._hooked: set[str] = set()
        self._on: Adapter = {}
        self._scale = 1.0
        for name in self._files:
            self._read(name)
        log.info("adapters found", names=",".join(self.names) or "none", folder=folder)

    @property
    def names(self) -> tuple[str, ...]:
        """Those that requests can name."""
        return tuple(sorted(self._files))

    @property
    def nbytes(self) -> int:
        """Memory of those that are loaded."""
        return sum(a.nbytes for adapter in self._loaded.values() for a in adapter.values())

    @property
    def digest(self) -> str:
        """The same for executors with the same adapters."""
        digest = hashlib.sha256()
        for name in self.names:
            file = self._files[name]
            size = file.stat().st_size
            digest.update(f"{name} {size}".encode())
            with file.open("rb") as data:
                for start in (0, size // 2, max(0, size - SAMPLE_BYTES)):
                    data.seek(start)
                    digest.update(data.read(SAMPLE_BYTES))
        return digest.hexdigest()[:16]

    def check(self, name: str) -> None:
        """ValueError where there is no such adapter."""
        if name and name not in self._files:
            raise ValueError(f"lora: {name!r} is not known; there are {', '.join(self.names) or 'none'}")

    def use(self, name: str, scale: float) -> None:
        """Add `scale` times this adapter to the layers from now on; an empty name: none.

        Raises:
            ValueError: there is no such adapter.
        """
        self.check(name)
        self._scale = scale
        self._on = self._get(name) if name and scale else {}

    def _get(self, name: str) -> Adapter:
        if name in self._loaded:
            self._loaded.move_to_end(name)
            return self._loaded[name]
        adapter = {
            layer: Addition(
                a.down.to(self._device, self._dtype), a.up.to(self._device, self._dtype), a.factor
            )
            for layer, a in self._read(name).items()
        }
        self._loaded[name] = adapter
        while self.nbytes > self._limit and len(self._loaded) > 1:
            self._loaded.popitem(last=False)
        for layer in adapter.keys() - self._hooked:
            self._hooked.add(layer)
            self._layers[layer].register_forward_hook(self._hook(layer))
        return adapter

    def _hook(self, layer: str) -> Any:
        def add(_module: torch.nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> Any:
            addition = self._on.get(layer)
            if addition is None:
                return None
            low = torch.nn.functional.linear(inputs[0].to(self._dtype), addition.down)
            return output + torch.nn.functional.linear(low, addition.up) * (addition.factor * self._scale)

        return add

    def _read(self, name: str) -> Adapter:
        """An adapter from its file, in the format of diffusers, PEFT or whatever diffusers converts."""
        file = self._files[name]
        try:
            tensors, alphas, metadata = self._tensors(file)
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            raise AdapterError(f"--lora-dir: cannot read {file}: {error}") from error
        pairs: dict[str, dict[str, torch.Tensor]] = {}
        for key, tensor in tensors.items():
            match = _KEY.fullmatch(key)
            if match is None:
                raise AdapterError(
                    f"--lora-dir: {file} has {key!r}; only additions to the transformer are supported"
                )
            pairs.setdefault(match["layer"], {})[match["side"]] = tensor
        if not pairs:
            raise AdapterError(f"--lora-dir: {file} has no low-rank additions")
        return {layer: self._addition(file, layer, sides, alphas, metadata) for layer, sides in pairs.items()}

    def _tensors(self, file: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any], dict[str, Any]]:
        """Tensors by diffusers' names, and what tells how they are scaled."""
        read = type(self._parts).lora_state_dict
        with_alphas = "return_alphas" in inspect.signature(read).parameters
        more = {"return_alphas": True} if with_alphas else {}
        answer = read(
            str(file.parent), weight_name=file.name, local_files_only=True, return_lora_metadata=True, **more
        )
        tensors, alphas, metadata = answer if with_alphas else (answer[0], None, answer[1])
        return tensors, alphas or {}, metadata or {}

    def _addition(
        self,
        file: Path,
        layer: str,
        sides: dict[str, torch.Tensor],
        alphas: dict[str, Any],
        metadata: dict[str, Any],
    ) -> Addition:
        linear = self._layers.get(layer)
        if not isinstance(linear, torch.nn.Linear):
            what = "is not linear" if linear is not None else "is not in this model"
            raise AdapterError(f"--lora-dir: {file} changes {layer}, which {what}")
        if sides.keys() != {"A", "B"}:
            raise AdapterError(f"--lora-dir: {file} has only one side of {layer}")
        down, up = sides["A"], sides["B"]
        rank = down.shape[0]
        if down.shape != (rank, linear.in_features) or up.shape != (linear.out_features, rank):
            raise AdapterError(
                f"--lora-dir: {file} does not fit: {layer} takes {linear.in_features} and gives "
                f"{linear.out_features} values, the adapter {down.shape[-1]} and {up.shape[0]}"
            )
        alpha = alphas.get(f"transformer.{layer}.alpha", rank)
        if "transformer.lora_alpha" in metadata:
            patterns = metadata.get("transformer.alpha_pattern") or {}
            matching = (value for key, value in patterns.items() if re.fullmatch(rf"(.*\.)?({key})", layer))
            alpha = next(matching, metadata["transformer.lora_alpha"])
        return Addition(down, up, float(alpha) / rank)


def _files(folder: Path) -> Iterator[tuple[str, Path]]:
    """Name and file of each adapter."""
    if not folder.is_dir():
        raise AdapterError(f"--lora-dir: {folder} is no folder")
    for path in sorted(folder.iterdir()):
        found = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
        if path.is_file() and path.suffix != ".safetensors":
            continue
        name = path.name if path.is_dir() else path.stem
        if len(found) != 1:
            raise AdapterError(f"--lora-dir: {path} has {len(found)} files *.safetensors; expected one")
        if not NAME.fullmatch(name):
            raise AdapterError(
                f"--lora-dir: {path}: a name has 1 to 64 letters, digits, '.', '_' and '-', beginning with "
                "a letter or digit"
            )
        yield name, found[0]
