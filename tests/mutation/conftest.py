"""Makes the helpers beside the tests importable; see tests/megatron/conftest.py."""

from __future__ import annotations

import os
import sys
from pathlib import Path

TESTS = Path(__file__).parent.parent
for folder in (Path(__file__).parent, TESTS, TESTS / "megatron"):
    if str(folder) not in sys.path:
        sys.path.append(str(folder))

os.environ.setdefault("OMP_NUM_THREADS", "1")
