"""user.conf, read as LoadGen reads it; what LoadGen would drop or misread is refused.

LoadGen's reader knows no wrong line but one without blanks around its `=`, or with a value that is
no number of C's. A key that nothing asks for, a whole number's fraction, a second value: all are
passed over in silence, and the setting keeps its default, which is 1 sample/s for a rate.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from errors import LoadGenError

LONGEST = 1 << 20  # bytes of a file; no user.conf comes near
SHOWN = 80  # characters of a line that a message repeats
ANY = "*"
SCENARIOS = ("Offline", "Server")
FORM = "model.scenario.key = number"
LOWEST_RATE, HIGHEST_RATE = 1e-4, 1e6  # samples/s: one in three hours, and a data centre's
LONGEST_RUN = 10**12  # ms: 31 years, which LoadGen's nanoseconds can still hold
HIGHEST_COUNT = 2**31 - 1

_WHOLE = re.compile(r"[0-9]+")
_DECIMAL = re.compile(r"([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?")
_UTF16 = (b"\xff\xfe", b"\xfe\xff")
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def whole(least: int, most: int) -> Callable[[str], int]:
    """A reader of whole numbers within bounds, which raises ValueError with what is wrong."""

    def read(text: str) -> int:
        # of 6e5 or 1.5 LoadGen takes the first digit, and a 0 in front makes a number octal
        if not _WHOLE.fullmatch(text) or (text[0] == "0" and text != "0"):
            raise ValueError(f"must be a whole number, in digits alone, not {_short(text)}")
        if len(text) > len(str(most)) or not least <= int(text) <= most:
            raise ValueError(f"must be {least} to {most}, not {_short(text)}")
        return int(text)

    return read


def rate(text: str) -> float:
    """Samples per second. Raises ValueError with what is wrong."""
    value = _decimal(text)
    if not LOWEST_RATE <= value <= HIGHEST_RATE:
        raise ValueError(
            f"must be a rate of {LOWEST_RATE:g} to {HIGHEST_RATE:g} samples/s, not {_short(text)}"
        )
    return value


def _per_cent(text: str) -> float:
    value = _decimal(text)
    if not 0 < value < 100:
        raise ValueError(f"must be above 0 and below 100 per cent, not {_short(text)}")
    return value


def _decimal(text: str) -> float:
    if not _DECIMAL.fullmatch(text):
        raise ValueError(f"must be a decimal number, not {_short(text)}")
    return float(text)


def _yes(text: str) -> int:
    if text != "1":
        raise ValueError(
            f"must be 1: the benchmark limits the latencies of tokens; not {_short(text)}"
        )
    return 1


milliseconds = whole(0, LONGEST_RUN)
count = whole(1, HIGHEST_COUNT)
_flag = whole(0, 1)
_count_or_none = whole(0, HIGHEST_COUNT)
_seed = whole(0, 2**64 - 1)


@dataclass(frozen=True)
class Key:
    """A setting of LoadGen's: the last part of its name, and what it becomes in TestSettings."""

    name: str
    attribute: str
    read: Callable[[str], int | float]  # raises ValueError
    factor: float = 1  # how many of the attribute's units one of the file's is
    scenarios: tuple[str, ...] = SCENARIOS  # whose lines LoadGen looks at


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

# What LoadGen knows too, and why it has no place in this benchmark's file.
_BUILT_IN = "LoadGen takes it from the benchmark's own settings alone, and passes over this line"
_OF_AUDITS = "it belongs to compliance tests that this benchmark does not have"
_GUESSED = "every token is reported here, so that LoadGen need not guess latencies"
REFUSED = {
    "mode": "--accuracy says which test is run",
    "accuracy_sample_count_override": "--num-samples says how many rows are used",
    **dict.fromkeys(("qsl_rng_seed", "sample_index_rng_seed", "schedule_rng_seed"), _BUILT_IN),
    "accuracy_log_probability": _BUILT_IN,
    **dict.fromkeys(("performance_issue_unique", "performance_issue_same"), _OF_AUDITS),
    "performance_issue_same_index": _OF_AUDITS,
    **dict.fromkeys(("infer_token_latencies", "token_latency_scaling_factor"), _GUESSED),
}


@dataclass(frozen=True)
class Line:
    """A line that sets something."""

    number: int  # from 1
    key: str
    value: str


class UserConf:
    """What a user.conf sets, for each of the models that a run may be given as."""

    def __init__(self, path: Path, models: Mapping[str, tuple[str, ...]]) -> None:
        """`models`: the scenarios that each model's runs may have.

        Errors: LoadGenError naming the line that LoadGen would not take as it is meant.
        """
        self._path = path
        self._values: dict[str, int | float] = {}
        known = _known(models)
        lines: dict[str, Line] = {}
        for line in read_lines(path):
            if line.key not in known:
                raise self._error(line, _unknown(line, known))
            try:
                value = known[line.key].read(line.value)
            except ValueError as error:
                raise self._error(line, f"{line.key} {error}") from error
            before = self._values.setdefault(line.key, value)
            if before != value:
                earlier = lines[line.key].number
                raise self._error(line, f"{line.key} has another value in line {earlier}")
            lines.setdefault(line.key, line)

    def settings(self, model: str, scenario: str) -> dict[str, int | float]:
        """Value by attribute of TestSettings, as far as the file sets any for such a run."""
        found = {}
        for key in KEYS:
            # LoadGen reads some keys of one scenario whichever is run
            own = scenario if scenario in key.scenarios else key.scenarios[0]
            for prefix in (f"{model}.{own}", f"{ANY}.{own}", f"{model}.{ANY}", f"{ANY}.{ANY}"):
                value = self._values.get(f"{prefix}.{key.name}")
                if value is not None:
                    found[key.attribute] = value if key.factor == 1 else value * key.factor
                    break
        return found

    def _error(self, line: Line, what: str) -> LoadGenError:
        return LoadGenError(f"{self._path}: line {line.number}: {what}")


def read_lines(path: Path) -> list[Line]:
    """The lines of a file in LoadGen's form that set something; values are not looked at.

    Errors: LoadGenError naming the first line that is of another form.
    """
    lines = []
    for number, raw in enumerate(_content(path).split(b"\n"), 1):
        where = f"{path}: line {number}"
        if b"\r" in raw.rstrip(b"\r"):
            raise LoadGenError(f"{where}: a carriage return inside it: end lines by a newline")
        try:
            text = raw.decode()
        except UnicodeDecodeError as error:
            raise LoadGenError(
                f"{where}: byte 0x{raw[error.start]:02x} is no UTF-8: it has to be a text file"
            ) from error
        words = [word.decode() for word in raw.split()]  # at C's blanks, of which Unicode has more
        if not words or words[0] == "#":
            continue
        if words[0].startswith("#"):
            # to LoadGen this is a key, which does no harm where the rest is a setting or nothing
            if len(words) > 1 and words[1] != "#" and not _is_setting(words):
                raise LoadGenError(f"{where}: put a blank behind the #, or LoadGen refuses this")
            continue
        if not _is_setting(words):
            raise LoadGenError(f"{where}: {_short(text.strip())} {_not_a_setting(words)}")
        lines.append(Line(number, words[0], words[2]))
    return lines


def _content(path: Path) -> bytes:
    """Errors: LoadGenError where the file can't be read, or is no text in UTF-8."""
    try:
        if not path.is_file() and not path.is_dir() and path.exists():
            raise LoadGenError(f"{path}: not a plain file, which LoadGen reads a second time")
        with path.open("rb") as file:
            content = file.read(LONGEST + 1)
    except OSError as error:
        raise LoadGenError(f"{path}: can't be read: {error.strerror}") from error
    if content.startswith(_UTF16) or b"\0" in content:
        raise LoadGenError(f"{path}: UTF-16, or no text at all: save it as UTF-8")
    if content.startswith(_BYTE_ORDER_MARK):
        raise LoadGenError(f"{path}: line 1: begins with a byte-order mark: save it without one")
    if len(content) > LONGEST:
        raise LoadGenError(f"{path}: more than {LONGEST} bytes: this is no file of settings")
    return content


def _is_setting(words: list[str]) -> bool:
    return len(words) == 3 and words[1] == "=" and bool(_number(words[2]))


def _number(text: str) -> bool:
    """Whether it is a number, to LoadGen and to a person."""
    return bool(_DECIMAL.fullmatch(text))


def _not_a_setting(words: list[str]) -> str:
    """What is wrong with a line's words, and how it should be."""
    if "=" not in words and any("=" in word for word in words):
        key, _, value = " ".join(words).partition("=")
        return f"needs blanks around the =: {_short(f'{key.strip()} = {value.strip()}')}"
    if words[1:2] == ["="] and len(words) > 2:
        if any(word.startswith("#") for word in words[3:]):
            return "has a comment behind its value: give it a line of its own"
        if len(words) > 3:
            return "has more than one value"
        return "has a value that is no decimal number, such as 40 or 6.5"
    return f"is not '{FORM}'"


def _known(models: Mapping[str, tuple[str, ...]]) -> dict[str, Key]:
    """Every key that a line may have, wildcards among them."""
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
        return f"{_short(line.key)}: leave this out: {REFUSED[name]}"
    by_lower = {one.lower(): one for one in known if (ANY in one) == (ANY in line.key)}
    near = get_close_matches(line.key.lower(), by_lower, n=1)
    hint = f"did you mean {by_lower[near[0]]}?" if near else f"the form is {FORM}"
    return f"no setting of this benchmark's is named {_short(line.key)}: {hint}"


def _short(text: str) -> str:
    """Quoted, no control characters among it, and not too long for a message."""
    return ascii(text if len(text) <= SHOWN else f"{text[:SHOWN]}…")
