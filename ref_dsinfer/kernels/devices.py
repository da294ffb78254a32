"""Which GPU the kernels run on, where that matters for what a program can hold."""

import torch


def is_blackwell(device: torch.device) -> bool:
    """Whether a device has Blackwell's tensor cores (sm_100)."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device)[0] == 10
