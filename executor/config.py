"""How one executor is set up."""

import ipaddress
import os
import re
import socket
from dataclasses import dataclass
from pathlib import Path

from executor.roles import EVERY_ROLE
from tetriserve.transport import check_listen, host_port

# Below this tiles are mostly overlap.
SMALLEST_TILE = 128
DTYPES = ("float32", "bfloat16")
# Attention kernels; which of them work depends on the device and on what is installed.
ATTENTIONS = ("sdpa", "math", "cudnn", "efficient", "flash", "flash3", "flash4")
# Of torch.compile.
COMPILE_MODES = ("default", "reduce-overhead", "max-autotune")


@dataclass(frozen=True, slots=True)
class Config:
    """Settings of one executor; `command.py` says what each is for.

    Raises ValueError, naming the option, where one cannot be right whatever the machine is like.
    """

    scheduler: str
    device: str
    dtype: str
    model: Path | None
    listen: str
    advertise: str
    node: str
    island: str
    threads: int
    sizes: tuple[tuple[int, int], ...]
    batches: tuple[int, ...]
    cache: Path
    grace_s: float
    group_timeout_s: float = 30.0
    roles: frozenset[str] = EVERY_ROLE
    text_cache: int = 256 << 20
    decoding_tile: int = 2048
    step_cache: int = 1
    attention: str = "sdpa"
    lora_dir: Path | None = None
    lora_cache: int = 1 << 30
    compile_mode: str | None = None

    def __post_init__(self) -> None:
        host_port(self.scheduler, "--scheduler")
        host, _ = host_port(self.listen, "--listen", free_port=True)
        if self.advertise == "" and _is_wildcard(host):
            raise ValueError(f"--advertise: say by which address peers reach this host; {host} is no address")
        check_device(self.device)
        if self.dtype not in DTYPES:
            raise ValueError(f"--dtype: expected {' or '.join(DTYPES)}, not {self.dtype!r}")
        if self.attention not in ATTENTIONS:
            raise ValueError(f"--attention: expected one of {', '.join(ATTENTIONS)}, not {self.attention!r}")
        if self.threads < 1:
            raise ValueError(f"--threads: expected 1 or more, not {self.threads}")
        if self.compile_mode is not None and self.compile_mode not in COMPILE_MODES:
            expected = ", ".join(COMPILE_MODES)
            raise ValueError(f"--compile: expected one of {expected}, not {self.compile_mode!r}")
        if self.compile_mode is not None and self.lora_dir is not None:
            raise ValueError("--compile: not together with --lora-dir; adapters change layers step by step")
        check_model(self.model)
        if self.decoding_tile and self.decoding_tile < SMALLEST_TILE:
            raise ValueError(
                f"--vae-tile: expected 0 (never) or at least {SMALLEST_TILE} pixels, not {self.decoding_tile}"
            )

    @property
    def host(self) -> str:
        """The address of this host for its peers."""
        return self.advertise or host_port(self.listen, "--listen", free_port=True)[0]


def check_addresses(config: Config) -> None:
    """ValueError, naming the option, where this host cannot listen at an address of its configuration."""
    host, port = host_port(config.listen, "--listen", free_port=True)
    for option, address, number in (("--listen", host, port), ("--advertise", config.advertise, 0)):
        try:
            if address:
                check_listen(address, number)
        except OSError as error:
            why = error.strerror or error
            raise ValueError(f"{option}: cannot listen at {address}, port {number}: {why}") from None


def check_device(device: str) -> None:
    """ValueError where it can be no device."""
    if not re.fullmatch(r"cpu|cuda(:\d+)?", device):
        raise ValueError(f"--device: expected cpu or cuda:N, not {device!r}")


def check_model(folder: Path | None) -> None:
    """ValueError where it is no checkpoint folder; None is the built-in model."""
    if folder is not None and not (folder / "model_index.json").is_file():
        what = "has no model_index.json" if folder.is_dir() else "is no folder"
        raise ValueError(f"--model: {folder} {what}; expected a checkpoint folder of diffusers")


def cache_folder() -> Path:
    """Where executors keep what takes long to make: under the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "tetriserve"


def node_name() -> str:
    """The name of this host."""
    return socket.gethostname()


def _is_wildcard(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False
