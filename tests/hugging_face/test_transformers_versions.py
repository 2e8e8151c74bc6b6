"""`wcodec.transformers` with other versions of transformers than the one that all other tests run
with: the oldest, and newer ones.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from paths import ROOT

FILES = [
    "test_transformers.py",
    "test_transformers_errors.py",
    "test_transformers_parallel.py",
    "test_transformers_saving.py",
]
HERE = Path(__file__).parent


def run(*line: str | Path) -> str:
    done = subprocess.run(
        line,
        cwd=ROOT,
        env={**os.environ, "PYTEST_ADDOPTS": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    return done.stdout


@pytest.mark.exhaustive
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("version", ["5.16.0", "5.17.0", "5.20.2", "5.24.0"])
def test_another_version(tmp_path: Path, version: str) -> None:
    """In an environment of its own, which has all other packages from this one."""
    run(sys.executable, "-m", "venv", tmp_path)
    python = tmp_path / "bin" / "python"
    (own,) = tmp_path.glob("lib/python*/site-packages")
    (own / "others.pth").write_text(sysconfig.get_path("purelib"))
    run(
        python,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        f"transformers=={version}",
    )
    assert (
        run(python, "-c", "import transformers; print(transformers.__version__)").strip() == version
    )
    run(python, "-m", "pytest", "-p", "no:cacheprovider", *(HERE / name for name in FILES))
