"""The figures of a graded run, compared with the official limits."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from benchmark import EXACT_MATCH_MIN, ROWS, TOKENS_MAX, TOKENS_MIN
from errors import GradingError
from terminal import aligned, one_line

if TYPE_CHECKING:
    import pandas as pd

_Z95 = 1.959963984540054  # 95 % of a normal distribution is within so many standard deviations


@dataclass(frozen=True)
class Totals:
    """The figures of one task, or of all tasks. Counts are numbers of rows."""

    task: str  # or "all"
    rows: int
    right: int
    tokens_per_sample: float
    no_answer: int  # no answer was found in the text
    truncated: int  # ended by the length limit
    timeouts: int  # the program or the comparison took too long; count as wrong
    ungraded: int  # could not be judged; count as wrong and invalidate the figure
    lenient: float | None = None  # percent that math-verify calls right, of the rows it judges

    @property
    def exact_match(self) -> float:
        """The percentage of rows that are right."""
        return 100.0 * self.right / self.rows

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % confidence interval of exact_match, in percent."""
        accuracy, z2 = self.right / self.rows, _Z95 * _Z95 / self.rows
        centre = accuracy + z2 / 2
        spread = math.sqrt(z2 * (accuracy * (1 - accuracy) + z2 / 4))
        low, high = (100.0 * (centre + side * spread) / (1 + z2) for side in (-1, 1))
        return max(low, 0.0), min(high, 100.0)


@dataclass(frozen=True)
class SandboxInfo:
    """The sandbox that programs and formulas ran in."""

    level: str | None  # None: no level holds on this machine
    reason: str  # why not the strongest level
    canaries: Mapping[str, str]  # outcome of each attack tried at the start: "held" or "open"

    def __str__(self) -> str:
        held = sum(state == "held" for state in self.canaries.values())
        count = f" ({held} of {len(self.canaries)} canaries held)" if self.canaries else ""
        reason = f": {self.reason}" if self.reason else ""
        return f"sandbox: {self.level or 'no level holds'}{count}{reason}"


@dataclass(frozen=True)
class Evaluation:
    """A graded frame and its figures."""

    frame: "pd.DataFrame"  # the results frame, with the columns of the grades
    tasks: Sequence[Totals]  # of each task in the frame
    total: Totals
    sandbox: SandboxInfo
    expected: int = ROWS  # number of rows
    unofficial: str = ""  # options that make the grading differ from the official one

    @property
    def exact_match(self) -> float:
        """The percentage of rows that are right."""
        return self.total.exact_match

    @property
    def tokens_per_sample(self) -> float:
        """Mean length of an answer in tokens."""
        return self.total.tokens_per_sample

    @property
    def result_line(self) -> str:
        """The line the official submission checker looks for."""
        figures: dict[str, float] = {
            "exact_match": self.exact_match,
            "tokens_per_sample": self.tokens_per_sample,
            "num-samples": self.total.rows,
        }
        return str(figures)

    @property
    def whole(self) -> bool:
        """Whether the full data set was graded, every row judged by the official rules."""
        judged = not self.total.ungraded and not self.unofficial
        return self.total.rows == self.expected == ROWS and judged

    @property
    def accurate(self) -> bool:
        """Whether exact_match reaches its limit."""
        return self.exact_match >= EXACT_MATCH_MIN

    @property
    def length_fits(self) -> bool:
        """Whether tokens_per_sample is within its limits."""
        return TOKENS_MIN <= self.tokens_per_sample <= TOKENS_MAX

    @property
    def verdict(self) -> str:
        """The figures compared with the official limits, which apply to the full data set only."""
        if self.total.ungraded:
            return f"NOT A RESULT: {self.ungraded}"
        if self.unofficial:
            return f"not the official figure: graded with {self.unofficial}"
        if not self.whole:
            expected = self.expected if self.total.rows < self.expected else ROWS
            return f"not comparable with the official limits: {self.total.rows} of {expected} rows"
        right, long = self.accurate, self.length_fits
        return (
            f"{'valid' if right and long else 'NOT VALID'}:"
            f" exact_match {'reaches' if right else 'is below'} {EXACT_MATCH_MIN:.4f},"
            f" tokens_per_sample is {'within' if long else 'outside'}"
            f" {TOKENS_MIN:.1f} to {TOKENS_MAX:.1f}"
        )

    @property
    def ungraded(self) -> str:
        """How many rows could not be judged, as a message."""
        return (
            f"{self.total.ungraded} of {self.total.rows} rows could not be judged and count as"
            " wrong here"
        )

    def require_all(self) -> None:
        """Raises: GradingError if a row could not be judged."""
        if self.total.ungraded:
            frame = self.frame
            rows = frame[frame["grading_status"].isin(["sandbox_error", "not_graded"])]
            first = one_line(str(rows["grading_detail"].iloc[0]))
            raise GradingError(f"{self.ungraded}; the first: {first}")

    def table(self) -> str:
        """The figures as aligned text, one line per task."""
        head = ["task", "rows", "exact_match", "95 % interval", "tokens/sample"]
        head += ["no answer", "truncated", "timeouts", "ungraded"]
        advisory = any(row.lenient is not None for row in self.tasks)
        lines = [head + ["lenient"] * advisory]
        for row in (*self.tasks, self.total):
            low, high = row.interval
            line = [row.task, str(row.rows), f"{row.exact_match:.2f}", f"{low:.2f} to {high:.2f}"]
            line.append(f"{row.tokens_per_sample:.1f}")
            line += [_percentage(row.no_answer, row.rows), _percentage(row.truncated, row.rows)]
            line += [str(row.timeouts), str(row.ungraded)]
            lenient = "" if row.lenient is None else f"{row.lenient:.2f}"
            lines.append(line + [lenient] * advisory)
        return "\n".join(aligned(lines, range(1, len(lines[0]))))

    def as_json(self) -> dict[str, Any]:
        """The figures as plain values."""
        return {
            "exact_match": self.exact_match,
            "tokens_per_sample": self.tokens_per_sample,
            "rows": self.total.rows,
            "expected_rows": self.expected,
            "verdict": self.verdict,
            "limits": {
                "rows": ROWS,
                "exact_match_min": EXACT_MATCH_MIN,
                "tokens_per_sample": [TOKENS_MIN, TOKENS_MAX],
            },
            "tasks": {row.task: _plain(row) for row in (*self.tasks, self.total)},
            "sandbox": {
                "level": self.sandbox.level,
                "reason": self.sandbox.reason,
                "canaries": dict(self.sandbox.canaries),
            },
        }


def _percentage(count: int, rows: int) -> str:
    return f"{count} ({100 * count / rows:.1f} %)"


def _plain(row: Totals) -> dict[str, Any]:
    return {
        "rows": row.rows,
        "right": row.right,
        "exact_match": row.exact_match,
        "interval_95": list(row.interval),
        "tokens_per_sample": row.tokens_per_sample,
        "no_answer": row.no_answer,
        "truncated": row.truncated,
        "timeouts": row.timeouts,
        "ungraded": row.ungraded,
    } | ({} if row.lenient is None else {"lenient": row.lenient})
