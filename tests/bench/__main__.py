"""`make bench`: prints each aim as met or missed; fails nothing.

python -m tests.bench               all parts
python -m tests.bench street year   some
"""

from __future__ import annotations

import sys
from importlib import import_module

PARTS = (
    "pipeline",
    "daemon",
    "audit",
    "street",
    "committee",
    "growth",
    "absence",
    "year",
    "passphrase",
)


def main(names: list[str]) -> None:
    """Tell the figures of these parts, or of all."""
    for name in names or PARTS:
        if name not in PARTS:
            sys.exit(f"no part {name}: there are {', '.join(PARTS)}")
        print(f"--- {name}", flush=True)
        import_module(f"tests.bench.{name}").main()


main(sys.argv[1:])
