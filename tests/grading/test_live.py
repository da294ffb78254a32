from typing import get_args

from grading.live import GradingView
from grading.tasks import Grade, Status
from tests.data.test_live import text


def grade(row: int, status: Status) -> Grade:
    return Grade(row, None, status, "", 0.0)


def test_each_task_has_a_row_with_its_score_so_far() -> None:
    tasks = ["aime", "gpqa", "aime", "gpqa", "gpqa", "aime"]
    with GradingView(True, tasks, {0: grade(0, "ok")}) as view:
        view.add(grade(2, "no_answer"))
        view.add(grade(1, "ok"))
        view.add(grade(3, "timeout"))
        view.add(grade(4, "sandbox_error"))
        lines = [line.strip("│ \n").split() for line in text(view.content(), 140).splitlines()]
    cells = {line[0]: [cell for cell in line[1:] if "━" not in cell] for line in lines if line}
    assert cells["aime"] == ["2", "of", "3", "50.00", "%", "1", "0", "0"]
    assert cells["gpqa"] == ["3", "of", "3", "33.33", "%", "0", "1", "1"]
    assert cells["all"] == ["5", "of", "6", "40.00", "%", "1", "1", "1"]


def test_every_status_counts() -> None:
    statuses = get_args(Status)
    with GradingView(False, ["aime"] * len(statuses), {}) as view:
        for row, status in enumerate(statuses):
            view.add(grade(row, status))
        assert f"{len(statuses)} of {len(statuses)}" in text(view.content(), 140)
