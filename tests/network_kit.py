"""A street that is founded in tests: its plan, who enrols, and the keys that they sign by."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from nacl.signing import SigningKey

from meterd.enrolment import Enrolment, enrolment_text
from meterd.founding import found_network
from meterd.network_file import NetworkFile

if TYPE_CHECKING:
    from meterd.ledger.account import Genesis

NETWORK = "elm-street"
PLAN = f"""\
[network]
name = "{NETWORK}"
interval_s = 1800
zone = "Europe/Paris"
currency = "EUR"
"""


class Keys(NamedTuple):
    sealing: SigningKey
    voting: SigningKey


def keys_of(name: str) -> Keys:
    def key(use: bytes) -> SigningKey:
        return SigningKey((use + name.encode()).ljust(32, b"."))

    return Keys(key(b"seal "), key(b"vote "))


def enrolment(name: str, role: str = "meter", **changed: Any) -> Enrolment:  # noqa: ANN401
    keys = keys_of(name)
    rated = (60_000, 230_000, 1) if role == "meter" else ()
    made = Enrolment(
        NETWORK,
        name,
        role,
        bytes(keys.sealing.verify_key),
        bytes(keys.voting.verify_key),
        1,
        *rated,
    )
    return made._replace(**changed)


def text_of(name: str, role: str = "meter", **changed: Any) -> str:  # noqa: ANN401
    return enrolment_text(enrolment(name, role, **changed), *keys_of(name))


def members(*texts: str) -> list[NetworkFile]:
    return [NetworkFile(f"{number}.toml", text) for number, text in enumerate(texts, 1)]


FOUR = (
    text_of("kitchen-12"),
    text_of("shed-3"),
    text_of("elm-power", "distributor"),
    text_of("elm-council", "authority"),
)


KITCHEN = FOUR[0]


def founded(*texts: str, plan: str = PLAN) -> tuple[Genesis | None, list[str]]:
    """Return what the files found, and each mistake with its hint."""
    genesis, mistakes = found_network(NetworkFile("elm.toml", plan), members(*texts), {})
    for told in mistakes:
        assert "\n" not in f"{told}{told.mistake.hint}"
    return genesis, [str(told) for told in mistakes]
