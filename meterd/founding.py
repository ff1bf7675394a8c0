r"""Founds a network: one genesis of the files that its members and its founder wrote.

Nothing is taken on trust: every node shows by `proof_sealing` and `proof_voting` that it holds the
keys it is listed with, whether it came in an enrolment file or in `network.toml` itself. The nodes
stand in the genesis by name, so that the same members give the same hash in whatever order they
are given.

>>> genesis, mistakes = found_network(NetworkFile("elm.toml", '[network]\nname = "elm"'), [], {})
>>> genesis is None
True
>>> for mistake in mistakes:
...     print(mistake)
elm.toml: line 1: network.interval_s: is missing
elm.toml: line 1: network.zone: is missing
elm.toml: line 1: network.currency: is missing
elm.toml: no node is listed
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nacl.bindings import crypto_scalarmult
from nacl.exceptions import CryptoError

from meterd.authority.roster import WITNESSED_MAX, found
from meterd.config_fit import QUARTER_S
from meterd.config_rules import offsets_s, shown
from meterd.config_tables import Mistake
from meterd.enrolment import Enrolment, proven
from meterd.errors import BlockRejectedError, EncodingError
from meterd.ledger.account import Genesis, Meter, Node, decode_genesis
from meterd.ledger.encoding import MESSAGE_BYTES_MAX
from meterd.network_file import TABLES, FileMistake, NetworkFile

if TYPE_CHECKING:
    from meterd.network_file import Entry

WITNESSED = "witnessed, not fork-proof: one cheat among the voters can certify a fork"
_WITH_METER = ("meter", "concentrator")  # roles that may have one
_NETWORK = ("network",)
_RATED = {"fuse_a", "nominal_v", "mains_clamps"}


def found_network(
    plan: NetworkFile | None, enrolments: list[NetworkFile], given: dict[str, Any]
) -> tuple[Genesis | None, list[FileMistake]]:
    """Return the genesis that the files give, and all that is wrong with them, warnings too.

    Args:
        plan: `network.toml`, or None where the enrolments and `given` are all there is.
        enrolments: The enrolment files.
        given: Keys of [network] from elsewhere, by their rules.

    Returns:
        No genesis where one mistake is more than a warning.
    """
    main = plan or NetworkFile("", "")
    files = [main, *enrolments]
    if not all(file.was_read for file in files):  # what is in it would be told as missing
        return None, [mistake for file in files for mistake in file.mistakes()]
    network = _network(main, given)
    for file in enrolments:
        _check_enrolment(file, network.get("name", ""))
    nodes = [entry for file in files for entry in file.nodes]
    meters = _by_name([entry for file in files for entry in file.meters], "meter")
    recipients = [entry for file in files for entry in file.recipients]
    _by_name(nodes, "node")
    _by_name(recipients, "recipient")
    _check_keys(nodes, recipients)
    _check_meters(nodes, meters)
    for node in nodes:
        _check_proofs(node, meters.get(node.values.get("name", "")), network.get("name", ""))
    _check_distributor(nodes)
    _check_voters(main, nodes)
    mistakes = [mistake for file in files for mistake in file.mistakes()]
    if not all(found.mistake.warning for found in mistakes):
        return None, mistakes
    genesis = _genesis(network, nodes, meters, recipients)
    if problem := _refusal(genesis):
        return None, [*mistakes, FileMistake("", Mistake("", 0, problem))]
    return genesis, mistakes


def _network(main: NetworkFile, given: dict[str, Any]) -> dict[str, Any]:
    """Return what the network is to be; what was given may stand only once."""
    wrong = {found.mistake.key for found in main.mistakes()}
    for key in TABLES["network"]:
        flag = f"--{key.replace('_', '-')}"
        if key in given and key in main.network:
            main.wrong((*_NETWORK, key), f"{flag} gives it too", "leave one of them out")
        elif key not in given and key not in main.network and f"network.{key}" not in wrong:
            hint = f"add {flag}" + (f", or `{key} = …` to [network]" if main.source else "")
            main.wrong((*_NETWORK, key), "is missing", hint)
    network = {**main.network, **given}
    if "interval_s" in network and "zone" in network:
        _check_interval(main, network["interval_s"], network["zone"])
    return network


def _check_interval(main: NetworkFile, interval_s: int, zone: str) -> None:
    place = (*_NETWORK, "interval_s")
    odd_s = [offset_s for offset_s in offsets_s(zone) if offset_s % interval_s]
    if odd_s:
        problem = f"{interval_s} does not divide the offset of {zone} from UTC, {odd_s[0]} s"
        main.wrong(place, problem, f"{QUARTER_S} divides every zone's")
    elif QUARTER_S % interval_s and interval_s % QUARTER_S:
        problem = f"{interval_s} s do not fit quarters of an hour, which zones and tariffs count in"
        main.wrong(place, problem, f"take a divisor or a multiple of {QUARTER_S}", warning=True)


def _check_enrolment(file: NetworkFile, name: str) -> None:
    for key in TABLES["network"]:
        if key != "name" and key in file.network:
            problem = "is the founder's to say, not an enrolment's"
            file.wrong((*_NETWORK, key), problem, "move it to network.toml")
    theirs = file.network.get("name")
    if theirs is not None and name and theirs != name:
        hint = f"enrol again on the device, with --network {name}"
        file.wrong((*_NETWORK, "name"), f"expected {name}, got {shown(theirs)}", hint)
    elif theirs is None and not file.mistakes():
        file.wrong((*_NETWORK, "name"), "is missing", "is it an enrolment file?")


def _by_name(entries: list[Entry], what: str) -> dict[str, Entry]:
    """Return the entries by name; a name may come only once."""
    named: dict[str, Entry] = {}
    for entry in entries:
        name = entry.values.get("name")
        if name is None:
            continue
        first = named.setdefault(name, entry)
        if first is not entry:
            entry.wrong("name", f"the {what} {name} is there already: {first.where}")
    return named


def _check_keys(nodes: list[Entry], recipients: list[Entry]) -> None:
    """Check that no key comes twice, and that sealed data can be sealed to every recipient."""
    owners: dict[bytes, str] = {}
    for entry in [*nodes, *recipients]:
        for name in ("sealing_key", "voting_key", "key"):
            key = entry.values.get(name)
            if key is None:
                continue
            if key in owners:
                hint = "every key is one node's, and for one use: draw another"
                entry.wrong(name, f"is {owners[key]} too", hint)
            owner = entry.values.get("name", "?")
            owners.setdefault(key, f"the {name} of {owner} ({entry.where})")
            if name == "key" and not _receives(key):
                entry.wrong(name, "is no X25519 public key: nothing can be sealed to it")


def _receives(key: bytes) -> bool:
    try:
        crypto_scalarmult(bytes(31) + b"\x40", key)  # refuses points of small order
    except (CryptoError, RuntimeError):
        return False
    return True


def _check_meters(nodes: list[Entry], meters: dict[str, Entry]) -> None:
    roles: dict[str | None, str | None] = {
        node.values.get("name"): node.values.get("role") for node in nodes
    }
    for name, meter in meters.items():
        if name not in roles:
            meter.wrong("name", f"there is no node {name}", "each meter is a node, too")
        elif roles[name] not in (*_WITH_METER, None):
            hint = "let it have a node of its own: one name, one account"
            meter.wrong("name", f"a node with the role {roles[name]} is no meter", hint)
    for node in nodes:
        values = node.values
        if values.get("role") == "meter" and "name" in values and values["name"] not in meters:
            hint = "add [[meter]] with its fuse_a, nominal_v and mains_clamps"
            node.wrong("", f"the meter {values['name']} has no [[meter]]", hint)


def enrolment_of(network: str, node: Entry, meter: Entry | None) -> Enrolment:
    """Return what a node is listed with, as its keys have signed it if they did.

    Args:
        network: The network's name.
        node: Its entry, with all its values.
        meter: Its ratings; None where it meters nothing, or has them from elsewhere.
    """
    values, rated = node.values, meter.values if meter else {}
    return Enrolment(
        network,
        values["name"],
        values["role"],
        values["sealing_key"],
        values["voting_key"],
        values["votes"],
        rated.get("fuse_a", 0),
        rated.get("nominal_v", 0),
        rated.get("mains_clamps", 0),
    )


def _check_proofs(node: Entry, meter: Entry | None, network: str) -> None:
    """Check that both keys signed what the node is listed with."""
    values = node.values
    rated = meter.values if meter else {}
    if not network or node.file.network.get("name", network) != network:
        return  # told once for the file, and no proof in it can be good
    if len(values) < len(TABLES["node"]) or (meter and not rated.keys() >= _RATED):
        return  # what is missing or wrong has been told
    if values["role"] not in _WITH_METER if meter else values["role"] == "meter":
        return  # likewise
    enrolment = enrolment_of(network, node, meter)
    for use in ("sealing", "voting"):
        if not proven(enrolment, values[f"{use}_key"], values[f"proof_{use}"]):
            node.wrong(
                f"proof_{use}",
                f"the {use} key of {values['name']} did not sign what is listed here",
                "take the enrolment file as the device made it, or enrol again",
            )


def _check_distributor(nodes: list[Entry]) -> None:
    distributors = [node for node in nodes if node.values.get("role") == "distributor"]
    for node in distributors[1:]:
        problem = f"a network has one distributor, and there is one: {distributors[0].where}"
        node.wrong("role", problem)


def _check_voters(main: NetworkFile, nodes: list[Entry]) -> None:
    if not nodes:
        hint = "add --enrolment FILE for each" + (", or [[node]] tables" if main.source else "")
        main.wrong((), "no node is listed", hint)
        return
    if not all("votes" in node.values for node in nodes):
        return
    voters = sum(node.values["votes"] for node in nodes)
    if not voters:
        main.wrong((), "no node votes: nothing would ever be certified", "enrol some to vote")
    elif voters <= WITNESSED_MAX:
        main.wrong((), f"{voters} of {len(nodes)} nodes vote: {WITNESSED}", warning=True)
    if all(node.values.get("role") not in ("distributor", None) for node in nodes):
        problem = "there is no distributor: nobody can enrol, replace or revoke a node later"
        main.wrong((), problem, warning=True)


def _genesis(
    network: dict[str, Any], nodes: list[Entry], meters: dict[str, Entry], recipients: list[Entry]
) -> Genesis:
    founders = sorted(
        (Node(**{name: node.values[name] for name in Node.__dataclass_fields__}) for node in nodes),
        key=lambda node: node.name,
    )
    rated = [(node, meters[node.name].values) for node in founders if node.name in meters]
    return Genesis(
        **network,
        nodes=tuple(founders),
        meters=tuple(
            Meter(
                name=node.name,
                incarnation=1,
                sealing_key=node.sealing_key,
                fuse_ma=values["fuse_a"],
                nominal_mv=values["nominal_v"],
                mains_clamps=values["mains_clamps"],
            )
            for node, values in rated
        ),
        recipients=tuple(
            sorted((r.values["name"], r.values["role"], r.values["key"]) for r in recipients)
        ),
    )


def _refusal(genesis: Genesis) -> str:
    """Return why nobody would read this genesis; the members' own programs are asked."""
    data = genesis.encode()
    if len(data) > MESSAGE_BYTES_MAX:
        return f"a genesis has at most {MESSAGE_BYTES_MAX} bytes, this has {len(data)}: fewer nodes"
    try:
        found(decode_genesis(data))
    except (EncodingError, BlockRejectedError) as error:
        return str(error)
    return ""
