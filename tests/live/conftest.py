"""Makes the helpers beside the tests importable, here and in the processes that the tests start."""

from __future__ import annotations

import os
import sys
from pathlib import Path

# Appended, as in tests/megatron: "megatron" must go on meaning the installed package.
_TESTS = Path(__file__).parent.parent
for folder in (Path(__file__).parent, _TESTS / "megatron", _TESTS):
    if str(folder) not in sys.path:
        sys.path.append(str(folder))

os.environ.setdefault("OMP_NUM_THREADS", "1")
