"""Where things are in a checkout."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

TESTS: Final = Path(__file__).resolve().parent
ROOT: Final = TESTS.parent
SPEC: Final = ROOT / "spec" / "wcodec.md"
VECTORS: Final = ROOT / "conformance_vectors"
TOOLS: Final = ROOT / "tools"
#: for processes that tests start: the package, and the modules beside this one
PYTHONPATH: Final = os.pathsep.join(map(str, (ROOT, TESTS, TESTS / "backends")))
