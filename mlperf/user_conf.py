"""user.conf, read as LoadGen reads it; lines that LoadGen would ignore or misread are errors.

LoadGen itself rejects only lines without spaces around the `=` or without a number that C can
parse. It silently ignores unknown keys, the fraction of an integer and repeated keys, and the
setting keeps its default: 1 sample/s for a target rate.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from errors import LoadGenError

LONGEST = 1 << 20  # bytes; far more than any user.conf needs
SHOWN = 80  # characters of a line that a message quotes
ANY = "*"
SCENARIOS = ("Offline", "Server")
FORM = "model.scenario.key = number"
LOWEST_RATE, HIGHEST_RATE = 1e-4, 1e6  # samples/s: one in three hours, a whole data centre
LONGEST_RUN = 10**12  # ms: 31 years, which still fit LoadGen's int64 of nanoseconds
HIGHEST_COUNT = 2**31 - 1

_WHOLE = re.compile(r"[0-9]+")
_DECIMAL = re.compile(r"([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?")
_UTF16 = (b"\xff\xfe", b"\xfe\xff")
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def whole(least: int, most: int) -> Callable[[str], int]:
    """A parser of whole numbers from `least` to `most`. It raises ValueError for other text."""

    def read(text: str) -> int:
        # LoadGen reads 6e5 as 6 and 1.5 as 1, and takes a number with a leading 0 as octal
        if not _WHOLE.fullmatch(text) or (text[0] == "0" and text != "0"):
            raise ValueError(
                f"must be a whole number: digits only, no leading 0, not {_short(text)}"
            )
        if len(text) > len(str(most)) or not least <= int(text) <= most:
            raise ValueError(f"must be {least} to {most}, not {_short(text)}")
        return int(text)

    return read


def rate(text: str) -> float:
    """Parse a rate in samples per second. Raises: ValueError saying what is wrong."""
    value = decimal(text)
    if not LOWEST_RATE <= value <= HIGHEST_RATE:
        raise ValueError(
            f"must be a rate of {LOWEST_RATE:g} to {HIGHEST_RATE:g} samples/s, not {_short(text)}"
        )
    return value


def _per_cent(text: str) -> float:
    value = decimal(text)
    if not 0 < value < 100:
        raise ValueError(f"must be a percentage above 0 and below 100, not {_short(text)}")
    return value


def decimal(text: str) -> float:
    """Parse a decimal number as C does. Raises: ValueError."""
    if not _DECIMAL.fullmatch(text):
        raise ValueError(f"must be a decimal number, not {_short(text)}")
    return float(text)


def _yes(text: str) -> int:
    if text != "1":
        raise ValueError(f"must be 1, since the benchmark limits TTFT and TPOT, not {_short(text)}")
    return 1


milliseconds = whole(0, LONGEST_RUN)
count = whole(1, HIGHEST_COUNT)
_flag = whole(0, 1)
_count_or_none = whole(0, HIGHEST_COUNT)
_seed = whole(0, 2**64 - 1)


@dataclass(frozen=True)
class Key:
    """A LoadGen setting: the last part of its key, and the attribute of TestSettings it sets."""

    name: str
    attribute: str
    read: Callable[[str], int | float]  # raises ValueError
    factor: float = 1  # from the file's unit to the attribute's
    scenarios: tuple[str, ...] = SCENARIOS  # those for which LoadGen reads the key


KEYS = (
    Key("target_qps", "offline_expected_qps", rate, scenarios=("Offline",)),
    Key("target_qps", "server_target_qps", rate, scenarios=("Server",)),
    Key("min_duration", "min_duration_ms", milliseconds),
    Key("max_duration", "max_duration_ms", milliseconds),
    Key("min_query_count", "min_query_count", count),
    Key("max_query_count", "max_query_count", _count_or_none),
    Key("target_latency", "server_target_latency_ns", milliseconds, 1_000_000, ("Server",)),
    Key(
        *("target_latency_percentile", "server_target_latency_percentile", _per_cent, 0.01),
        scenarios=("Server",),
    ),
    Key("ttft_latency", "ttft_latency", milliseconds, 1_000_000, ("Server",)),
    Key("tpot_latency", "tpot_latency", milliseconds, 1_000_000, ("Server",)),
    Key("coalesce_queries", "server_coalesce_queries", _flag, scenarios=("Server",)),
    Key("max_async_queries", "server_max_async_queries", _count_or_none, scenarios=("Server",)),
    Key("use_token_latencies", "use_token_latencies", _yes),
    Key("sample_concatenate_permutation", "sample_concatenate_permutation", _flag),
    Key("performance_sample_count_override", "performance_sample_count_override", _count_or_none),
    Key("accuracy_log_rng_seed", "accuracy_log_rng_seed", _seed),
    Key("accuracy_log_sampling_target", "accuracy_log_sampling_target", _count_or_none),
    Key("print_timestamps", "print_timestamps", _flag),
)

# Settings that LoadGen has too, and why user.conf may not set them in this benchmark.
_BUILT_IN = "LoadGen takes it from the benchmark's own settings only and ignores this line"
_OF_AUDITS = "it belongs to compliance tests that this benchmark does not have"
_GUESSED = "every token is reported, so LoadGen does not have to infer latencies"
REFUSED = {
    "mode": "--accuracy selects the test",
    "accuracy_sample_count_override": "--num-samples sets the number of rows",
    **dict.fromkeys(("qsl_rng_seed", "sample_index_rng_seed", "schedule_rng_seed"), _BUILT_IN),
    "accuracy_log_probability": _BUILT_IN,
    **dict.fromkeys(("performance_issue_unique", "performance_issue_same"), _OF_AUDITS),
    "performance_issue_same_index": _OF_AUDITS,
    **dict.fromkeys(("infer_token_latencies", "token_latency_scaling_factor"), _GUESSED),
}


@dataclass(frozen=True)
class Line:
    """A line with a setting."""

    number: int  # counted from 1
    key: str
    value: str


class UserConf:
    """The settings in a user.conf, for every model and scenario that a run may have."""

    def __init__(self, path: Path, models: Mapping[str, tuple[str, ...]]) -> None:
        """`models`: LoadGen's name of each model, and the scenarios that it is run in.

        Raises: LoadGenError naming the first line that LoadGen would not take as it is meant.
        """
        self._path = path
        self._values: dict[str, int | float] = {}
        known = _known(models)
        first_lines: dict[str, int] = {}
        for line in read_lines(path):
            if line.key not in known:
                raise self._error(line, _unknown(line, known))
            try:
                value = known[line.key].read(line.value)
            except ValueError as error:
                raise self._error(line, f"{line.key} {error}") from error
            first = first_lines.setdefault(line.key, line.number)
            if self._values.setdefault(line.key, value) != value:
                raise self._error(
                    line, f"{line.key} has another value in line {first}: keep one of the two"
                )

    def settings(self, model: str, scenario: str) -> dict[str, int | float]:
        """What the file sets for such a run, by attribute of TestSettings, in LoadGen's units."""
        values = {}
        for key in KEYS:
            # LoadGen reads some keys under one scenario's name in every scenario
            own = scenario if scenario in key.scenarios else key.scenarios[0]
            for prefix in (f"{model}.{own}", f"{ANY}.{own}", f"{model}.{ANY}", f"{ANY}.{ANY}"):
                value = self._values.get(f"{prefix}.{key.name}")
                if value is not None:
                    values[key.attribute] = value if key.factor == 1 else value * key.factor
                    break
        return values

    def _error(self, line: Line, message: str) -> LoadGenError:
        return LoadGenError(f"{self._path}: line {line.number}: {message}")


def read_lines(path: Path) -> list[Line]:
    """The settings in a file of LoadGen's format, in order; keys and ranges are not checked.

    Raises: LoadGenError naming the first line that is neither a setting, a comment nor blank.
    """
    lines = []
    for number, raw in enumerate(_content(path).split(b"\n"), 1):
        where = f"{path}: line {number}"
        if b"\r" in raw.rstrip(b"\r"):
            raise LoadGenError(f"{where}: carriage return within a line: end lines with \\n")
        try:
            text = raw.decode()
        except UnicodeDecodeError as error:
            raise LoadGenError(
                f"{where}: byte 0x{raw[error.start]:02x} is not UTF-8: save the file as UTF-8 text"
            ) from error
        words = [word.decode() for word in raw.split()]  # bytes split at C's white space only
        if not words or words[0] == "#":
            continue
        is_comment = words[0].startswith("#")
        if _is_setting(words):
            if not is_comment:
                lines.append(Line(number, words[0], words[2]))
        elif not is_comment:
            raise LoadGenError(f"{where}: {_short(text.strip())} {_not_a_setting(words)}")
        elif len(words) > 1 and words[1] != "#":
            # LoadGen takes the first word for a key unless it is # alone
            raise LoadGenError(f"{where}: put a space after the #, or LoadGen rejects the line")
    return lines


def changed(text: str, key: str, value: str) -> str:
    """The text of a user.conf with one setting changed where it is, or else added at the end."""
    setting = f"{key} = {value}"
    lines = text.splitlines()
    places = [number for number, line in enumerate(lines) if line.split()[:2] == [key, "="]]
    for number in places:
        lines[number] = setting
    return "\n".join(lines if places else [*lines, setting]) + "\n"


def _content(path: Path) -> bytes:
    """Raises: LoadGenError if the file can't be read, is too long or is not UTF-8 text."""
    try:
        if not path.is_file() and not path.is_dir() and path.exists():
            raise LoadGenError(
                f"{path}: not a regular file, which it must be, since LoadGen reads it again"
            )
        with path.open("rb") as file:
            content = file.read(LONGEST + 1)
    except OSError as error:
        raise LoadGenError(f"{path}: can't be read: {error.strerror}") from error
    if content.startswith(_UTF16) or b"\0" in content:
        raise LoadGenError(f"{path}: UTF-16 or binary: save it as UTF-8 text")
    if content.startswith(_BYTE_ORDER_MARK):
        raise LoadGenError(f"{path}: line 1: starts with a byte-order mark: save it without one")
    if len(content) > LONGEST:
        raise LoadGenError(f"{path}: longer than {LONGEST} bytes, so not a file of settings")
    return content


def _is_setting(words: list[str]) -> bool:
    return len(words) == 3 and words[1] == "=" and bool(_number(words[2]))


def _number(text: str) -> bool:
    """Whether both LoadGen and people read it as a number."""
    return bool(_DECIMAL.fullmatch(text))


def _not_a_setting(words: list[str]) -> str:
    """What is wrong with a line, and what it should look like."""
    if "=" not in words and any("=" in word for word in words):
        key, _, value = " ".join(words).partition("=")
        return f"needs spaces around the =: {_short(f'{key.strip()} = {value.strip()}')}"
    if words[1:2] == ["="] and len(words) > 2:
        if any(word.startswith("#") for word in words[3:]):
            return "has a comment after its value: move it to a line of its own"
        if len(words) > 3:
            return "has more than one value"
        return "has a value that is not a decimal number, such as 40 or 6.5"
    return f"is not '{FORM}'"


def _known(models: Mapping[str, tuple[str, ...]]) -> dict[str, Key]:
    """Every key that a line may have, including those with wildcards."""
    return {
        f"{model}.{scenario}.{key.name}": key
        for key in KEYS
        for model, own in {**models, ANY: SCENARIOS}.items()
        if set(own) & set(key.scenarios)
        for scenario in (*(one for one in own if one in key.scenarios), ANY)
    }


def _unknown(line: Line, known: Mapping[str, Key]) -> str:
    name = line.key.rpartition(".")[2]
    if name in REFUSED:
        return f"{_short(line.key)}: remove this line: {REFUSED[name]}"
    by_lower = {one.lower(): one for one in known if (ANY in one) == (ANY in line.key)}
    near = get_close_matches(line.key.lower(), by_lower, n=1)
    hint = f"did you mean {by_lower[near[0]]}?" if near else f"the form is {FORM}"
    return f"this benchmark has no setting named {_short(line.key)}: {hint}"


def _short(text: str) -> str:
    """Quoted for a message: control characters escaped, long text cut."""
    return ascii(text if len(text) <= SHOWN else f"{text[:SHOWN]}…")
