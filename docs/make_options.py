"""Generate docs/options.md from the scripts' parsers: python docs/make_options.py"""

import argparse
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "options.md"
HEAD = """# Options

Generated from the scripts' parsers by `python docs/make_options.py`; `--help` of each script shows
the same. Some options also accept their names in vLLM and SGLang.

"""


def page() -> str:
    """The content of the page; defaults from this shell's environment are not in it."""
    for name in ("MLPERF_BACKEND", "MLPERF_MIRROR", "MLPERF_MODEL"):
        os.environ.pop(name, None)
    return HEAD + "\n".join(
        line for script, parser in _parsers() for line in _section(script, parser)
    )


def _parsers() -> Iterator[tuple[str, argparse.ArgumentParser]]:
    from data import inference
    from data.fetch import command as fetch
    from data.prepare import __main__ as prepare
    from grading import cli
    from mlperf import run
    from mlperf.compare import __main__ as compare
    from mlperf.submission import __main__ as submission
    from mlperf.sweep import __main__ as sweep

    adders: tuple[tuple[str, Callable[..., None]], ...] = (
        ("run_eval.py`, `run_eval_mpi.py", inference.add_options),
        ("run_mlperf.py`, `run_mlperf_mpi.py", run.add_options),
        ("eval_accuracy.py", cli.add_options),
        ("data.prepare", prepare.add_options),
        ("data.fetch", fetch.add_options),
        ("mlperf.compare", compare.add_options),
        ("mlperf.sweep", sweep.add_options),
    )
    for name, add_options in adders:
        parser = argparse.ArgumentParser(prog=name, add_help=False)
        add_options(parser)
        yield name, parser
    commands = submission.add_options(argparse.ArgumentParser())
    yield from ((f"mlperf.submission {name}", parser) for name, parser in commands.items())


def _section(script: str, parser: argparse.ArgumentParser) -> Iterator[str]:
    yield f"## `{script}`\n"
    if "mpi" in script:
        yield "The `_mpi` script has the options up to *engine with its own processes*.\n"
    for group in parser._action_groups:
        if not group._group_actions:
            continue
        about = f": {group.description}" if group.description else ""
        yield f"*{group.title}*{about}\n"
        yield "| option | meaning |"
        yield "|---|---|"
        shown = (action for action in group._group_actions if action.dest != "help")
        yield from (_row(parser, action) for action in shown)
        yield ""


def _row(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    value = "" if action.nargs == 0 else action.metavar or "|".join(map(str, action.choices or ()))
    if not action.option_strings:
        return f"| `{action.metavar}` | {action.help} |"
    names = ", ".join(f"`{name}`" for name in action.option_strings)
    meaning = parser._get_formatter()._expand_help(action) if action.help else ""
    cells = (f"{names} `{value}`" if value else names, meaning.replace("<", "\\<"))
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    PAGE.write_text(page(), encoding="utf-8")
