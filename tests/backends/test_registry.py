import pytest

from backends import registry
from backends.echo import EchoEngine
from backends.types import BackendSpec, EngineConfig
from errors import UsageError


def test_a_known_engine_is_found_and_loaded() -> None:
    spec = registry.lookup("echo")
    assert spec.name == "echo"
    assert isinstance(registry.load(spec, EngineConfig("none")), EchoEngine)


def test_an_unknown_engine_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UsageError) as caught:
        registry.lookup("tensorflow")
    assert "'tensorflow'" in str(caught.value)
    assert all(name in str(caught.value) for name in registry.names())


def test_test_aids_are_not_offered() -> None:
    assert "pytorch" in registry.names()
    assert "echo" not in registry.names()


def test_a_missing_package_is_left_to_the_entry_script() -> None:
    spec = BackendSpec("other", "no_such_package.engine:Engine", ("offline",), torchrun=False)
    with pytest.raises(ModuleNotFoundError, match="no_such_package"):
        registry.load(spec, EngineConfig("none"))
