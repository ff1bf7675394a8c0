from __future__ import annotations

from dataclasses import replace

import pytest

from meterd.errors import EncodingError
from meterd.ledger.account import Genesis, Meter, Node, decode_genesis, decode_parameters
from meterd.ledger.encoding import decode, encode
from tests.ledger.examples import EXPORT, GENESIS, IMPORT, KEY, PARAMETERS, changed

PUBLIC = bytes(KEY.verify_key)
STREET = Genesis(
    name="elm-street",
    interval_s=900,
    zone="Asia/Kolkata",
    currency="INR",
    nodes=(
        Node(name="north", role="distributor", sealing_key=PUBLIC, voting_key=bytes(32), votes=1),
        Node(name="east", role="meter", sealing_key=PUBLIC, voting_key=b"", votes=0),
    ),
    meters=(
        Meter(
            name="east",
            incarnation=1,
            sealing_key=PUBLIC,
            fuse_ma=60_000,
            nominal_mv=230_000,
            mains_clamps=3,
        ),
        Meter(
            name="west",
            incarnation=2,
            sealing_key=PUBLIC,
            fuse_ma=25_000,
            nominal_mv=230_000,
            mains_clamps=1,
        ),
    ),
    recipients=(("north", "distributor", bytes(32)),),
)


@pytest.mark.parametrize("genesis", [GENESIS, STREET], ids=["alone", "a street"])
def test_a_genesis_is_read_as_it_was_written(genesis: Genesis) -> None:
    assert decode_genesis(genesis.encode()) == genesis


def test_a_standalone_network_bears_its_meters_name_or_its_own() -> None:
    assert (GENESIS.name, GENESIS.meters[0].name, GENESIS.nodes[0].name) == ("kitchen-12",) * 3
    assert [(node.role, node.votes) for node in GENESIS.nodes] == [("meter", 0)]
    assert replace(GENESIS, name="other").hash != GENESIS.hash


def test_a_meter_is_found_by_its_name() -> None:
    assert STREET.meter("west").incarnation == 2
    with pytest.raises(EncodingError, match="network elm-street has no meter south"):
        STREET.meter("south")


@pytest.mark.parametrize(
    ("place", "new", "message"),
    [
        pytest.param((0,), "meterd/genesis/v2", "expected meterd/genesis", id="of a new version"),
        pytest.param((0,), 1, "not a genesis", id="without a context"),
        pytest.param((1,), "Elm Street", "a name in the genesis", id="misnamed"),
        pytest.param((1,), "", "a name in the genesis", id="nameless"),
        pytest.param((1,), "e" * 33, "a name in the genesis", id="named too long"),
        pytest.param((2,), 0, "does not divide a day", id="of intervals of 0 s"),
        pytest.param((2,), 7, "does not divide a day", id="of intervals of 7 s"),
        pytest.param((2,), 172_800, "does not divide a day", id="of intervals of two days"),
        pytest.param((3,), b"UTC", "not a genesis", id="whose zone is bytes"),
        pytest.param((5, 0), ["north"], "misshapen", id="with half a node"),
        pytest.param((5, 0, 0), "nörth", "a name in the genesis", id="with a misnamed node"),
        pytest.param((5, 0, 1), "owner", "no known role", id="with an unknown role"),
        pytest.param((5, 0, 2), bytes(31), "sealing key", id="with a node's short key"),
        pytest.param((5, 0, 3), bytes(31), "without a voting key", id="with a short voting key"),
        pytest.param((5, 0, 4), 2, "no known role or vote", id="with two votes for one"),
        pytest.param((6, 0), ["east", 1], "misshapen", id="with half a meter"),
        pytest.param((6, 0, 0), "east\n", "a name in the genesis", id="with a misnamed meter"),
        pytest.param((6, 0, 1), 0, "incarnation", id="with incarnation 0"),
        pytest.param((6, 0, 2), bytes(33), "sealing key", id="with a meter's long key"),
        pytest.param((7, 0), ["north"], "misshapen", id="with half a recipient"),
        pytest.param((7,), 0, "not a genesis", id="whose recipients are a number"),
    ],
)
def test_a_genesis_is_refused(place: tuple[int, ...], new: object, message: str) -> None:
    spelt = encode(changed(decode(STREET.encode()), place, new))
    with pytest.raises(EncodingError, match=message):
        decode_genesis(spelt)


def test_a_genesis_of_one_item_more_is_refused() -> None:
    with pytest.raises(EncodingError, match="not a genesis"):
        decode_genesis(encode([*decode(STREET.encode()), 0]))


def test_a_parameter_record_is_read_as_it_was_written() -> None:
    assert decode_parameters(PARAMETERS.encode()) == PARAMETERS


@pytest.mark.parametrize(
    ("place", "new", "message"),
    [
        pytest.param((0,), "meterd/block/v1", "expected meterd/parameters", id="of another kind"),
        pytest.param((3,), "1", "not a parameter record", id="whose sequence is text"),
        pytest.param((5, 0), 0, "misshapen", id="with a role that is a number"),
        pytest.param((6, 0), [IMPORT], "misshapen", id="with half a register"),
        pytest.param((7, 0), ["fuse"], "misshapen", id="with half a setting"),
        pytest.param((7, 0), ["fuse", 60], "misshapen", id="with a setting that is a number"),
    ],
)
def test_a_parameter_record_is_refused(place: tuple[int, ...], new: object, message: str) -> None:
    spelt = encode(changed(decode(PARAMETERS.encode()), place, new))
    with pytest.raises(EncodingError, match=message):
        decode_parameters(spelt)


def test_what_differs_from_an_old_record_is_told_with_old_and_new_value() -> None:
    new = replace(
        PARAMETERS,
        software_id=bytes(32),
        registers=((IMPORT, 1), (EXPORT, 1)),
        settings=(("board.vest", "240"), ("meter.fuse_a", "50")),
    )
    assert new.changes_from(PARAMETERS) == (
        ("board.polling_ms", "5000", ""),
        ("board.vest", "", "240"),
        ("meter.fuse_a", "60", "50"),
        ("software", PARAMETERS.software_id.hex(), "00" * 32),
    )
    assert PARAMETERS.changes_from(PARAMETERS) == ()
