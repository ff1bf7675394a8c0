"""`python -m tests.fuzz TARGET [atheris options] [CORPUS]`: coverage-guided, until told to stop."""

import sys

import atheris

with atheris.instrument_imports():
    from tests.fuzz.targets import TARGETS

name = sys.argv.pop(1)
atheris.Setup(sys.argv, TARGETS[name])
atheris.Fuzz()
