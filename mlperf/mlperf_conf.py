"""An mlperf.conf of the user's own, in place of LoadGen's settings, which are built in."""

import os
from pathlib import Path
from typing import Any

from errors import LoadGenError
from mlperf import user_conf

# What FromConfig reads: LoadGen's own settings, or an mlperf.conf in a file. Of a file LoadGen
# ignores the seeds.
_BUILT_IN, _FILE = 0, 2


def apply(path: Path, model: str, scenario: str, settings: Any) -> None:
    """Change TestSettings as the file says for a model and scenario, by LoadGen's names.

    Raises: LoadGenError naming the first line that is not a setting.
    """
    user_conf.read_lines(path)
    if settings.FromConfig(os.fsencode(path), model, scenario, _FILE):
        raise LoadGenError(f"{path}: LoadGen can't read it")


def changes(path: Path, model: str, scenario: str) -> list[str]:
    """What the file changes in LoadGen's own settings, by attribute of TestSettings.

    Raises: LoadGenError.
    """
    import mlperf_loadgen

    own, changed = mlperf_loadgen.TestSettings(), mlperf_loadgen.TestSettings()
    for settings in (own, changed):
        settings.FromConfig("", model, scenario, _BUILT_IN)
    apply(path, model, scenario, changed)
    names = (name for name in dir(own) if not name.startswith("_"))
    values = ((name, getattr(own, name), getattr(changed, name)) for name in names)
    return [
        f"{name} {new}, not {old}" for name, old, new in values if not callable(old) and new != old
    ]
