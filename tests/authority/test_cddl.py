"""What a street says is as it is written down for others."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import cbor2
import pytest
from cddl_verifier import Validator

import meterd.ledger
from meterd.authority.attestation import Header, sign_batch
from meterd.authority.certificate import (
    add_spelt_order,
    seals_evidence,
    spell_order,
    votes_evidence,
)
from meterd.authority.messages import blocks_message
from meterd.enrolment import Enrolment, prove
from meterd.ledger.alarm import seal_alarm
from meterd.ledger.encoding import decode, encode, seal, take_apart
from meterd.ledger.event import Event
from meterd.ledger.order import Rotate
from meterd.ledger.pruning import (
    PRUNED_CONTEXT,
    RECOVERED_CONTEXT,
    Pruned,
    Recovered,
    _signed,
    read_pruned,
    read_recovered,
    seal_pruned,
    seal_recovered,
)
from meterd.peer import _status
from tests.authority.examples import (
    CHANGES,
    ENROL,
    FIRST_BLOCK,
    GENESIS,
    HOUSE,
    NEXT_EPOCH,
    ROSTER,
    SECOND_BLOCK,
    SHORTER,
    THIRD_BLOCK,
    batch,
    batch_message,
    certificate,
    chain,
    key,
    leaf,
    order,
    ordered,
    proof,
    public,
    receipt,
    sealed,
)
from tests.authority.said import BODIES, message_of
from tests.ledger.alarms import ALARM, STARTED, WIDEST
from tests.ledger.examples import IMPORT, changed

if TYPE_CHECKING:
    from meterd.ledger.encoding import Value
    from meterd.ledger.event import Details

SCHEMA = Path(meterd.ledger.__file__).with_name("meterd.cddl")
LIAR = "regulator"
FORK = FIRST_BLOCK._replace(flags=8)
HEADS = [leaf(FIRST_BLOCK), leaf(order(ENROL))]
CLOSING = sign_batch(Header(1, 2, bytes(32), 0, 2), [], key("regulator votes"), GENESIS.hash)
ORDERS = {kind: order(change) for kind, change in CHANGES.items()}
BATCH = batch_message(HEADS, LIAR)
PROOF = proof(FIRST_BLOCK, LIAR)[0]
CERTIFICATE = certificate(FIRST_BLOCK, above=[SECOND_BLOCK, THIRD_BLOCK]).encode()
RECEIPT = receipt(network=ordered(NEXT_EPOCH, SHORTER)).encode()
SEALS = seals_evidence(sealed(FIRST_BLOCK), sealed(FORK))
VOTES = votes_evidence(proof(FIRST_BLOCK, LIAR), proof(chain(2)[1], LIAR), [SECOND_BLOCK.encode()])
BLOCKS = blocks_message((sealed(FIRST_BLOCK), sealed(SECOND_BLOCK)))
ENROLMENT = Enrolment(
    "elm-street",
    HOUSE,
    "meter",
    public("house-1 seals"),
    public("house-1 votes"),
    1,
    60_000,
    230_000,
    1,
)
FEEDER = ENROLMENT._replace(role="concentrator", fuse_ma=0, nominal_mv=0, mains_clamps=0)
HOME = ROSTER.open_chain((HOUSE, 1))
GONE = Pruned(segment=1, rows=360, digest=bytes(range(32)))
BACK = Recovered(
    height=2,
    block_hash=SECOND_BLOCK.hash,
    run=4,
    measured_ms=65_000,
    carried=((IMPORT, 0, 7_200_000),),
    parameters=bytes(range(32)),
)
CARRIED: list[Value] = [list(one) for one in BACK.carried]
SPELT = spell_order(*ordered(ENROL).certified[0])

MESSAGES: dict[str, tuple[str, bytes]] = {
    **{f"order: {kind}": ("order", item.encode()) for kind, item in ORDERS.items()},
    **{f"sealed order: {kind}": ("sealed-order", sealed(item)) for kind, item in ORDERS.items()},
    "enrol of what never votes": ("order", order(ENROL._replace(voting_key=b"")).encode()),
    "batch": ("batch", BATCH),
    "closing batch": ("batch", CLOSING),
    "what a batch's signature is over": ("signed-batch", batch(HEADS, LIAR).signed),
    "leaf": ("leaf", encode(list(leaf(FIRST_BLOCK)))),
    "COSE receipt": ("cose-receipt", PROOF),
    "certificate": ("certificate", CERTIFICATE),
    "receipt": ("receipt", receipt().encode()),
    "receipt with orders": ("receipt", RECEIPT),
    "evidence of seals": ("evidence", SEALS),
    "evidence of orders": (
        "evidence",
        seals_evidence(sealed(ORDERS["enrol"]), sealed(ORDERS["revoke"])),
    ),
    "evidence of votes": ("evidence", VOTES),
    "blocks": ("blocks", BLOCKS),
    "certified order": ("certified-order", SPELT),
    "enrolment": ("enrolment", ENROLMENT.signed_bytes),
    "enrolment of what meters nothing": ("enrolment", FEEDER.signed_bytes),
    "what the seal of pruned is over": ("pruned", _signed(PRUNED_CONTEXT, GONE, HOME)),
    "what the seal of recovered is over": (
        "recovered",
        _signed(RECOVERED_CONTEXT, [*BACK[:-2], CARRIED, BACK.parameters], HOME),
    ),
    "status": ("status", _status(HOUSE, online=True)),
    "last will": ("status", _status(HOUSE, online=False)),
    "alarm": ("alarm", ALARM.encode()),
    "alarm of a start": ("alarm", STARTED.encode()),
    "longest alarm": ("alarm", WIDEST.encode()),
    "sealed alarm": ("sealed-alarm", seal_alarm(ALARM, key("house-1 seals"), GENESIS.hash)),
    **{kind: ("said", message_of(kind)) for kind in BODIES},
    **{f"payload: {kind}": (kind, take_apart(message_of(kind)).payload) for kind in BODIES},
}


@pytest.fixture(scope="module")
def validator() -> Any:  # noqa: ANN401 - it has no types
    return Validator(SCHEMA)


def problems(validator: Any, message: bytes, rule: str) -> list[str]:  # noqa: ANN401
    result = validator.validate(message, root_type=rule)
    return [f"{found.path_text}: {found.message}" for found in result.diagnostics]


PARTS = {  # never sent by themselves to peers
    *("order", "signed-batch", "leaf", "cose-receipt", "certified-order", *BODIES),
    *("enrolment", "pruned", "recovered", "alarm"),
}


@pytest.mark.parametrize("name", MESSAGES)
def test_the_schema_takes(validator: Any, name: str) -> None:  # noqa: ANN401
    rule, message = MESSAGES[name]
    assert problems(validator, message, rule) == []
    assert (problems(validator, message, "message") == []) == (rule not in PARTS)


def test_what_is_signed_is_as_the_schema_says(validator: Any) -> None:  # noqa: ANN401
    protected, _, payload, _ = cbor2.loads(sealed(ORDERS["enrol"])).value
    signed = cbor2.dumps(["Signature1", protected, GENESIS.hash, payload])
    assert problems(validator, signed, "signed-order") == []
    assert problems(validator, signed, "signed-block") != []
    rotate = CHANGES["rotate"]
    assert isinstance(rotate, Rotate)
    said = encode(["meterd/rotation/v1", GENESIS.hash, *rotate[:3]])
    key("house-1 seals").verify_key.verify(said, rotate.old_signature)
    assert problems(validator, said, "rotation") == []


def test_the_two_keys_of_an_enrolment_sign_it_bare() -> None:
    signed = MESSAGES["enrolment"][1]
    keys = key("house-1 seals"), key("house-1 votes")
    for each, signature in zip(keys, prove(ENROLMENT, *keys), strict=True):
        each.verify_key.verify(signed, signature)


def event_of(kind: str, details: Details) -> Event:
    return Event(number=1, boot_ms=0, wall_ms=0, kind=kind, details=details)


def test_events_that_excuse_are_sealed_over_what_the_schema_says() -> None:
    own = key("house-1 seals")
    pruned = event_of("pruned", seal_pruned(GONE, HOME, own))
    recovered = event_of("recovered", seal_recovered(BACK, HOME, own))
    assert read_pruned(pruned, HOME) == GONE
    assert read_recovered(recovered, HOME) == BACK
    for event, name, shown in (
        (pruned, "what the seal of pruned is over", ("segment", "rows", "digest")),
        (
            recovered,
            "what the seal of recovered is over",
            ("height", "hash", "run", "measured_ms", "carried", "parameters"),
        ),
    ):
        signed = MESSAGES[name][1]
        own.verify_key.verify(signed, event.bytes_of("seal"))
        assert tuple(name for name, _ in event.details) == (*shown, "seal")
        values = [value for _, value in event.details[:-1]]
        if name.endswith("recovered is over"):
            values[-2] = decode(event.bytes_of("carried"))
        assert decode(signed)[4:] == tuple(values)


def test_a_certified_order_is_what_a_meter_takes() -> None:
    assert add_spelt_order(ROSTER, SPELT) == ordered(ENROL).roster


BROKEN = [
    ("order: enrol", (0,), "meterd/order/v2", "order of a new version"),
    ("order: enrol", (1,), bytes(31), "order with a short genesis"),
    ("order: enrol", (2,), "Grid", "order of a misnamed distributor"),
    ("order: enrol", (4,), 0, "order of height 0"),
    ("order: enrol", (8,), "tariff", "order of an unknown kind"),
    ("order: enrol", (8,), "revoke", "order of another kind than its body"),
    ("order: enrol", (9, 2), b"", "enrol without a sealing key"),
    ("order: enrol", (9, 3), bytes(31), "enrol with a short voting key"),
    ("order: enrol", (9, 7, 0, 2), 900, "enrol with a register as a number"),
    ("order: enrol", (9, 7, 0, 1), 2, "enrol with an unknown kind of register"),
    ("order: replace", (9, 3), b"", "replace without a final hash"),
    ("order: replace", (9, 4), 0, "replace by incarnation 0"),
    ("order: rotate", (9, 3), bytes(63), "rotate half signed"),
    ("order: revoke", (9, 2), b"stolen", "revoke for bytes"),
    ("order: roster", (9, 1, 0, 1), "owner", "roster with an unknown role"),
    ("order: roster", (9, 1, 0, 4), 2, "roster with two votes"),
    ("order: fork-resolve", (9, 5), b"", "fork-resolve without a key"),
    ("order: interval", (9, 0), 0, "interval of 0 s"),
    ("order: interval", (9, 0), 86_401, "interval of more than a day"),
    ("batch", (0,), "meterd/attest/v2", "batch of a new version"),
    ("batch", (1,), cbor2.dumps({1: -19}), "batch that says nothing of itself"),
    ("batch", (2,), bytes(63), "batch with a short signature"),
    ("batch", (3,), [list(HEADS[0])] * 257, "batch of 257 leaves"),
    ("batch", (3, 0, 1), 0, "batch with incarnation 0"),
    ("batch", (3, 0, 2), 0, "batch with height 0"),
    ("batch", (3, 0, 4), 8, "batch with an unknown check"),
    ("certificate", (0,), "meterd/certificate/v2", "certificate of a new version"),
    ("certificate", (4,), bytes(31), "certificate of a short hash"),
    ("certificate", (5, 0), 7, "certificate with a number above"),
    ("certificate", (6, 0), [b"", list(HEADS[0])], "certificate without a receipt"),
    ("certificate", (6, 0, 1), [], "certificate without a leaf"),
    ("receipt with orders", (0,), "meterd/receipt/v2", "receipt of a new version"),
    ("receipt with orders", (1,), FIRST_BLOCK.encode(), "receipt of a block without its seal"),
    ("receipt with orders", (2,), [], "receipt without a certificate"),
    ("receipt with orders", (3, 0, 0), sealed(FIRST_BLOCK), "receipt with a block for an order"),
    ("evidence of seals", (1,), FIRST_BLOCK.encode(), "evidence without a seal"),
    ("evidence of votes", (1, 0), b"", "evidence without a vote"),
    ("evidence of votes", (3, 0), 7, "evidence with a number between"),
    ("blocks", (1, 0), 7, "message of blocks that are numbers"),
    ("certified order", (0,), sealed(FIRST_BLOCK), "certified order that is a block"),
    ("certified order", (1,), [], "certified order without a certificate"),
    ("enrolment", (0,), "meterd/enrolment/v2", "enrolment of a new version"),
    ("enrolment", (1,), "Elm Street", "enrolment in a misnamed network"),
    ("enrolment", (3,), "owner", "enrolment in an unknown role"),
    ("enrolment", (4,), bytes(31), "enrolment with a short sealing key"),
    ("enrolment", (5,), b"", "enrolment without a voting key"),
    ("enrolment", (6,), 2, "enrolment with two votes"),
    ("what the seal of pruned is over", (0,), RECOVERED_CONTEXT, "seal of pruned for another"),
    ("what the seal of pruned is over", (1,), b"", "seal of pruned of no network"),
    ("what the seal of pruned is over", (4,), 0, "seal of pruned for segment 0"),
    ("what the seal of pruned is over", (6,), bytes(8), "seal of pruned for a short digest"),
    ("what the seal of recovered is over", (3,), 0, "seal of recovered of incarnation 0"),
    ("what the seal of recovered is over", (5,), b"", "seal of recovered behind no block"),
    ("what the seal of recovered is over", (8,), encode(CARRIED), "seal of recovered in bytes"),
    ("what the seal of recovered is over", (8, 0, 1), 2, "seal of recovered of an odd kind"),
    ("status", (0,), "meterd/status/v2", "status of a new version"),
    ("status", (1,), "House 1", "status of a misnamed node"),
    ("status", (2,), 2, "status that is neither"),
    ("alarm", (0,), "meterd/alarm/v2", "alarm of a new version"),
    ("alarm", (1,), "House 1", "alarm of a misnamed meter"),
    ("alarm", (3,), 0, "alarm of no event"),
    ("alarm", (5,), "Alarm", "alarm of a misspelt kind"),
    ("alarm", (6,), "Ann Smith", "alarm that names a person"),
    ("alarm", (7,), "", "alarm that leaves out a word"),
    ("alarm", (8, 0), ["case", 40], "alarm that stands since no time"),
    ("alarm", (8, 0, 0), "", "alarm that stands without a word"),
    ("alarm", (8,), [["case", 1, 0]] * 33, "alarm of 33 that stand"),
    ("payload: digest", (1,), "Feeder", "digest of a misnamed sender"),
    ("payload: digest", (3, 1), bytes(31), "digest with a short order"),
    ("payload: digest", (4,), [["house-1", 1, 1, bytes(32)]] * 257, "digest of 257 heads"),
    ("payload: digest", (5, 0, 0), bytes(7), "digest with a short key id"),
    ("payload: digest", (6, 0), bytes(31), "digest with short evidence"),
    ("payload: fetch", (4, 0, 0), "samples", "fetch of what nobody gives"),
    ("payload: fetch", (4, 0, 1), b"", "fetch of a chain named in bytes"),
    ("payload: fetch", (4,), [["evidence", bytes(32)]] * 65, "fetch with 65 questions"),
    ("payload: fetch", (4, 3, 2), bytes(15), "fetch with a short nonce"),
    ("payload: own-batch", (6,), bytes(15), "own batch with a short nonce"),
    ("payload: own-batch", (8,), b"", "own batch without a hash"),
    ("payload: head", (9,), b"", "head without a hash"),
    ("payload: refusal", (7,), 7, "refusal with a number for a reason"),
]


@pytest.mark.parametrize(
    ("name", "place", "new"),
    [pytest.param(name, place, new, id=what) for name, place, new, what in BROKEN],
)
def test_the_schema_refuses_a(
    validator: Any,  # noqa: ANN401
    name: str,
    place: tuple[int, ...],
    new: object,
) -> None:
    rule, message = MESSAGES[name]
    assert problems(validator, encode(changed(decode(message), place, new)), rule) != []


@pytest.mark.parametrize(
    ("tag", "unprotected", "payload"),
    [
        pytest.param(98, {396: {-1: [b"\x83\x02\x00\x81\x58\x20" + bytes(32)]}}, None, id="tag"),
        pytest.param(18, {396: {-1: [b"\x83\x01\x00\x80"]}}, None, id="path of no step"),
        pytest.param(18, {396: {-1: [b"\x83\x02\x00\x81\x40"]}}, None, id="step of no hash"),
        pytest.param(18, {396: {-1: []}}, None, id="inclusion, or none"),
        pytest.param(18, {}, None, id="unprotected header, or none"),
        pytest.param(18, {396: {-1: [b"\x83\x02\x00\x81\x58\x20" + bytes(32)]}}, b"", id="payload"),
    ],
)
def test_the_schema_refuses_a_receipt_with_another(
    validator: Any,  # noqa: ANN401
    tag: int,
    unprotected: dict[int, object],
    payload: object,
) -> None:
    protected, _, _, signature = cbor2.loads(PROOF).value
    good = {396: {-1: [b"\x83\x02\x00\x81\x58\x20" + bytes(32)]}}
    ours = cbor2.CBORTag(18, [protected, good, None, signature])
    assert problems(validator, cbor2.dumps(ours), "cose-receipt") == []
    other = cbor2.CBORTag(tag, [protected, unprotected, payload, signature])
    assert problems(validator, cbor2.dumps(other), "cose-receipt") != []


@pytest.mark.parametrize(
    ("label", "value"),
    [
        pytest.param(1, -8, id="algorithm"),
        pytest.param(4, bytes(7), id="kid"),
        pytest.param(16, "meterd/block/v1", id="type"),
        pytest.param(395, 2, id="tree"),
        pytest.param(2, ["meterd"], id="crit"),
        pytest.param("meterd", [0, 1, bytes(32), 0, 0, 2], id="epoch"),
        pytest.param("meterd", [1, 0, bytes(32), 0, 0, 2], id="number"),
        pytest.param("meterd", [1, 1, bytes(31), 0, 0, 2], id="link"),
        pytest.param("meterd", [1, 1, bytes(32), 0, 3, 2], id="closing"),
        pytest.param("meterd", [1, 1, bytes(32), 0, False, 2], id="truth value for a closing"),
        pytest.param("meterd", [1, 1, bytes(32), 0], id="header"),
    ],
)
def test_the_schema_refuses_a_batch_with_another(
    validator: Any,  # noqa: ANN401
    label: object,
    value: object,
) -> None:
    _, protected, signature, leaves = decode(BATCH)
    other = cbor2.dumps({**cbor2.loads(protected), label: value})
    message = encode(["meterd/attest/v1", other, signature, leaves])
    assert problems(validator, message, "batch") != []


def test_a_seal_of_one_kind_is_none_of_another(validator: Any) -> None:  # noqa: ANN401
    for rule in ("sealed-block", "sealed-checkpoint", "said"):
        assert problems(validator, sealed(ORDERS["enrol"]), rule) != []
    for rule in ("sealed-order", "said", "sealed-alarm"):
        assert problems(validator, sealed(FIRST_BLOCK), rule) != []
    for kind in BODIES:
        assert problems(validator, message_of(kind), "sealed-order") != []
        foreign = seal(take_apart(message_of(kind)).payload[:-1], key("x"), GENESIS.hash)
        assert problems(validator, foreign, "said") != []
