"""Build the results of a submission tree from the folders that run_mlperf has written."""

import json
import shutil
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmark import MODEL, REVISION
from errors import InputFileError, OutputError, SubmissionError, UsageError
from grading.evaluate import REPORT_ENDING
from mlperf.report import DETAIL_LOG
from mlperf.run import RECORD, RESULTS
from mlperf.submission.check import check_result
from mlperf.submission.findings import PLACEHOLDER, RELAXABLE, Finding, counted
from mlperf.submission.rules.accuracy import LOG_SIZE
from mlperf.submission.rules.runs import one_system
from mlperf.submission.tree import (
    ACCURACY_LOG,
    ACCURACY_TEXT,
    BENCHMARK,
    MEASUREMENTS,
    README,
    RELAXATIONS,
    RUNS,
    SCENARIOS,
    SUMMARY_LOG,
    USER_CONF,
    VERIFIED,
    Result,
    System,
    load_json,
    read_json,
)
from ref_dsinfer.files import sha256, write_json, write_text

_PART = LOG_SIZE // 2 - 1024  # bytes of the accuracy log's beginning and of its end that stay
_CUT = b"\n\n...\n\n"
_LOGS = (DETAIL_LOG, SUMMARY_LOG)


@dataclass(frozen=True)
class Source:
    """The folders of a mode's runs."""

    mode: str
    performance: Path
    accuracy: Path
    compliance: Path | None  # TEST06

    @property
    def folder(self) -> Path:
        """The --output-dir of the runs, and the mode."""
        return self.performance.parent


def find(
    folders: Sequence[Path], closed: bool, wanted: Collection[str] = tuple(SCENARIOS)
) -> list[Source]:
    """The runs of the `wanted` modes in folders that run_mlperf had as --output-dir, in the order
    of the modes.

    Raises: InputFileError naming a run that is missing; UsageError if two folders have a mode.
    """
    sources: dict[str, Source] = {}
    for folder in folders:
        modes = [mode for mode in wanted if (folder / mode).is_dir()]
        if not modes:
            raise InputFileError(
                f"{folder}: no results in it: expected a folder {' or '.join(wanted)}, as"
                " run_mlperf writes into its --output-dir"
            )
        for mode in modes:
            if mode in sources:
                raise UsageError(
                    f"results of {mode} are in both {sources[mode].folder.parent} and {folder}: a"
                    " system has one result for each scenario"
                )
            sources[mode] = _source(folder / mode, mode, closed)
    return [sources[mode] for mode in SCENARIOS if mode in sources]


def build(system: System, sources: Sequence[Source], user_conf: Path, demo: bool) -> list[Path]:
    """Write the results of a system. Returns their folders.

    Nothing is written unless all of them keep the rules. `demo`: what a data set of another size
    forces may be broken; the tree then names it.

    Raises: SubmissionError naming the folder and the reason of each result that breaks a rule;
    InputFileError, OutputError.
    """
    from data.results import check_writable

    check_writable(system.root)
    draft = replace(system, root=system.root / f".{system.name}.partial")
    shutil.rmtree(draft.root, ignore_errors=True)
    try:
        for source in sources:
            _write(draft.result(source.mode), system.result(source.mode), source, user_conf)
        reasons = []
        for source in sources:
            reasons += _refusals(draft.result(source.mode), source, demo)
        folders = {draft.result(source.mode).folder: source.folder for source in sources}
        reasons += [f"{folders[fault.path.parent]}: {fault.message}" for fault in one_system(draft)]
        if reasons:
            print("\n".join(reasons))
            raise SubmissionError(
                f"nothing was written, as these results break rules of the {system.division}"
                f" division ({counted(len(reasons), 'reason')}); the first: {reasons[0]}"
            )
        for source in sources:
            _replace(draft.result(source.mode).folder, system.result(source.mode).folder)
    finally:
        shutil.rmtree(draft.root, ignore_errors=True)
    return [system.result(source.mode).folder for source in sources]


def adopt(system: System, fields: dict[str, Any]) -> None:
    """Write a system's description into the tree, for its division and organisation.

    Raises: OutputError.
    """
    own = {"division": system.division, "submitter": system.organisation}
    system.description.parent.mkdir(parents=True, exist_ok=True)
    write_json(system.description, fields | own)


def cut(path: Path, target: Path) -> None:
    """Copy an accuracy log, its middle left out if it is longer than the rules allow."""
    size = path.stat().st_size
    if size <= LOG_SIZE:
        shutil.copyfile(path, target)
        return
    with path.open("rb") as file:
        start = file.read(_PART)
        file.seek(size - _PART)
        target.write_bytes(start + _CUT + file.read())


def _source(folder: Path, mode: str, closed: bool) -> Source:
    """Raises: InputFileError if a run is missing or did not finish."""
    for test, options in (("performance", ""), ("accuracy", " --accuracy")):
        if not (folder / test / RECORD).is_file():
            raise InputFileError(
                f"{folder / test}: no finished {test} run ({RECORD} is missing): run"
                f" run_mlperf.py --mode {mode}{options} first"
            )
    compliance = folder / "compliance" / "TEST06"
    if closed and not (compliance / VERIFIED).is_file():
        raise InputFileError(
            f"{compliance}: no finished compliance run ({VERIFIED} is missing), which the closed"
            f" division needs: run run_mlperf.py --mode {mode} --compliance first"
        )
    return Source(
        *(mode, folder / "performance", folder / "accuracy"),
        compliance if (compliance / VERIFIED).is_file() else None,
    )


def _write(draft: Result, target: Result, source: Source, user_conf: Path) -> None:
    """Write a result's files. Raises: InputFileError, OutputError."""
    performance, accuracy = draft.performance_log.parent, draft.accuracy_folder
    for folder in (performance, accuracy):
        folder.mkdir(parents=True)
    for name in _LOGS:
        _copy(source.performance / name, performance / name)
        _copy(source.accuracy / name, accuracy / name)
    if not (source.accuracy / ACCURACY_LOG).is_file():
        raise InputFileError(f"{source.accuracy / ACCURACY_LOG}: missing")
    cut(source.accuracy / ACCURACY_LOG, accuracy / ACCURACY_LOG)
    _write_score(source.accuracy, accuracy / ACCURACY_TEXT)
    if source.compliance:
        (draft.test06 / "accuracy").mkdir(parents=True)
        _copy(source.compliance / VERIFIED, draft.test06 / VERIFIED)
        log_name = Path("accuracy", ACCURACY_LOG)
        _copy(source.compliance / log_name, draft.test06 / log_name)
        for path in (Path("performance", "run_1", name) for name in _LOGS):
            if (source.compliance / path).is_file():
                (draft.test06 / path).parent.mkdir(parents=True, exist_ok=True)
                _copy(source.compliance / path, draft.test06 / path)
    _copy(user_conf, draft.folder / USER_CONF)
    runs = _runs(source)
    write_json(draft.folder / RUNS, runs)
    edited = read_json(target.folder / MEASUREMENTS)
    write_json(draft.folder / MEASUREMENTS, edited or measurements(runs, source))
    write_text(draft.folder / README, readme(draft, runs))


def _write_score(folder: Path, target: Path) -> None:
    """Copy accuracy.txt, once its hash is that of the log beside it.

    Raises: SubmissionError if it was written for another log.
    """
    path = folder / ACCURACY_TEXT
    _copy(path, target)
    digest = sha256(folder / ACCURACY_LOG)
    lines = target.read_text(encoding="utf-8", errors="replace").splitlines()
    if f"hash={digest}" not in lines:
        raise SubmissionError(
            f"{path}: no line hash={digest}, the SHA-256 of {ACCURACY_LOG} beside it: grade the"
            f" log again (eval_accuracy.py --input-file {folder / ACCURACY_LOG})"
        )


def _runs(source: Source) -> dict[str, Any]:
    """The records of a mode's runs, and how many rows of each task were graded."""
    runs: dict[str, Any] = {
        "performance": load_json(source.performance / RECORD),
        "accuracy": load_json(source.accuracy / RECORD),
    }
    if source.compliance and (source.compliance / RECORD).is_file():
        runs["compliance"] = load_json(source.compliance / RECORD)
    report = load_json(source.accuracy / f"{RESULTS}{REPORT_ENDING}")
    tasks = report.get("tasks")
    if not isinstance(tasks, dict):
        raise InputFileError(f"{source.accuracy / f'{RESULTS}{REPORT_ENDING}'}: no field tasks")
    runs["task_rows"] = {task: one["rows"] for task, one in tasks.items() if task != "all"}
    return runs


def measurements(runs: dict[str, Any], source: Source) -> dict[str, str]:
    """measurements.json, from the engine's configuration and the model's."""
    engine = {**_object(runs["performance"].get("engine")), **_effective(source)}
    model = str(engine.get("model"))
    config = read_json(Path(model, "config.json")) or {}
    loaded = _object(config.get("quantization_config")).get("quant_method")
    loaded = loaded or config.get("torch_dtype") or config.get("dtype")
    changed = engine.get("quantization")
    changed = None if changed == loaded else changed
    is_r1 = REVISION in model or Path(model).name == Path(MODEL).name
    return {
        "input_data_types": "int32 token ids",
        "retraining": "No",
        "starting_weights_filename": f"{MODEL}, revision {REVISION}" if is_r1 else Path(model).name,
        "weight_data_types": str(changed or loaded or f"{PLACEHOLDER}: such as fp8 or bf16"),
        "weight_transformations": f"quantized to {changed}" if changed else "none",
    }


def _effective(source: Source) -> dict[str, Any]:
    """What the engine says of quantization, in engine.json, whoever chose it."""
    content = read_json(source.performance / "engine.json") or {}
    arguments = {**_object(content.get("arguments")), **_object(content.get("server"))}
    value = arguments.get("quantization")
    return {"quantization": value} if value else {}


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def readme(result: Result, runs: dict[str, Any]) -> str:
    """How a result was made, and what is to be known about it."""
    lines = [f"# {BENCHMARK}, {result.scenario}, on {result.system.name}", ""]
    for test in ("performance", "accuracy", "compliance"):
        if run := runs.get(test):
            lines += [f"{test.capitalize()} run:", "", "```sh", str(run.get("command")), "```", ""]
    performance = runs["performance"]
    lines += [f"Engine: {performance.get('backend')}. Versions:", ""]
    versions = performance.get("versions") or {}
    lines += [f"- {name} {version}" for name, version in versions.items()]
    lines += ["", "Figures:", ""]
    for test in ("performance", "accuracy"):
        figures = runs[test].get("figures") or {}
        lines += [f"- {test}: {name} {value}" for name, value in figures.items()]
    reasons = [
        f"- {test}: {reason}"
        for test in ("performance", "accuracy")
        for reason in runs[test].get("not_submittable_because") or []
    ]
    if reasons:
        lines += ["", "What a closed result would not have:", "", *reasons]
    lines += ["", f"Engine's settings: `{json.dumps(performance.get('engine'), sort_keys=True)}`"]
    return "\n".join(lines) + "\n"


def _refusals(draft: Result, source: Source, demo: bool) -> list[str]:
    """The reasons against a result; with `demo`, the relaxable ones go into the tree instead."""
    errors = [finding for finding in check_result(draft) if finding.level == "error"]
    errors = [finding for finding in errors if finding.rule != "placeholder"]
    relaxed: dict[str, list[str]] = {}
    for finding in errors:
        if demo and finding.rule in RELAXABLE:
            relaxed.setdefault(finding.rule, []).append(finding.message)
    if relaxed:
        _name_relaxations(draft, {rule: "; ".join(texts) for rule, texts in relaxed.items()})
    return [
        f"{source.folder}: {_from_draft(finding, draft)}"
        for finding in errors
        if finding.rule not in relaxed
    ]


def _name_relaxations(draft: Result, relaxed: dict[str, str]) -> None:
    write_json(draft.folder / RELAXATIONS, relaxed)
    path = draft.folder / README
    lines = ["", "Rules relaxed for a data set that is not the benchmark's:", ""]
    lines += [f"- {rule}: {reason}" for rule, reason in relaxed.items()]
    write_text(path, path.read_text(encoding="utf-8") + "\n".join(lines) + "\n")


def _from_draft(finding: Finding, draft: Result) -> str:
    """A finding, with its file as in the result's folder."""
    file = str(Path(draft.system.root, finding.file).relative_to(draft.folder))
    return str(replace(finding, file=file)).removeprefix("error: ")


def _replace(draft: Path, target: Path) -> None:
    """Raises: OutputError."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(target, ignore_errors=True)
        draft.rename(target)
    except OSError as error:
        raise OutputError(f"{target}: can't be written: {error.strerror}") from error


def _copy(path: Path, target: Path) -> None:
    """Raises: InputFileError if the file can't be read."""
    try:
        shutil.copyfile(path, target)
    except OSError as error:
        raise InputFileError(f"{path}: can't be copied: {error.strerror}") from error
