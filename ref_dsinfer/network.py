"""The network interfaces that gloo and NCCL use: checked, and chosen for gloo."""

import contextlib
import logging
import os
import socket
from collections.abc import Mapping

from errors import LaunchError

log = logging.getLogger(__name__)
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


def address_towards(host: str) -> str | None:
    """This machine's address on the way to another; None where there is no way."""
    with contextlib.suppress(OSError):
        for family, _, _, _, address in socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM):
            with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
                probe.connect(address)  # sends nothing
                return str(probe.getsockname()[0])
    return None


def use_interface(address: str) -> None:
    """Let gloo use the interface of this address, unless its variable names one already.

    By itself it takes the one to which the machine's own name leads: on Debian that is the loopback
    interface, and on a machine with several networks it may be one that leads to no other machine.
    """
    import psutil

    if os.environ.get(GLOO):
        return
    for name, addresses in psutil.net_if_addrs().items():
        if any(one.address == address for one in addresses):
            os.environ[GLOO] = name
            log.info("%s=%s (%s), towards the other machines", GLOO, name, address)


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
