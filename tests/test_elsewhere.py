"""Systems that lack what only Linux has, as a laptop may."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from test_convert import there_and_back

# What macOS has not, taken away before anything of mapspec is imported.
ELSEWHERE = """\
import ctypes, io, multiprocessing.connection, os, shutil, subprocess, sys, sysconfig, tempfile
sysconfig.get_config_vars()  # this build's, which is for Linux
for name in ("posix_fallocate", "posix_fadvise", "sched_getaffinity"):
    delattr(os, name)
real_library, real_open = ctypes.CDLL, io.open
class Library:
    def __init__(self, *args, **options):
        self.real = real_library(*args, **options)
    def __getattr__(self, name):
        if name in ("prctl", "sync_file_range"):
            raise AttributeError(name)
        return getattr(self.real, name)
def open_(file, *args, **options):
    if str(file).startswith("/proc/"):
        raise FileNotFoundError(2, "No such file or directory", str(file))
    return real_open(file, *args, **options)
ctypes.CDLL, io.open, sys.platform = Library, open_, "darwin"
from mapspec.cli import main
main()
"""


def command(*arguments: object) -> str:
    words = [sys.executable, "-c", ELSEWHERE, *map(str, arguments)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_conversion_needs_nothing_of_linux(tmp_path: Path) -> None:
    source = there_and_back(tmp_path, 2) / "hf"
    command("convert", source, tmp_path / "megatron-2", "--progress", "json")
    command("convert", tmp_path / "megatron-2", tmp_path / "hf-2", "--io", "network", "--threads", "2")
    assert "as written by mapspec" in command("verify", tmp_path / "megatron-2")
    for path in source.glob("*.safetensors"):
        assert (tmp_path / "hf-2" / path.name).read_bytes() == path.read_bytes()
