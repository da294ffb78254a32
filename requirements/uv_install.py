"""Runs `uv pip install` with pip's configuration.

uv does not read that by itself: it would use other indexes, and install other builds of the same
versions. Options are those of `uv pip install`. Where uv has no counterpart of a setting, the exit
code is 1, and nothing is installed.
"""

import ast
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

OPTIONS = {
    "index-url": "--index-url",
    "extra-index-url": "--extra-index-url",
    "find-links": "--find-links",
    "constraint": "--constraints",
    "trusted-host": "--allow-insecure-host",
}
VARIABLES = {
    "cert": "SSL_CERT_FILE",
    "proxy": "ALL_PROXY",
    "timeout": "UV_HTTP_TIMEOUT",
    "default-timeout": "UV_HTTP_TIMEOUT",
}
# They change pip's output, its cache or how it tries, not what is installed.
WITHOUT_EFFECT = {
    *("cache-dir", "compile", "config-file", "disable-pip-version-check", "log", "no-color"),
    *("no-compile", "no-input", "no-python-version-warning", "no-warn-conflicts"),
    *("no-warn-script-location", "progress-bar", "quiet", "require-virtualenv", "retries"),
    *("root-user-action", "verbose"),
}
SECTIONS = ("global", "install", ":env:")  # a later one's values replace those of the earlier


def settings() -> dict[str, str]:
    """pip's configuration for `pip install`."""
    words = [sys.executable, "-m", "pip", "--disable-pip-version-check", "config", "list"]
    listed = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True).stdout
    values: dict[str, dict[str, str]] = {section: {} for section in SECTIONS}
    for line in listed.splitlines():
        name, _, value = line.partition("=")
        section, _, key = name.rpartition(".")
        if section in values:
            values[section][key] = ast.literal_eval(value)
    return {key: value for section in SECTIONS for key, value in values[section].items()}


def options(values: dict[str, str]) -> Iterator[str]:
    """Options of `uv pip install` that stand for pip's configuration."""
    for key, value in values.items():
        if key in OPTIONS:
            for word in value.split():
                yield from (OPTIONS[key], word)
        elif key == "no-index":
            if value.lower() in ("1", "true", "yes", "on"):
                yield "--no-index"
        elif key == "no-cache-dir":  # pip has no cache then, whatever the value
            yield "--no-cache"
        elif key not in VARIABLES and key not in WITHOUT_EFFECT:
            sys.exit(f"uv has no counterpart of pip's setting {key}")


def main() -> NoReturn:
    values = settings()
    uv = shutil.which("uv") or str(Path(sys.prefix, "bin", "uv"))
    words = [uv, "pip", "install", "--python", sys.executable, *options(values), *sys.argv[1:]]
    # as pip does: the newest version of all indexes, not of the first one that has the package
    words += ["--index-strategy", "unsafe-best-match"]
    variables = {name: values[key] for key, name in VARIABLES.items() if key in values}
    os.execve(uv, words, os.environ | variables)


if __name__ == "__main__":
    main()
