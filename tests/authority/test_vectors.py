"""The committed vectors of a street hold here as they have to in any other implementation."""

from __future__ import annotations

import json
from typing import Any

import pytest

from meterd.authority.alarms import verify_alarm
from meterd.authority.attestation import (
    open_batch,
    open_proof,
    read_leaf,
    verify_batch,
    verify_proof,
)
from meterd.authority.certificate import (
    add_certified_order,
    open_certificate,
    open_receipt,
    verify_certificate,
    verify_evidence,
    verify_receipt,
)
from meterd.authority.messages import open_said
from meterd.authority.roster import Roster, found
from meterd.errors import MeterdError
from meterd.ledger.account import decode_genesis
from meterd.ledger.encoding import decode
from tests.vectors.generate import FOLDER

Case = dict[str, Any]


def cases(name: str) -> list[Any]:
    loaded: list[Case] = json.loads((FOLDER / f"{name}.json").read_text())
    assert {case["verdict"] for case in loaded} == {"good", "bad"}
    return [pytest.param(case, id=case["name"]) for case in loaded]


def of(case: Case, key: str) -> bytes:
    return bytes.fromhex(case[key])


def known(case: Case, orders: list[list[str]]) -> tuple[Roster, int]:
    """Return the network, and how many of these orders are in force."""
    roster = found(decode_genesis(of(case, "genesis")))
    for held, (sealed, certificate) in enumerate(orders):
        try:
            opened = open_certificate(bytes.fromhex(certificate))
            roster = add_certified_order(roster, bytes.fromhex(sealed), opened)
        except MeterdError:
            return roster, held
    return roster, len(orders)


@pytest.mark.parametrize("case", cases("orders"))
def test_orders(case: Case) -> None:
    _, holds = known(case, case["orders"])
    assert holds == case["holds"]
    assert (holds == len(case["orders"])) == (case["verdict"] == "good")


@pytest.mark.parametrize("case", cases("batches"))
def test_batches(case: Case) -> None:
    try:
        verify_batch(open_batch(of(case, "bytes"), of(case, "genesis_hash")), of(case, "key"))
        verdict = "good"
    except MeterdError:
        verdict = "bad"
    assert verdict == case["verdict"]


@pytest.mark.parametrize("case", cases("proofs"))
def test_proofs(case: Case) -> None:
    leaf = read_leaf(decode(of(case, "leaf")))
    try:
        proof = open_proof(of(case, "bytes"), leaf, of(case, "genesis_hash"))
        verify_proof(proof, of(case, "key"))
        verdict = "good"
    except MeterdError:
        verdict = "bad"
    assert verdict == case["verdict"]


@pytest.mark.parametrize("case", cases("certificates"))
def test_certificates(case: Case) -> None:
    roster, held = known(case, case["orders"])
    assert held == len(case["orders"])
    try:
        certificate = open_certificate(of(case, "bytes"))
        certified = verify_certificate(certificate, roster, case["epoch_min"])
        said = ("good", list(certified.voters), list(certified.strength))
    except MeterdError:
        said = ("bad", [], [])
    assert said == (case["verdict"], case["voters"], case["strength"])


@pytest.mark.parametrize("case", cases("receipts"))
def test_receipts(case: Case) -> None:
    genesis = decode_genesis(of(case, "genesis"))
    try:
        certified = verify_receipt(open_receipt(of(case, "bytes")), genesis).certified
        said = ("good", list(certified.voters), list(certified.strength))
        assert certified.witnessed == case["witnessed"]
    except MeterdError:
        said = ("bad", [], [])
    assert said == (case["verdict"], case["voters"], case["strength"])


@pytest.mark.parametrize("case", cases("evidence"))
def test_evidence(case: Case) -> None:
    roster, held = known(case, case["orders"])
    assert held == len(case["orders"])
    try:
        name, role, chain, height, _ = verify_evidence(of(case, "bytes"), roster)
        accused = [name, role, *chain, height]
    except MeterdError:
        accused = []
    assert accused == case["accused"]
    assert bool(accused) == (case["verdict"] == "good")


@pytest.mark.parametrize("case", cases("said"))
def test_what_peers_say(case: Case) -> None:
    try:
        said = open_said(of(case, "bytes"), lambda _: of(case, "key"), of(case, "genesis_hash"))
        verdict = "good"
        assert type(said.body).__name__.lower().startswith(case["kind"].replace("-", ""))
    except MeterdError:
        verdict = "bad"
    assert verdict == case["verdict"]


@pytest.mark.parametrize("case", cases("alarms"))
def test_alarms(case: Case) -> None:
    roster, held = known(case, case["orders"])
    assert held == len(case["orders"])
    try:
        verify_alarm(of(case, "bytes"), roster)
        verdict = "good"
    except MeterdError:
        verdict = "bad"
    assert verdict == case["verdict"]
