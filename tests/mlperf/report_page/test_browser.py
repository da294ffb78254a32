"""Reports of real runs in a real browser: figures, search, keyboard, hostile answers, full size."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

from data.frames import write_parquet
from data.journal import read_journal
from mlperf.compare import page as compare_page
from mlperf.compare.pair import compare
from mlperf.compare.runs import read_run
from mlperf.report_page.page import write_report
from mlperf.submission.tree import read_json
from mlperf.sweep import page as sweep_page
from mlperf.sweep.plan import Engine, Point
from mlperf.sweep.results import Result
from tests import forked
from tests.browser import DESK, PHONE, Tab, browser
from tests.conftest import ASSISTANT, USER
from tests.mlperf.compare.folders import write_run
from tests.mlperf.report_page.full_size import full_size
from tests.mlperf.report_page.opened import READY, check_report

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

RUN = "document.title = 'it has run'"
HOSTILE = [
    f"<script>{RUN}</script>",
    f"</script><script>{RUN}</script>",
    f'<img src="x" onerror="{RUN}">',
    f"<svg onload=\"{RUN}\"></svg><a href='javascript:{RUN}'>a link</a>",
    f"<!-- --> ]]> </pre></textarea><iframe srcdoc='<script>{RUN}</script>'>",
    "{{ 7 * 7 }} {% raw %} ${7 * 7} `7`",
    "\u202eReversed\u202c \u2066isolated\u2069 \u200f\u061c marks",
    "\x1b[31mred\x07 \x00 \x9b2J \r carriage \u2028 line",
]
PLAIN = [f"question {row}: what is {row} + {row}?" for row in range(112)]


@pytest.fixture(scope="module")
def results(echo_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The result folders of runs on the echo engine, which answers with the prompt."""
    folder = tmp_path_factory.mktemp("runs")
    texts = [f"{text} </think> Answer: A" for text in (*HOSTILE, *PLAIN)]
    names = ["gpqa", "AIME1983", *["mmlu_pro"] * (len(texts) - 2)]
    truths = ["A" if row % 2 else "B" for row in range(len(texts))]
    frame = {"dataset": names, "question": texts, "text_input": texts, "ground_truth": truths}
    write_parquet(pd.DataFrame(frame), folder / "rows.parquet")
    inputs = ("--backend", "echo", "--model", echo_model, "--input-file", folder / "rows.parquet")
    slow = ("--engine-arg", "first_token_ms=5", "--engine-arg", "token_ms=0.2")
    for options in (
        ("--mode", "server", "--num-samples", 60, "--target-qps", 60, *slow),
        ("--accuracy",),
    ):
        words = (*inputs, "--output-dir", folder, *options)
        ended = forked.run("run_mlperf.py", *words, timeout=300)
        assert ended.returncode == 0, ended.stderr
        assert "report.html" in ended.stderr
    return folder


@pytest.fixture(scope="module")
def tab() -> Iterator[Tab]:
    with browser() as opened:
        yield opened


@pytest.mark.parametrize("run", ["server/performance", "offline/accuracy"])
def test_figures_are_those_of_the_logs(tab: Tab, results: Path, run: str) -> None:
    tab.show()
    check_report(tab, results / run)


def test_answers_of_a_performance_run_that_are_graded_later(
    tab: Tab, results: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "performance"
    shutil.copytree(results / "server" / "performance", folder)
    ended = forked.run("eval_accuracy.py", "--input-file", folder / "results.pkl", timeout=300)
    assert ended.returncode == 0, ended.stderr
    assert f"wrote {folder}/report.html" in ended.stderr
    check_report(tab, folder)
    graded = pd.read_parquet(folder / "results_evaluated.parquet")
    tab.value("find('grade').value = 'right'; update()")
    right = graded.index[graded["prompt_accuracy"] > 0]
    assert tab.value("shown.map((sample) => sample.row)") == list(right)


def test_a_run_that_failed_shows_what_it_had_finished(
    tab: Tab, echo_model: Path, results: Path, tmp_path: Path
) -> None:
    rows = shutil.copy(results / "rows.parquet", tmp_path)
    inputs = ("--backend", "echo", "--model", echo_model, "--input-file", rows)
    own = ("--skip-samples", 3, "--engine-arg", "fail_at=20", "--output-dir", tmp_path)
    ended = forked.run("run_mlperf.py", *inputs, *own, timeout=300)
    assert ended.returncode == 12, ended.stderr
    folder = tmp_path / "offline" / "performance"
    answers = read_journal(folder / "completions.journal")
    assert answers
    tab.open(f"file://{folder}/report.html")
    tab.until(READY)
    assert tab.complaints == []
    assert tab.value("document.querySelector('.verdict .word').textContent") == "Failed"
    indices = tab.value("samples.map((sample) => sample.sample)")
    assert indices == sorted(index for index, _ in answers)
    questions = pd.read_parquet(rows)["question"]
    tab.value("open(samples.length - 1)")
    question = tab.value("find('detail').querySelector('pre').textContent")
    assert question == questions[3 + indices[-1]]
    # of another data set, they would be the wrong questions
    pd.read_parquet(rows).iloc[::-1].to_parquet(rows)
    page = write_report(folder).read_text()
    assert f"{rows}: has changed since" in page
    assert 'id="samples"' not in page


def test_hostile_answers_are_text(tab: Tab, results: Path) -> None:
    tab.open(f"file://{results}/offline/accuracy/report.html")
    tab.until(READY)
    title = tab.value("document.title")
    for row, text in enumerate(HOSTILE):
        tab.value(f"open({row})")
        question, reasoning, answer = tab.value(
            "[...document.querySelectorAll('#detail pre')].map((one) => one.textContent)"
        )
        reasoning = reasoning.removeprefix(USER)  # the echo engine's answer is all of the prompt
        assert answer == f"Answer: A{ASSISTANT}"
        assert question.startswith(reasoning)
        assert (
            tab.value("find('detail').querySelectorAll('script, img, svg, a, iframe').length") == 0
        )
        if row < 6:
            assert reasoning == text
        else:  # what can't be seen is shown by its code point, and is nowhere itself
            marks = tab.value(
                "[...find('detail').querySelectorAll('pre .control')].map((one) => one.textContent)"
            )
            assert f"U+{ord(text[0]):04X}" in marks
            assert not set(reasoning) & set(
                "\u202e\u202c\u2066\u2069\u200f\u061c\x1b\x07\0\x9b\r\u2028"
            )
    assert tab.value("marked('a\\ud800', invisible).textContent") == "aU+D800"
    # even what gets into the page as HTML does not run
    tab.value(f"find('detail').innerHTML = {HOSTILE[2]!r}")
    tab.value("new Promise((resume) => setTimeout(resume, 100))")
    assert tab.value("document.title") == title
    assert "Content Security Policy" in tab.complaints[0]


def test_search_filters_and_order(tab: Tab, results: Path) -> None:
    tab.open(f"file://{results}/offline/accuracy/report.html")
    tab.until(READY)
    matches = "shown.map((sample) => sample.row)"
    choose = "find('{}').value = '{}'; update()"
    tab.value("find('search').value = 'what is 77 +'; update()")
    assert tab.value(matches) == [len(HOSTILE) + 77]
    assert tab.value("find('count').textContent") == "1 found in 120 samples"
    tab.value(f"open({len(HOSTILE) + 77})")
    assert tab.value("document.querySelector('#detail mark').textContent") == "what is 77 +"
    tab.value("find('search').value = ''")
    tab.value(choose.format("grade", "wrong"))
    graded = pd.read_parquet(results / "offline" / "accuracy" / "results_evaluated.parquet")
    wrong = graded.index[graded["prompt_accuracy"] == 0]
    assert sorted(tab.value(matches)) == sorted(wrong)
    tab.value(choose.format("task", "aime"))
    assert tab.value(matches) == [row for row in wrong if graded["dataset"][row] == "AIME1983"]
    tab.value("find('task').value = find('grade').value = ''")
    tab.value(choose.format("order", "-tokens"))
    lengths = graded["tok_model_output_len"]
    assert [lengths[row] for row in tab.value(matches)] == sorted(lengths, reverse=True)


def test_the_keyboard_is_enough(tab: Tab, results: Path) -> None:
    tab.open(f"file://{results}/offline/accuracy/report.html")
    tab.until(READY)
    tab.press("/", "/")
    assert tab.value("document.activeElement.id") == "search"
    tab.type("question")
    tab.until("find('count').textContent === '112 found in 120 samples'")
    tab.value("find('rows').querySelector('button').focus()")
    for key in ("ArrowDown", "ArrowDown", "ArrowUp"):
        tab.press(key)
    tab.press("Enter", "\r")
    tab.until(f"opened === {len(HOSTILE) + 1} && document.activeElement.matches('#detail h3')")
    tab.press("j", "j")
    tab.until(f"opened === {len(HOSTILE) + 2} && document.activeElement.matches('#detail h3')")
    tab.press("Escape")
    assert tab.value("document.activeElement.dataset.row") == str(len(HOSTILE) + 2)
    assert tab.complaints == []


def test_a_phone_scrolls_in_one_direction_and_print_has_no_browser(tab: Tab, results: Path) -> None:
    tab.show(PHONE, dark=True)
    tab.open(f"file://{results}/server/performance/report.html")
    tab.until(READY)
    assert tab.value("document.documentElement.scrollWidth") == PHONE[0]
    assert tab.value("getComputedStyle(document.body).backgroundColor") == "rgb(20, 22, 26)"
    tab.show(media="print", dark=True)
    assert tab.value("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert tab.value("getComputedStyle(find('samples')).display") == "none"
    tab.show()


def test_a_page_of_full_size_opens_and_is_searched(tab: Tab, tmp_path: Path) -> None:
    full_size(tmp_path)
    report = write_report(tmp_path)
    assert report.stat().st_size < 30e6
    tab.open(f"file://{report}")
    tab.until(READY)
    assert tab.value("find('count').textContent") == "4,388 of 4,388 samples"
    assert tab.value("find('rows').rows.length") == 50
    assert tab.value("document.querySelectorAll('*').length") < 5000
    frame = pd.read_parquet(tmp_path / "results_evaluated.parquet")
    for row in (4387, 0):
        tab.value(f"open({row})")
        shown = tab.value("find('detail').querySelector('details:nth-of-type(2) pre').textContent")
        assert shown == frame["model_output"][row].strip()
    wanted = frame["model_output"][2000][3000:3060].replace("\n", " ")
    tab.value(f"find('search').value = {wanted!r}; update()")
    assert 2000 in tab.value("shown.map((sample) => sample.row)") or "\n" in wanted
    assert tab.complaints == []


CELLS = """[...document.querySelectorAll('table')].map((table) =>
  [...table.rows].map((row) => [...row.cells].map((cell) => cell.textContent)))"""


def check_page(tab: Tab, page: Path) -> list[list[list[str]]]:
    """Open a page in every size and colour. Returns the cells of its tables."""
    tab.open(f"file://{page}")
    for size, dark in ((DESK, False), (PHONE, True)):
        tab.show(size, dark)
        assert tab.value("document.documentElement.scrollWidth <= window.innerWidth")
    tab.show()
    assert tab.value("document.title") != "it has run"
    assert tab.value("document.querySelectorAll('main script, main img, main iframe').length") == 0
    assert tab.complaints == []
    tables: list[list[list[str]]] = tab.value(CELLS)
    return tables


def test_a_comparison_shows_hostile_answers_as_text(tab: Tab, tmp_path: Path) -> None:
    folders = [
        write_run(tmp_path / name, [f"{text}{name}" for text in HOSTILE], questions=HOSTILE)
        for name in "ab"
    ]
    runs = [read_run(name, folder) for name, folder in zip("AB", folders, strict=True)]
    compare_page.write(runs, [compare(*runs)], tmp_path / "compare.html")
    [samples] = [
        table for table in check_page(tab, tmp_path / "compare.html") if table[0][0] == "row"
    ]
    assert [row[-2:] for row in samples[1:]] == [["a", "b"]] * len(HOSTILE)
    assert samples[1][-3] == f"…{HOSTILE[0]}"


def test_a_sweep_shows_the_figures_of_its_runs(tab: Tab, results: Path, tmp_path: Path) -> None:
    engine = Engine("<b>echo</b>", "echo", Path("python"), 0, (), {})
    folder = results / "server" / "performance"
    points = [
        Result(Point(engine, {"target-qps": 60}, (), "server", folder)),
        Result(Point(engine, {"target-qps": 90}, (), "server", tmp_path / "none")),
    ]
    sweep_page.write(points, tmp_path, tmp_path / "sweep.html")
    record = read_json(folder / "run.json")
    assert record
    figures = record["figures"]
    [rows] = [
        table for table in check_page(tab, tmp_path / "sweep.html") if table[0][-1] == "verdict"
    ]
    assert [row[0] for row in rows[1:]] == [f"<b>echo</b> target-qps={rate}" for rate in (60, 90)]
    assert rows[1][2:6] == [
        f"{figures['samples_per_second']:.3f}",
        f"{figures['tokens_per_second']:.1f}",
        f"{figures['ttft_p99_ms']:.1f}",
        f"{figures['tpot_p99_ms']:.2f}",
    ]
    assert rows[2][2:] == ["-", "-", "-", "-", "", "not run yet"]
