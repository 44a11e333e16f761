"""The device to compute on, which must be there."""

import torch


def find(name: str) -> torch.device:
    """The device of this name (cpu, cuda or cuda:N); a GPU becomes torch's current one.

    Raises:
        ValueError: torch does not see it.
    """
    device = torch.device("cuda:0" if name == "cuda" else name)
    if device.type == "cuda":
        count = torch.cuda.device_count()
        if not torch.cuda.is_available() or (device.index or 0) >= count:
            raise ValueError(f"--device: there is no {device}; torch sees {count} CUDA devices")
        torch.cuda.set_device(device)
    return device
