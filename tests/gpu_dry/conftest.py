"""Makes the modules of tests/gpu importable: pytest does not collect there, but what needs no CUDA is tested here."""

from __future__ import annotations

import os
import sys
from pathlib import Path

TESTS = Path(__file__).parent.parent
for folder in (TESTS / "gpu", TESTS):
    if str(folder) not in sys.path:
        sys.path.append(str(folder))

os.environ.setdefault("OMP_NUM_THREADS", "1")
