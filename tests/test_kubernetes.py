"""The manifests for Kubernetes, checked without a cluster by its client and against its schema."""

import shutil
import subprocess
from pathlib import Path

import pytest

MANIFESTS = sorted((Path(__file__).parent.parent / "docker" / "kubernetes").glob("*.yaml"))
RELEASE = "1.31"  # of Kubernetes

each = pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)


@each
def test_the_client_reads_a_manifest(path: Path) -> None:
    if not shutil.which("kubectl"):
        pytest.skip("kubectl is not installed")
    words = ["kubectl", "label", "--local", "--output=name", "-f", str(path), "checked=yes"]
    ended = subprocess.run(words, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    kinds = [line.partition(".")[0].partition("/")[0] for line in ended.stdout.splitlines()]
    expected = {
        "torchrun.yaml": ["service", "job"],
        "servers.yaml": ["service", "statefulset"],
        "servers-run.yaml": ["job"],
    }
    assert kinds == expected[path.name]


@each
def test_a_manifest_fits_the_schema(path: Path) -> None:
    validation = pytest.importorskip("kubernetes_validate")
    yaml = pytest.importorskip("yaml")
    for resource in yaml.safe_load_all(path.read_text()):
        validation.validate(resource, RELEASE, strict=True)
