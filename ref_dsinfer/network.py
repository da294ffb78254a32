"""The network interfaces that ranks are told to use."""

import os
import socket
from collections.abc import Mapping

from errors import LaunchError

GLOO, NCCL = "GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"


def check_interfaces(on_gpu: bool, environment: Mapping[str, str] = os.environ) -> None:
    """Refuse a variable that names no interface of this machine: gloo and NCCL say so in words of
    their own, after all ranks have met. Errors: LaunchError naming those that there are."""
    import psutil

    internet = (socket.AF_INET, socket.AF_INET6)
    here = [
        name
        for name, addresses in psutil.net_if_addrs().items()
        if any(address.family in internet for address in addresses)
    ]
    asked = environment.get(GLOO)
    if asked and not set(asked.split(",")) & set(here):
        raise _nowhere(GLOO, asked, here)
    asked = environment.get(NCCL)
    if on_gpu and asked and not any(_nccl_takes(asked, name) for name in here):
        raise _nowhere(NCCL, asked, here)


def _nccl_takes(asked: str, name: str) -> bool:
    """NCCL's rules: beginnings of names, or after `=` whole names; after `^` those not to use."""
    rest = asked.removeprefix("^")
    words = rest.removeprefix("=").split(",")
    whole = rest.startswith("=")
    found = any(name == word if whole else name.startswith(word) for word in words)
    return found != asked.startswith("^")


def _nowhere(variable: str, value: str, here: list[str]) -> LaunchError:
    return LaunchError(
        f"{variable}={value}: this machine has no such network interface with an address; it has "
        f"{', '.join(here) or 'none'} (name one of them, or unset the variable)"
    )
