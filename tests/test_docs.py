"""The pages agree with the code: options, links, and one place for an engine's option."""

import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import entrypoint

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), ROOT / "docker" / "README.md"])


def test_the_options_page_is_what_the_parsers_say(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLPERF_BACKEND", "MLPERF_MIRROR", "MLPERF_MODEL"):
        monkeypatch.setenv(name, "pytorch")  # shall make no difference
    made = runpy.run_path(str(ROOT / "docs" / "make_options.py"))["page"]()
    assert made == (ROOT / "docs" / "options.md").read_text(encoding="utf-8"), (
        "run: python docs/make_options.py"
    )


def test_an_engine_option_is_one_edit(tmp_path: Path) -> None:
    for package in entrypoint.OURS:
        shutil.copytree(
            ROOT / package, tmp_path / package, ignore=lambda *_: ["tiny", "__pycache__"]
        )
    for file in ROOT.glob("*.py"):
        shutil.copy(file, tmp_path)
    types = tmp_path / "backends" / "types.py"
    text = types.read_text()
    mark = "    coalesce: bool = False"
    assert mark in text
    added = (
        '    draft_tree: int = option(7, "--draft-tree", "branches", engines={"vllm": "tree"})\n'
    )
    types.write_text(text.replace(mark, added + mark))

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, *words]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    shown = run("run_eval.py", "--help").stdout
    assert re.search(r"--draft-tree N\s+vllm: branches \(default: 7\)", shown), shown
    model = ("--model", str(tmp_path), "--input-file", "none.pkl", "--draft-tree", "8")
    refused = run("run_eval.py", "--backend", "sglang", *model)
    assert "backend sglang does not support --draft-tree" in refused.stderr
    code = (
        "from backends.options import own_arguments\nfrom backends.types import EngineConfig\n"
        "print(own_arguments('vllm', EngineConfig('m', draft_tree=8))['tree'])"
    )
    assert run("-c", code).stdout == "8\n"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
        if link.startswith("http"):
            continue
        path, _, heading = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        if heading:
            titles = re.findall(r"^#+ (.+)$", target.read_text(encoding="utf-8"), re.M)
            slugs = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}
            assert heading in slugs, link
