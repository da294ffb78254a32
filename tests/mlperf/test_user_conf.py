"""user.conf, compared with how the real LoadGen reads the same bytes."""

from pathlib import Path
from typing import Any

import mlperf_loadgen as lg
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from errors import LoadGenError
from mlperf.settings import MODES, USER_CONF, Mode, models
from mlperf.user_conf import KEYS, LONGEST, REFUSED, UserConf, _known, read_lines

MODELS = models()
KNOWN = _known(MODELS)
QPS = "deepseek-r1.Offline.target_qps"


def of_loadgen(mode: Mode, content: bytes, folder: Path) -> dict[str, Any] | None:
    """Every attribute of TestSettings after LoadGen has read the file; None where it refuses.

    FromConfig as run_mlperf calls it reads the benchmark's own values for the first settings of a
    process only. Type 0 reads these alone and type 2 the file alone, both as often as one likes.
    """
    path = folder / "its.conf"
    path.write_bytes(content)
    made = lg.TestSettings()
    assert made.FromConfig("", mode.model, mode.scenario, 0) == 0
    if made.FromConfig(str(path), mode.model, mode.scenario, 2):
        return None
    return {
        name: getattr(made, name)
        for name in dir(made)
        # not of the two scenarios that the benchmark does not have
        if not name.startswith(("_", "single_stream", "multi_stream")) and name != "FromConfig"
    }


def ours(content: bytes, folder: Path) -> UserConf:
    path = folder / "our.conf"
    path.write_bytes(content)
    return UserConf(path, MODELS)


def refusal(content: bytes, folder: Path) -> str:
    with pytest.raises(LoadGenError) as caught:
        ours(content, folder)
    message = str(caught.value)
    assert message.startswith(f"{folder}/our.conf: ")
    assert message.isprintable()
    return message.removeprefix(f"{folder}/our.conf: ")


# What is a number to somebody, but not to LoadGen and a person alike.
WRONG = [
    *("4O", "4,5", "1_000", "40qps", "40#", "٤", "-1", "+4", "0x10", "0x1p3", "nan", "nan(1)"),
    *("inf", "infinity", "="),
]
EDGES = [
    *("0", "1", "00", "010", "50", "1e-4", "1e6", "6e5", "5.", ".5", "1e300", "1e-300"),
    *("16159082839903944936", "18446744073709551616"),
]

RATES = st.floats(1e-4, 1e6).map(repr)
NUMBERS = st.one_of(
    st.integers(0, 3000).map(str),
    RATES,
    st.sampled_from([*EDGES, *WRONG]),
)
NAMES = st.one_of(
    st.sampled_from(sorted(KNOWN)),
    st.builds(
        "{}.{}.{}".format,
        st.sampled_from([*MODELS, "*", "deepseek", "\ufeffdeepseek-r1"]),
        st.sampled_from(["Offline", "Server", "*", "server", "Interactive", "SingleStream"]),
        st.sampled_from([*(key.name for key in KEYS), *REFUSED, "target_qpss"]),
    ),
)
BLANKS = st.sampled_from([" ", "  ", "\t", "\v", "\f", " \r", "\u00a0", "\u2028", "\0", "", " # "])
ENDS = st.sampled_from(
    ["\n", "\n\n", "\r\n", "\r", " \n# more = 1\n", "\n#a = 1\n", " 7\n", "\n####\n"]
)
# Most files have right lines alone, so that LoadGen gets many to read; the others one that is odd.
RIGHT = st.lists(
    st.builds("{} = {}\n".format, st.sampled_from(sorted(KNOWN)), st.sampled_from("1110"))
    | st.builds("{} = {}\n".format, st.sampled_from([QPS, "*.Server.target_qps"]), RATES),
    max_size=4,
).map("".join)
ODD = st.builds("{}{}={}{}{}".format, NAMES, BLANKS, BLANKS, NUMBERS, ENDS) | st.text(
    "# =\n\r*.14aO\0", max_size=12
)
FILES = RIGHT | st.tuples(RIGHT, ODD, RIGHT).map("".join)


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
@hypothesis_settings(
    max_examples=300,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(text=FILES)
def test_an_accepted_file_is_to_loadgen_what_we_say(mode: Mode, text: str, tmp_path: Path) -> None:
    content = text.encode()
    try:
        values = ours(content, tmp_path).settings(mode.model, mode.scenario)
    except LoadGenError:
        return
    defaults = of_loadgen(mode, b"", tmp_path)
    assert defaults
    assert of_loadgen(mode, content, tmp_path) == defaults | values


# One at least of what a key may be set to, and is not by itself.
OTHERS = ("77", "0", "1")


@pytest.mark.parametrize("key", [key for key in KNOWN if "use_token_latencies" not in key])
def test_no_key_that_is_accepted_is_one_that_loadgen_drops(key: str, tmp_path: Path) -> None:
    model, scenario, _ = key.split(".")
    mode = next(
        mode
        for mode in MODES.values()
        if mode.model.startswith(model.replace("*", "")) and mode.scenario in (scenario, "Server")
    )
    defaults = of_loadgen(mode, b"", tmp_path)
    assert defaults
    for value in OTHERS:
        content = f"{key} = {value}\n".encode()
        try:
            ours(content, tmp_path)
        except LoadGenError:
            continue
        if of_loadgen(mode, content, tmp_path) != defaults:
            return
    pytest.fail(f"{key} changes nothing")


@pytest.mark.parametrize("name", REFUSED)
def test_what_loadgen_knows_too_is_refused_with_its_reason(name: str, tmp_path: Path) -> None:
    message = refusal(f"*.*.{name} = 1\n".encode(), tmp_path)
    assert message == f"line 1: '*.*.{name}': remove this line: {REFUSED[name]}"


def test_the_bundled_file_is_accepted() -> None:
    conf = UserConf(USER_CONF, MODELS)
    rates = {
        name: conf.settings(mode.model, mode.scenario)[mode.rate] for name, mode in MODES.items()
    }
    assert rates == {"offline": 6.0, "server": 1.0, "interactive": 0.5}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (f"{QPS}=40", f"needs spaces around the =: '{QPS} = 40'"),
        (f"{QPS} =40", f"needs spaces around the =: '{QPS} = 40'"),
        (f"{QPS}s = 40", f"did you mean {QPS}?"),
        ("deepseek-r1.offline.target_qps = 40", f"did you mean {QPS}?"),
        ("DeepSeek-R1.Offline.target_qps = 40", f"did you mean {QPS}?"),
        ("deepseek.Offline.target_qps = 40", f"did you mean {QPS}?"),
        ("*.offline.target_qps = 40", "did you mean *.Offline.target_qps?"),
        (
            "deepseek-r1.Interactive.target_qps = 40",
            "did you mean deepseek-r1-interactive.Server.target_qps?",
        ),
        (
            "deepseek-r1-interactive.Offline.target_qps = 40",
            "did you mean deepseek-r1-interactive.Server.target_qps?",
        ),
        ("deepseek-r1.Offline.ttft_latency = 40", "did you mean deepseek-r1."),
        ("something else = 1", "is not 'model.scenario.key = number'"),
        ("something = 1", "the form is model.scenario.key = number"),
        (f"{QPS}", "is not 'model.scenario.key = number'"),
        (f"{QPS} =", "is not 'model.scenario.key = number'"),
        (f"{QPS} # = 4", "is not 'model.scenario.key = number'"),
        (f"{QPS} = 40 # samples/s", "has a comment after its value"),
        (f"{QPS} = 40 50", "has more than one value"),
        *(
            (f"{QPS} = {value}", "has a value that is not a decimal number, such as 40 or 6.5")
            for value in [
                "4O",
                "4,5",
                "0x10",
                "1_000",
                "-1",
                "+4",
                "nan",
                "inf",
                "infinity",
                "nan(1)",
                "40qps",
                "40#",
                "٤",
            ]
        ),
        *(
            (f"{QPS} = {value}", f"must be a rate of 0.0001 to 1e+06 samples/s, not '{value}'")
            for value in ["0", "0.0", "1e-300", "1e300", "1e999"]
        ),
        *(
            (
                f"*.*.min_duration = {value}",
                f"must be a whole number: digits only, no leading 0, not '{value}'",
            )
            for value in ["1.5", "6e5", "0600000", "600000."]
        ),
        ("*.*.min_duration = 1000000000001", "must be 0 to 1000000000000"),
        (f"*.*.min_duration = {'9' * 5000}", "must be 0 to 1000000000000"),
        ("*.*.min_query_count = 0", "must be 1 to 2147483647, not '0'"),
        ("*.*.sample_concatenate_permutation = 2", "must be 0 to 1, not '2'"),
        ("*.*.use_token_latencies = 0", "must be 1"),
        ("*.*.target_latency_percentile = 0.99e2e", "not a decimal number"),
        ("*.*.target_latency_percentile = 100", "a percentage above 0 and below 100"),
        ("#a comment", "put a space after the #"),
        (f"#{QPS} = 40 # before", "put a space after the #"),
        (f"{QPS}\u00a0= 40", f"needs spaces around the =: '{QPS} = 40'"),
        ("a\x1b[31m = 4", r"'a\x1b[31m'"),
        ("\x1b[31m=4", r"'\x1b[31m = 4'"),
        ("# old Mac\r*.*.min_duration = 1", "carriage return within a line"),
        ("version https://git-lfs.github.com/spec/v1", "is not 'model.scenario.key = number'"),
        ("<!DOCTYPE html>", "is not 'model.scenario.key = number'"),
    ],
)
def test_a_line_that_loadgen_would_drop_or_misread_is_named(
    line: str, message: str, tmp_path: Path
) -> None:
    refused = refusal(f"# rates\n\n{line}\n".encode(), tmp_path)
    assert refused.startswith("line 3: ")
    assert message in refused
    assert len(refused) < 300


def test_a_second_value_is_refused_and_the_same_one_is_not(tmp_path: Path) -> None:
    twice = f"{QPS} = 40\n*.Offline.target_qps = 7\n{QPS} = %s\n"
    message = refusal((twice % 50).encode(), tmp_path)
    assert message == f"line 3: {QPS} has another value in line 1: keep one of the two"
    conf = ours((twice % "40.0").encode(), tmp_path)
    assert conf.settings("deepseek-r1", "Offline")["offline_expected_qps"] == 40.0
    assert conf.settings("deepseek-r1-interactive", "Server") == {"offline_expected_qps": 7.0}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (f"{QPS} = 40\n".encode("utf-8-sig"), "line 1: starts with a byte-order mark"),
        (f"{QPS} = 40\n".encode("utf-16"), "UTF-16 or binary"),
        (f"{QPS} = 40\n".encode("utf-16-be"), "UTF-16 or binary"),
        (f"{QPS} = 40\n\0".encode(), "UTF-16 or binary"),
        ("# Größe\n".encode("latin-1"), "line 1: byte 0xf6 is not UTF-8"),
        (b"\x1f\x8b\x08", "line 1: byte 0x8b is not UTF-8"),
        (b"#" * (LONGEST + 1), f"longer than {LONGEST} bytes"),
    ],
)
def test_what_is_no_text_in_utf_8_is_refused(content: bytes, message: str, tmp_path: Path) -> None:
    assert message in refusal(content, tmp_path)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    for path, message in (
        (tmp_path, "can't be read: Is a directory"),
        (tmp_path / "none", "can't be read: No such file"),
        (Path("/dev/zero"), "not a regular file"),
    ):
        with pytest.raises(LoadGenError, match=f"^{path}: {message}"):
            read_lines(path)
