"""Makes the helpers beside the tests importable, here and in the processes that the tests start."""

from __future__ import annotations

import os
import sys
from pathlib import Path

# Appended, and without an __init__.py here: "megatron" must go on meaning the installed package.
for folder in (Path(__file__).parent, Path(__file__).parent.parent):
    if str(folder) not in sys.path:
        sys.path.append(str(folder))

# Two workers share two cores; the tiny models gain nothing from more threads.
os.environ.setdefault("OMP_NUM_THREADS", "1")
