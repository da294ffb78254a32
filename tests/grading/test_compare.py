"""Comparison of two evaluated files."""

import pandas as pd
import pytest

from errors import ColumnsError, GradingError
from grading.compare import comparison, mcnemar


def _frame(right: list[int], **columns: object) -> pd.DataFrame:
    rows = range(len(right))
    return pd.DataFrame(
        {
            "dataset": ["aime"] * len(right),
            "ground_truth": list(rows),
            "extracted_answer": [f"answer  {row}\n" for row in rows],
            "prompt_accuracy": [100.0 * one for one in right],
            **columns,
        }
    )


def test_disagreements_are_counted_and_listed() -> None:
    first, second = _frame([1, 1, 0, 0, 1, 1]), _frame([1, 0, 1, 0, 0, 0])
    second["grading_rule"] = "boxed"
    second.loc[1, "extracted_answer"] = "x" * 80
    assert str(comparison(first, second)).splitlines() == [
        "rows 6, both right 1, neither 1, only the first 3, only the second 1",
        "exact_match 66.6667 and 33.3333; McNemar's exact test: p = 0.625",
        f"row 1, aime: answer 1 right | {'x' * 39}… wrong (boxed)",
        "row 2, aime: answer 2 wrong | answer 2 right (boxed)",
        "row 4, aime: answer 4 right | answer 4 wrong (boxed)",
        "row 5, aime: answer 5 right | answer 5 wrong (boxed)",
    ]


def test_rows_are_paired_by_their_sample() -> None:
    first = _frame([1, 0], sample_index=[0, 1])
    second = first.iloc[::-1].reset_index(drop=True)
    assert (
        str(comparison(first, second)).splitlines()[0].startswith("rows 2, both right 1, neither 1")
    )
    with pytest.raises(GradingError, match="different rows: ground_truth of row 0"):
        comparison(first.drop(columns="sample_index"), second)


# by hand: twice the lower tail of a binomial with p = 1/2
@pytest.mark.parametrize(
    ("one", "two", "p"),
    [(0, 0, 1), (1, 1, 1), (3, 3, 1), (5, 0, 0.0625), (0, 10, 2 / 1024), (2, 8, 112 / 1024)],
)
def test_mcnemar(one: int, two: int, p: float) -> None:
    assert mcnemar(one, two) == mcnemar(two, one) == pytest.approx(p)
    assert 0 <= mcnemar(4000, 300) < 1e-300  # no overflow


def test_what_can_not_be_compared() -> None:
    with pytest.raises(GradingError, match="\\(3 and 2\\)"):
        comparison(_frame([1, 1, 1]), _frame([1, 1]))
    with pytest.raises(ColumnsError, match="prompt_accuracy"):
        comparison(_frame([1]).drop(columns="prompt_accuracy"), _frame([1]))
    twice = _frame([1, 1], sample_index=[3, 3])
    with pytest.raises(GradingError, match="have different rows"):
        comparison(twice, twice)
    for name, value in (("prompt_accuracy", "x"), ("prompt_accuracy", None), ("sample_index", [1])):
        odd = _frame([1, 1], **{name: pd.Series([1, value], dtype=object)})
        with pytest.raises(ColumnsError, match=f"row 1: {name} is .*, not a number"):
            comparison(odd, odd)


def test_what_is_quoted_steers_no_terminal_and_stays_in_its_line() -> None:
    hostile = "\x1b[2J\ud800\nrow 9, aime: \x9bx"
    text = pd.Series([hostile], dtype=object)
    first = _frame([1], extracted_answer=text, dataset=text, grading_rule=text)
    second = first.assign(prompt_accuracy=0.0)
    lines = str(comparison(first, second)).split("\n")
    assert len(lines) == 3
    escaped = r"\x1b[2J\ud800\nrow 9, aime: \x9bx"
    answer = escaped.replace(r"\n", " ")
    assert lines[2] == f"row 0, {escaped}: {answer} right ({escaped}) | {answer} wrong ({escaped})"
