"""The command `python -m data.fetch`."""

import argparse
import logging
import os
from collections.abc import Iterator
from pathlib import Path

from backends.options import find_model, positive_int
from benchmark import MODEL
from data.fetch import hub, rows, sources, store
from data.fetch.download import Patience
from data.identity import identify
from data.lock import locked
from data.problems import PROBLEM_FILES, build
from errors import FetchError, ModelError, OutputError, UserError

log = logging.getLogger(__name__)

LOCK = ".fetch.lock"
FILES = {"dataset": sources.DATA_SET, "calibration": sources.CALIBRATION}  # of rows


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of data.fetch."""
    parser.add_argument(
        "what",
        nargs="*",
        metavar="WHAT",
        help=f"{', '.join(sources.SOURCES)} or all (default: {' '.join(sources.DEFAULT)})",
    )
    parser.add_argument("--list", action="store_true", help="show what there is, and what is here")
    parser.add_argument(
        "--verify",
        action="store_true",
        help="compare what is here, or WHAT, with its checksums, without a network",
    )
    parser.add_argument(
        "--mirror",
        default=os.environ.get("MLPERF_MIRROR"),
        metavar="URL|DIR",
        help="fetch from a copy of the store and the hub, or from a folder of an earlier fetch"
        " (default: $MLPERF_MIRROR)",
    )
    parser.add_argument(
        "--output-dir",
        type=Path,
        default=Path("data"),
        metavar="DIR",
        help="for everything but the model (default: data)",
    )
    parser.add_argument(
        "--release",
        choices=tuple(sources.RELEASES),
        default=sources.RELEASE,
        help=f"of LiveCodeBench's problems (default: {sources.RELEASE}, the benchmark's)",
    )
    parser.add_argument(
        "--model",
        default=os.environ.get("MLPERF_MODEL", MODEL),
        metavar="DIR|ID",
        help="that --verify compares: a directory, or a name in the Hugging Face cache (default:"
        f" $MLPERF_MODEL, else {MODEL})",
    )
    parser.add_argument(
        "--jobs", type=positive_int, default=8, metavar="N", help="files at once (default: 8)"
    )


def main() -> None:
    """Run the command. Raises: UserError."""
    parser = argparse.ArgumentParser(
        prog="python -m data.fetch",
        description="Fetch what the benchmark needs, or verify it. Proxies and tokens are those of"
        " the environment: HTTPS_PROXY, HF_TOKEN, HF_HOME, HF_ENDPOINT.",
    )
    add_options(parser)
    args = parser.parse_args()
    wanted = _wanted(parser, args.what)
    if args.list:
        _show(args)
    elif args.verify:
        _verify(args, wanted)
    else:
        _fetch(args, wanted)


def _wanted(parser: argparse.ArgumentParser, what: list[str]) -> list[str]:
    """What is asked for, each once, in the order of the table."""
    for name in what:
        if name not in (*sources.SOURCES, "all"):
            parser.error(f"there is no {name}: choose from {', '.join(sources.SOURCES)}, all")
    chosen = what or sources.DEFAULT
    return [name for name in sources.SOURCES if name in chosen or "all" in chosen]


def _fetch(args: argparse.Namespace, wanted: list[str]) -> None:
    """Raises: UserError."""
    root, folder = store.mirror_root(args.mirror), args.output_dir
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder}: can't be made: {error.strerror}") from error
    with locked(folder / LOCK):
        if names := [FILES[name] for name in wanted if name in FILES]:
            for path in rows.fetch(names, folder, root, Patience(), args.jobs):
                log.info("%s is there", path)
        if "problems" in wanted:
            snapshot = _repository(args, sources.problems(args.release))
            if "problems" in args.what or not any(
                (folder / name).exists() for name in PROBLEM_FILES
            ):
                files = [snapshot / name for name in sources.RELEASES[args.release]]
                count = build(files, folder / PROBLEM_FILES[0])
                log.info("%s has the tests of %d problems", folder / PROBLEM_FILES[0], count)
        if "model" in wanted:
            snapshot = _repository(args, sources.model())
            _check_model(snapshot)
    print(f"next: {_next(args)}")


def _repository(args: argparse.Namespace, repository: hub.Repository) -> Path:
    """Get a repository into the cache. Raises: FetchError, OutputError."""
    if args.mirror and Path(args.mirror).is_dir():
        snapshot = hub.copy(repository, Path(args.mirror) / "hub", Patience(), args.jobs)
    else:
        snapshot = hub.fetch(repository, Patience(), args.jobs, args.mirror)
    log.info("%s is there, in %s", repository.name, snapshot)
    return snapshot


def _check_model(folder: Path) -> None:
    """Raises: ModelError if a directory holds another model than the benchmark's."""
    identity = identify(folder)
    for objection in identity.objections():
        raise ModelError(f"{folder}: {objection}")
    log.info("%s: this is %s", folder, identity)


def _verify(args: argparse.Namespace, wanted: list[str]) -> None:
    """Print a line for what is right; without names, of all that is here.

    Raises: the first error, all further ones are logged.
    """
    if not args.what:
        wanted = [name for name in sources.SOURCES if _is_here(args, name)]
        if not wanted:
            raise FetchError("there is nothing to verify here: `python -m data.fetch` fetches")
    results: list[UserError | str] = []
    if names := [FILES[name] for name in wanted if name in FILES]:
        results += rows.verify(names, args.output_dir)
    if "problems" in wanted:
        results += _verify_repository(
            sources.problems(args.release).snapshot(hub.cache_folder()),
            args.jobs,
            sources.RELEASES[args.release],
        )
    if "model" in wanted:
        results += _verify_model(args)
    errors = [one for one in results if isinstance(one, UserError)]
    for line in (one for one in results if isinstance(one, str)):
        print(line)
    for error in errors[1:]:
        log.error("%s", error)
    if errors:
        raise errors[0]


def _verify_model(args: argparse.Namespace) -> Iterator[UserError | str]:
    try:
        folder = Path(find_model(args.model))
        _check_model(folder)
    except ModelError as error:
        yield error
        return
    yield from _verify_repository(folder, args.jobs)


def _verify_repository(
    folder: Path, jobs: int, names: tuple[str, ...] = ()
) -> Iterator[UserError | str]:
    """Compare a snapshot's files with their checksums."""
    if not folder.is_dir():
        yield FetchError(f"{folder}: not there")
        return
    wrong = list(hub.check(folder, names, jobs))
    yield from wrong
    if not wrong:
        yield f"{folder} has the published files"


def _is_here(args: argparse.Namespace, name: str) -> bool:
    """Whether something is there, by its files' names alone."""
    if name in FILES:
        return bool((args.output_dir / FILES[name]).is_file())
    repository = sources.model() if name == "model" else sources.problems(args.release)
    folder = repository.snapshot(hub.cache_folder())
    files = [folder / file for file in repository.files or ("config.json",)]
    return all(file.is_file() for file in files)


def _show(args: argparse.Namespace) -> None:
    for name, source in sources.SOURCES.items():
        here = "here" if _is_here(args, name) else "not here"
        print(f"{name:<12} {here:<9} {source.size:>8}  {source.about} (licence: {source.licence})")


def _next(args: argparse.Namespace) -> str:
    """The command that comes next."""
    for name in ("dataset", "problems", "model"):
        if not _is_here(args, name):
            return f"python -m data.fetch {name}"
    return "python run_mlperf.py --mode offline --accuracy"
