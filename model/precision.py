"""In which precision training computes."""

import torch


def mixed_precision(device: torch.device) -> torch.autocast:
    """A context in bfloat16 where the device computes in it.

    A CPU that does not emulates it, ten times slower than it computes in float32.
    """
    able = torch.cpu.get_capabilities()
    native = device.type != "cpu" or any(able.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    return torch.autocast(device.type, torch.bfloat16, enabled=native)
