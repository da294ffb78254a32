"""Checks the network interfaces that gloo and NCCL are to use."""

import os
import socket
from collections.abc import Mapping

from errors import LaunchError

GLOO, NCCL = "GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"


def check_interfaces(on_gpu: bool, environment: Mapping[str, str] = os.environ) -> None:
    """Refuse a variable that names no interface of this machine. gloo and NCCL would fail later,
    after the rendezvous, with a message that names no variable.

    Raises: LaunchError naming the machine's interfaces.
    """
    import psutil

    internet = (socket.AF_INET, socket.AF_INET6)
    available = [
        name
        for name, addresses in psutil.net_if_addrs().items()
        if any(address.family in internet for address in addresses)
    ]
    gloo = environment.get(GLOO)
    if gloo and not set(gloo.split(",")) & set(available):
        raise _unknown_interface(GLOO, gloo, available)
    nccl = environment.get(NCCL)
    if on_gpu and nccl and not any(_nccl_matches(nccl, name) for name in available):
        raise _unknown_interface(NCCL, nccl, available)


def _nccl_matches(pattern: str, name: str) -> bool:
    """NCCL's rules: prefixes of names, after `=` whole names; after `^` those not to use."""
    rest = pattern.removeprefix("^")
    words = rest.removeprefix("=").split(",")
    exact = rest.startswith("=")
    matches = any(name == word if exact else name.startswith(word) for word in words)
    return matches != pattern.startswith("^")


def _unknown_interface(variable: str, value: str, available: list[str]) -> LaunchError:
    return LaunchError(
        f"{variable}={value}: this machine has no such network interface with an address; it has "
        f"{', '.join(available) or 'none'} (name one of them, or unset the variable)"
    )
