"""Rules and lines of a board for tests."""

from __future__ import annotations

from meterd.metering.board import LAYOUTS, BoardDecoder, BoardRules, Clamp

MAINS = Clamp(name="mains", role="mains")
CIRCUIT = Clamp(name="boiler", role="circuit")
UNUSED = Clamp(name="spare", role="unused")
KEY = b"\x43\x2d\x7c\x19"
GOOD = b"11 374.0 0.0 0.0 1600.0 0.0 0.0 243.87\r\n"


def rules(layout: str = "rpict3v1", *clamps: Clamp, fields: str = "") -> BoardRules:
    return BoardRules(
        layout=layout,
        fields=(tuple(fields.split()),) if fields else LAYOUTS[layout],
        clamps=clamps or (MAINS,),
        polling_ms=5000,
    )


def custom(fields: str, *clamps: Clamp) -> BoardRules:
    return rules("custom", *clamps, fields=fields)


def opened(board_rules: BoardRules) -> BoardDecoder:
    """Return a decoder that is past the line that the opening of the port may have cut."""
    board = BoardDecoder(board_rules)
    board.receive(b"\r\n", at_ms=0)
    return board
