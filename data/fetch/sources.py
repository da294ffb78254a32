"""What can be fetched, and where it is published."""

from dataclasses import dataclass

from benchmark import MODEL, REVISION
from data.fetch.hub import Repository

ROWS_NAME = "deepseek-r1-datasets-fp8-eval"  # of the store's list that has both files of rows
DATA_SET = "mlperf_deepseek_r1_dataset_4388_fp8_eval.pkl"
CALIBRATION = "mlperf_deepseek_r1_calibration_dataset_500_fp8_eval.pkl"
PROBLEMS = "livecodebench/code_generation_lite"
PROBLEMS_REVISION = "0fe84c3912ea0c4d4a78037083943e8f0c4dd505"
# Each release has the files of those before it, and one more.
RELEASES = {
    f"release_v{last}": tuple(f"test{n if n > 1 else ''}.jsonl" for n in range(1, last + 1))
    for last in range(1, 7)
}
RELEASE = "release_v1"  # the benchmark's


@dataclass(frozen=True)
class Source:
    """Something that can be fetched."""

    about: str
    size: str  # about
    licence: str


SOURCES = {
    "dataset": Source(
        "the benchmark's 4388 rows", "139 MiB", "its sources': CC0, MIT, CC BY 4.0, CC"
    ),
    "calibration": Source("500 rows to calibrate quantization with", "16 MiB", "as the data set's"),
    "problems": Source("LiveCodeBench's problems and tests, for grading", "1.2 GiB", "CC"),
    "model": Source(f"{MODEL} at revision {REVISION}", "641 GiB", "MIT"),
}
DEFAULT = ("dataset", "problems")


def problems(release: str) -> Repository:
    """LiveCodeBench's repository, with the files of a release."""
    return Repository(PROBLEMS, PROBLEMS_REVISION, "dataset", RELEASES[release])


def model() -> Repository:
    """The benchmark's model."""
    return Repository(MODEL, REVISION)
