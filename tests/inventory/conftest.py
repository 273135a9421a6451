"""Makes the oracle and the rank spawner of tests/megatron importable, here and in spawned ranks."""

from __future__ import annotations

import os
import sys
from pathlib import Path

TESTS = Path(__file__).parent.parent
# Appended: "megatron" must go on meaning the installed package.
for folder in (Path(__file__).parent, TESTS / "megatron", TESTS):
    if str(folder) not in sys.path:
        sys.path.append(str(folder))

os.environ.setdefault("OMP_NUM_THREADS", "1")
