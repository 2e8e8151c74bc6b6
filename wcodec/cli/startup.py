"""NumPy, imported first and without the threads of its linear algebra, which no command uses.

They turn in circles for some 0.1 s at the start, on cores that have work to do. Processes that a
command starts keep the setting of the user.
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
