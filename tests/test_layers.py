"""Imports run one way, and heavy packages are imported only where they are used."""

import ast
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LAYERS = ("ref_dsinfer", "backends", "data", "grading", "mlperf")  # each may import those before it
# What any package may import, and what these need but for the standard library
AT_THE_TOP: dict[str, set[str]] = {
    "benchmark": set(),
    "errors": set(),
    "terminal": set(),
    "entrypoint": {"errors", "terminal"},
}
SCRIPTS = sorted(path.name for path in ROOT.glob("*.py") if path.stem not in AT_THE_TOP)
# Entry scripts reach these before they know what to do, so at import time they need nothing but
# the standard library. The engine in ref_dsinfer may import torch, and the others theirs: nobody
# imports these modules before an engine is chosen.
OF_THE_ENGINE = {"torch", "safetensors", "triton", "numpy", "psutil"}
HEAVY_AT_IMPORT = {
    "backends/drive.py": {"numpy"},
    "backends/pytorch.py": OF_THE_ENGINE,
    "backends/vllm.py": {"vllm", "psutil"},
    "backends/nodes.py": {"torch"},
    "backends/dialect.py": {"msgspec"},
    "backends/endpoint.py": {"msgspec"},
    "backends/endpoints.py": {"msgspec"},
    "backends/keeper.py": {"psutil"},
    "backends/http_client.py": {"httptools"},
    "backends/vllm_server.py": {"msgspec"},
    "backends/sglang_args.py": {"sglang", "torch", "psutil"},
    "backends/sglang_server.py": {"msgspec"},
    "mlperf/page/blocks.py": {"markupsafe"},
    "mlperf/page/charts.py": {"markupsafe"},
    "mlperf/page/document.py": {"jinja2", "markupsafe"},
    "mlperf/page/text.py": {"markupsafe"},
    "mlperf/report_page/figures.py": {"markupsafe"},
    "mlperf/report_page/samples.py": {"markupsafe"},
    "mlperf/report_page/tables.py": {"markupsafe"},
}
# Entry scripts that lie in a package, so they may import what a script may. `generate` tries the
# engine by hand, and makes its prompts by data.prompts as every other run does.
COMMANDS = {"ref_dsinfer/generate.py"}
STANDARD = sys.stdlib_module_names
# these make the bundled model and data; no other module imports them
TOOLS = ROOT / "data" / "tiny"


def modules() -> list[Path]:
    paths = [path for layer in LAYERS for path in (ROOT / layer).rglob("*.py")]
    return sorted(path for path in paths if TOOLS not in path.parents)


def imports(nodes: Iterable[ast.AST], at_import_only: bool) -> Iterator[str]:
    """Names of imported modules, in order; types for the checker alone are not imported."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide the layer"
            yield node.module or ""
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from imports(node.orelse, at_import_only)
        elif not (at_import_only and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)):
            yield from imports(ast.iter_child_nodes(node), at_import_only)


def parsed(path: Path) -> list[ast.stmt]:
    return ast.parse(path.read_text(), str(path)).body


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_imports_its_own_layer_and_those_below(path: Path) -> None:
    relative = path.relative_to(ROOT)
    layer = LAYERS[-1] if str(relative) in COMMANDS else relative.parts[0]
    above = {*LAYERS[LAYERS.index(layer) + 1 :], *(Path(name).stem for name in SCRIPTS)}
    assert not {name for name in imports(parsed(path), False) if name.split(".")[0] in above}


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_heavy_packages_are_imported_where_they_are_used(path: Path) -> None:
    relative = path.relative_to(ROOT)
    own = OF_THE_ENGINE if relative.parts[0] == "ref_dsinfer" else set()
    allowed = {*STANDARD, *LAYERS, *AT_THE_TOP} | HEAVY_AT_IMPORT.get(str(relative), own)
    assert not {name for name in imports(parsed(path), True) if name.split(".")[0] not in allowed}


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_imports_nothing_heavy(script: str) -> None:
    packages = {name.split(".")[0] for name in imports(parsed(ROOT / script), False)}
    assert packages <= {*STANDARD, *LAYERS, *AT_THE_TOP}


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_imports_inside_main_where_an_interrupt_is_a_line(script: str) -> None:
    assert list(imports(parsed(ROOT / script), True)) == ["entrypoint"]


@pytest.mark.parametrize(("module", "needed"), AT_THE_TOP.items())
def test_what_lies_at_the_top_needs_next_to_nothing(module: str, needed: set[str]) -> None:
    imported = set(imports(parsed(ROOT / f"{module}.py"), False))
    assert {name for name in imported if name.split(".")[0] not in STANDARD} == needed


def test_no_module_imports_a_command() -> None:
    commands = {name.removesuffix(".py").replace("/", ".") for name in COMMANDS}
    assert not {name for path in modules() for name in imports(parsed(path), False)} & commands


def test_the_nouns_import_the_finish_reasons_alone() -> None:
    imported = imports(parsed(ROOT / "backends" / "types.py"), False)
    ours = {name for name in imported if name.split(".")[0] in (*LAYERS, *AT_THE_TOP)}
    assert ours == {"ref_dsinfer.sequence"}
    imported = imports(parsed(ROOT / "ref_dsinfer" / "sequence.py"), False)
    assert {name.split(".")[0] for name in imported} <= STANDARD


def test_only_these_know_the_tokenizer() -> None:
    users = {
        str(path.relative_to(ROOT))
        for path in modules()
        if any(
            name.split(".")[0] in ("transformers", "tokenizers")
            for name in imports(parsed(path), False)
        )
    }
    assert users == {"data/prompts.py"}


@pytest.mark.parametrize(
    ("code", "at_import", "anywhere"),
    [
        ("import a.b, c", ["a.b", "c"], None),
        ("from a import b", ["a"], None),
        ("def f():\n import a", [], ["a"]),
        ("class C:\n import a\n def f(self):\n  import b", ["a"], ["a", "b"]),
        ("try:\n import a\nexcept E:\n import b\nfinally:\n import c", ["a", "b", "c"], None),
        ("if TYPE_CHECKING:\n import a\nelse:\n import b", ["b"], None),
        ("with x:\n for y in z:\n  while w:\n   import a", ["a"], None),
        ("match x:\n case 1:\n  import a", ["a"], None),
    ],
)
def test_the_walk_finds_imports(
    code: str, at_import: list[str], anywhere: list[str] | None
) -> None:
    body = ast.parse(code).body
    assert list(imports(body, True)) == at_import
    assert list(imports(body, False)) == (anywhere or at_import)
