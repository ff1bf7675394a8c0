"""A network is founded of what its members signed, or of nothing."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nacl.public import PrivateKey

from meterd.authority.roster import found
from meterd.config import LINE_BYTES_MAX
from meterd.enrolment import Enrolment, enrolment_text, prove, proven
from meterd.founding import found_network
from meterd.ledger.account import decode_genesis
from meterd.network_file import TEXT_BYTES_MAX, NetworkFile
from tests.ctl_kit import Ctl
from tests.network_kit import FOUR, KITCHEN, NETWORK, PLAN, enrolment, founded, keys_of, text_of

ROOT = Path(__file__).parent.parent


@pytest.fixture
def ctl(capsys: pytest.CaptureFixture[str]) -> Ctl:
    return Ctl(capsys)


def test_a_network_is_founded_of_what_its_members_signed() -> None:
    genesis, mistakes = founded(*FOUR)
    assert mistakes == []
    assert genesis is not None
    assert [node.name for node in genesis.nodes] == [
        "elm-council",
        "elm-power",
        "kitchen-12",
        "shed-3",
    ]
    assert [(m.name, m.fuse_ma, m.nominal_mv, m.mains_clamps) for m in genesis.meters] == [
        ("kitchen-12", 60_000, 230_000, 1),
        ("shed-3", 60_000, 230_000, 1),
    ]
    roster = found(decode_genesis(genesis.encode()))
    assert (roster.committee.quorum, roster.committee.faults_max) == (3, 1)
    assert roster.distributor == ("elm-power", 1)


@given(st.permutations(FOUR), st.integers(0, 4))
def test_the_genesis_does_not_depend_on_the_order_of_the_files(
    texts: list[str], inline: int
) -> None:
    def without_network(text: str) -> str:
        return text.replace(f'[network]\nname = "{NETWORK}"\n', "")

    plan = PLAN + "".join(map(without_network, texts[:inline]))
    genesis, mistakes = founded(*texts[inline:], plan=plan)
    assert mistakes == []
    assert genesis is not None
    expected, _ = founded(*FOUR)
    assert genesis == expected


@pytest.mark.parametrize("voters", [1, 2, 3])
def test_fewer_than_four_voters_are_warned_of(voters: int) -> None:
    texts = [text_of(f"m-{k}", votes=int(k < voters)) for k in range(4)]
    genesis, mistakes = founded(*texts, FOUR[2])
    assert genesis is not None
    expected = [f"{voters + 1} of 5 nodes vote: witnessed, not fork-proof"] if voters < 3 else []
    assert len(mistakes) == len(expected)
    assert all(told in mistake for told, mistake in zip(expected, mistakes, strict=True))


def test_no_distributor_is_warned_of() -> None:
    genesis, mistakes = founded(*(text_of(f"m-{k}") for k in range(4)))
    assert genesis is not None
    assert mistakes == [
        "elm.toml: there is no distributor: nobody can enrol, replace or revoke a node later"
    ]


def test_a_recipient_needs_an_x25519_key() -> None:
    key = bytes(PrivateKey(bytes(range(32))).public_key)

    def recipient(key: bytes) -> str:
        return f'[[recipient]]\nname = "council"\nrole = "authority"\nkey = "{key.hex()}"\n'

    genesis, mistakes = founded(*FOUR, plan=PLAN + recipient(key))
    assert mistakes == []
    assert genesis is not None
    assert genesis.recipients == (("council", "authority", key),)
    genesis, mistakes = founded(*FOUR, plan=PLAN + recipient(bytes(32)))
    assert genesis is None
    assert mistakes == [
        "elm.toml: line 9: recipient.1.key: is no X25519 public key: nothing can be sealed to it"
    ]


STRANGER = keys_of("stranger")


def proofs_swapped(text: str) -> str:
    return (
        text.replace("proof_sealing", "x")
        .replace("proof_voting", "proof_sealing")
        .replace("x =", "proof_voting =")
    )


@pytest.mark.parametrize(
    ("text", "told"),
    [
        pytest.param(
            text_of("kitchen-12", network="oak-street"),
            ["1.toml: line 8: network.name: expected elm-street, got 'oak-street'"],
            id="was made for another network",
        ),
        pytest.param(
            KITCHEN.replace(f'name = "{NETWORK}"', "").replace("[network]", ""),
            ["1.toml: network.name: is missing"],
            id="names no network",
        ),
        pytest.param(
            KITCHEN.replace("[network]", '[network]\nzone = "UTC"'),
            ["1.toml: line 8: network.zone: is the founder's to say, not an enrolment's"],
            id="would decide for all",
        ),
        pytest.param(
            KITCHEN.replace("fuse_a = 60", "fuse_a = 63"),
            ["kitchen-12 did not sign what is listed here"] * 2,
            id="has another fuse than was signed",
        ),
        pytest.param(
            KITCHEN.replace("votes = true", "votes = false"),
            ["kitchen-12 did not sign what is listed here"] * 2,
            id="had its vote taken away",
        ),
        pytest.param(
            KITCHEN.replace('role = "meter"', 'role = "concentrator"'),
            ["kitchen-12 did not sign what is listed here"] * 2,
            id="had its role changed",
        ),
        pytest.param(
            enrolment_text(enrolment("kitchen-12"), STRANGER.sealing, keys_of("kitchen-12").voting),
            ["node.1.proof_sealing: the sealing key of kitchen-12 did not sign"],
            id="lists a sealing key that is not held",
        ),
        pytest.param(
            enrolment_text(enrolment("kitchen-12"), keys_of("kitchen-12").sealing, STRANGER.voting),
            ["node.1.proof_voting: the voting key of kitchen-12 did not sign"],
            id="lists a voting key that is not held",
        ),
        pytest.param(
            proofs_swapped(KITCHEN),
            ["node.1.proof_voting: the voting", "node.1.proof_sealing: the sealing"],
            id="has its proofs swapped",
        ),
        pytest.param(
            re.sub(r"proof_voting = .*\n", "", KITCHEN),
            ["1.toml: line 10: node.1.proof_voting: is missing"],
            id="has no proof of the voting key",
        ),
        pytest.param(
            KITCHEN.split("[[meter]]")[0],
            ["1.toml: line 10: node.1: the meter kitchen-12 has no [[meter]]"],
            id="is a meter without one",
        ),
        pytest.param(
            KITCHEN + FOUR[0].split("[[meter]]")[1].join(["\n[[meter]]", ""]),
            ["meter.2.name: the meter kitchen-12 is there already: 1.toml, line 19"],
            id="has two meters",
        ),
        pytest.param(
            KITCHEN.replace("incarnation = 1", "incarnation = 2"),
            ["1.toml: line 24: meter.1.incarnation: expected 1, got 2"],
            id="is not the first chain",
        ),
        pytest.param(
            KITCHEN + '[[meter]]\nname = "attic"\nfuse_a = 6\nnominal_v = 230\nmains_clamps = 1\n',
            ["1.toml: line 26: meter.2.name: there is no node attic"],
            id="has a meter of nobody",
        ),
        pytest.param(
            KITCHEN
            + "\n"
            + FOUR[0]
            .split("[[meter]]")[1]
            .join(["[[meter]]", ""])
            .replace("kitchen-12", "elm-power"),
            ["meter.2.name: a node with the role distributor is no meter"],
            id="makes a meter of the distributor",
        ),
        pytest.param(
            text_of("shed-3"),
            [
                "2.toml: line 11: node.1.name: the node shed-3 is there already: 1.toml, line 10",
                "node.1.sealing_key: is the sealing_key of shed-3 (1.toml, line 10) too",
                "node.1.voting_key: is the voting_key of shed-3 (1.toml, line 10) too",
                "2.toml: line 20: meter.1.name: the meter shed-3 is there already",
            ],
            id="is there twice",
        ),
        pytest.param(
            text_of("elm-gas", "distributor"),
            ["3.toml: line 12: node.1.role: a network has one distributor, and there is one"],
            id="is a second distributor",
        ),
        pytest.param(
            enrolment_text(
                enrolment("kitchen-12", sealing_key=bytes(keys_of("kitchen-12").voting.verify_key)),
                keys_of("kitchen-12").voting,
                keys_of("kitchen-12").voting,
            ),
            ["node.1.voting_key: is the sealing_key of kitchen-12 (1.toml, line 10) too"],
            id="seals and votes with one key",
        ),
        pytest.param("[network\n", ["1.toml: line 1: not TOML: "], id="is no TOML"),
        pytest.param("x" * (LINE_BYTES_MAX + 1), ["1.toml: line 1: the line is longer"], id="long"),
        pytest.param("\n" * (TEXT_BYTES_MAX + 1), ["1.toml: longer than"], id="far too long"),
        pytest.param("node = 3\n", ["1.toml: line 1: node: expected a list"], id="has no tables"),
        pytest.param("network = 3\n", ["network: expected a table, got 3"], id="has no table"),
        pytest.param("meter = [3]\n", ["meter.1: expected a table, got 3"], id="has no inner one"),
        pytest.param(
            KITCHEN.replace("sealing_key = ", "sealing_key = 7 #")
            .replace("= true", "= 1")
            .replace('"meter"', '"metre"'),
            [
                "1.toml: line 12: node.1.role: expected one of meter, ",
                "1.toml: line 13: node.1.votes: expected true or false, got 1",
                "1.toml: line 14: node.1.sealing_key: expected 64 hex digits, got 7",
            ],
            id="has values of other kinds",
        ),
    ],
)
def test_no_network_is_founded_with_an_enrolment_that(text: str, told: list[str]) -> None:
    genesis, mistakes = founded(text, *FOUR[1:])
    assert genesis is None
    told_of = [mistake for mistake in mistakes if "fork-proof" not in mistake]
    assert len(told_of) == len(told), told_of
    for expected, mistake in zip(told, told_of, strict=True):
        assert expected in mistake


@pytest.mark.parametrize(
    ("plan", "told"),
    [
        pytest.param(
            PLAN.replace("1800", "1000").replace("EUR", "euro"),
            ["line 3: network.interval_s: expected seconds", "line 5: network.currency: expected"],
            id="breaks two rules",
        ),
        pytest.param(
            PLAN.replace("1800", "3600").replace("Europe/Paris", "Asia/Kolkata"),
            ["network.interval_s: 3600 does not divide the offset of Asia/Kolkata from UTC, 19800"],
            id="has an interval that its zone does not allow",
        ),
        pytest.param(
            PLAN.replace("Europe/Paris", "Europe/Pari"),
            ["elm.toml: line 4: network.zone: no time zone 'Europe/Pari' is known here"],
            id="has no such zone",
        ),
        pytest.param(PLAN + "[nodes]\n", ["line 6: nodes: there is no such table"], id="table"),
        pytest.param(
            PLAN.replace("zone", "#"),
            ["elm.toml: line 1: network.zone: is missing"],
            id="leaves out the zone",
        ),
    ],
)
def test_no_network_is_founded_by_a_plan_that(plan: str, told: list[str]) -> None:
    genesis, mistakes = founded(*FOUR, plan=plan)
    assert genesis is None
    assert len(mistakes) == len(told), mistakes
    for expected, mistake in zip(told, mistakes, strict=True):
        assert expected in mistake


def test_an_odd_interval_is_warned_of() -> None:
    plan = PLAN.replace("1800", "1200").replace("Europe/Paris", "UTC")
    genesis, mistakes = founded(*FOUR, plan=plan)
    assert genesis is not None
    assert "do not fit quarters of an hour" in mistakes[0]


def test_what_would_never_certify_is_not_founded() -> None:
    genesis, mistakes = founded(text_of("kitchen-12", votes=0))
    assert genesis is None
    assert mistakes[0] == "elm.toml: no node votes: nothing would ever be certified"


def test_a_genesis_that_nobody_could_read_is_not_founded() -> None:
    genesis, mistakes = founded(*(text_of(f"m-{k}") for k in range(520)))
    assert genesis is None
    assert "a genesis has at most 65536 bytes" in mistakes[-1]


@given(
    st.text(max_size=200)
    | st.just(KITCHEN).flatmap(lambda text: st.permutations(text.splitlines()).map("\n".join))
)
def test_no_text_makes_the_reader_fail(text: str) -> None:
    founded(text, plan=text)


@given(st.integers(0, 8), st.data())
def test_a_proof_is_for_one_enrolment_alone(field: int, data: st.DataObject) -> None:
    made = enrolment("kitchen-12")
    keys = keys_of("kitchen-12")
    proofs = prove(made, *keys)
    value = made[field]
    kind = {str: st.text(), bytes: st.binary(max_size=40), int: st.integers(0, 2**40)}[type(value)]
    changed: list[Any] = [*made]
    changed[field] = data.draw(kind.filter(lambda other: other != value))
    for key, proof in zip(keys, proofs, strict=True):
        assert proven(made, bytes(key.verify_key), proof)
        assert not proven(Enrolment(*changed), bytes(key.verify_key), proof)


def test_the_example_founds_a_network_once_its_keys_are_real(ctl: Ctl, tmp_path: Path) -> None:
    example = (ROOT / "config" / "network.toml").read_text()
    genesis, mistakes = found_network(NetworkFile("network.toml", example), [], {})
    assert genesis is None
    assert all("PLACEHOLDER" in str(told) for told in mistakes if not told.mistake.warning)
    assert example.count("PLACEHOLDER") == sum(not told.mistake.warning for told in mistakes)
    for name, role in (("kitchen-12", "meter"), ("elm-power", "distributor")):
        for line in re.findall(r"(?:sealing|voting|proof)\w* = .*\n", text_of(name, role)):
            use, _, _ = line.partition(" = ")
            example = re.sub(rf'{use} = "PLACEHOLDER.*\n', line, example, count=1)
    key = bytes(PrivateKey(bytes(range(32))).public_key)
    example = re.sub('"PLACEHOLDER.*"', f'"{key.hex()}"', example)
    (tmp_path / "network.toml").write_text(example)
    out = tmp_path / "genesis.cbor"
    said = ctl("network", "create", tmp_path / "network.toml", "-o", out, "--yes", "--json")
    assert said.status == 0, said.err
    assert decode_genesis(out.read_bytes()).hash.hex() == said.json["genesis_hash"]
    assert said.json["recipients"] == [
        {"name": "elm-council", "role": "authority", "key": key.hex()}
    ]
