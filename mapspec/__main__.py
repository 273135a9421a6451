"""`python -m mapspec`."""

from mapspec.cli import main

main()
