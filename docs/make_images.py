"""Make the README's pictures, of a run on the bundled model: python docs/make_images.py

Needs the environment of ./setup.sh --backend pytorch, and Chromium.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
IMAGES = ROOT / "docs" / "images"
TINY = ROOT / "data" / "tiny"
WIDTH = 980  # pixels
LOADED = "/samples$/.test(find('count').textContent)"
WRONG = "samples.find((sample) => sample.grade === 'wrong' && sample.task === 'mmlu_pro').row"


def main() -> None:
    """Run, then take the pictures."""
    with tempfile.TemporaryDirectory() as folder:
        words = ("--backend", "pytorch", "--model", "data/tiny/model", "--accuracy")
        files = ("--input-file", "data/tiny/final_output.pkl", "--output-dir", folder)
        subprocess.run([sys.executable, "run_mlperf.py", *words, *files], cwd=ROOT, check=True)
        take(Path(folder) / "offline" / "accuracy")


def take(results: Path) -> None:
    """Take the pictures of a run's report."""
    from tests.browser import browser

    with browser() as tab:
        tab.show((WIDTH, 1000))
        tab.open(f"file://{results}/report.html").until(LOADED)
        tab.picture(IMAGES / "report.png")
        tab.show((WIDTH, 560), dark=True)
        tab.value("find('grade').value = 'wrong'; update()")
        tab.value(f"open({WRONG}, false)")
        tab.value("find('samples').scrollIntoView()")
        tab.picture(IMAGES / "samples.png")


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
