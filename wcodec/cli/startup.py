"""NumPy, imported first and without the threads of its linear algebra, which gain commands nothing.

They turn in circles for some 0.1 s at the start, on cores that have work to do. A program that
imports NumPy itself before this keeps them, and the environment stays as it was.
"""

from __future__ import annotations

import os
import sys
from typing import Final

SETTING: Final = "OPENBLAS_NUM_THREADS"

if "numpy" not in sys.modules and SETTING not in os.environ:
    os.environ[SETTING] = "1"
    try:
        import numpy  # noqa: F401
    finally:
        del os.environ[SETTING]
