"""Variables that name network interfaces, compared with those of this machine."""

import pytest

from errors import LaunchError
from ref_dsinfer.network import check_interfaces


@pytest.mark.parametrize("value", ["lo", "nosuch0,lo"])
def test_an_existing_interface_is_accepted(value: str) -> None:
    check_interfaces(True, {"GLOO_SOCKET_IFNAME": value})


@pytest.mark.parametrize("value", ["l", "=lo", "nosuch,lo", "^nosuch", "^=l"])
def test_nccl_s_rules(value: str) -> None:
    check_interfaces(True, {"NCCL_SOCKET_IFNAME": value})


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("GLOO_SOCKET_IFNAME", "nosuch0"),
        ("GLOO_SOCKET_IFNAME", "l"),
        ("NCCL_SOCKET_IFNAME", "nosuch"),
        ("NCCL_SOCKET_IFNAME", "=l"),
        ("NCCL_SOCKET_IFNAME", "^"),
    ],
)
def test_one_that_is_not_is_named_with_those_that_are(variable: str, value: str) -> None:
    with pytest.raises(LaunchError) as raised:
        check_interfaces(True, {variable: value})
    message = str(raised.value)
    assert message.startswith(f"{variable}={value}: this machine has no such network interface")
    assert "lo" in message.partition("it has ")[2]


def test_nccl_s_variable_is_nothing_to_cpus() -> None:
    check_interfaces(False, {"NCCL_SOCKET_IFNAME": "nosuch"})
    check_interfaces(True, {"GLOO_SOCKET_IFNAME": "", "NCCL_SOCKET_IFNAME": ""})
