"""Workers that share jobs: the first failure ends them all, and is raised where they were put to work."""

from __future__ import annotations

from mapspec.crew.post import Crew, Post, Stopped, Tally
from mapspec.crew.processes import Processes, can_fork
from mapspec.crew.threads import Threads

__all__ = ["Crew", "Post", "Processes", "Stopped", "Tally", "Threads", "can_fork"]
