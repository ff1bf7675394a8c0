"""Where a distributor's orders lie: certified, held by the peer, in its outbox, or signed only.

Of one height only one order may ever be signed: a second one is a second history, which every
neighbour would prove to every other, and which freezes the distributor's chain for good. So a copy
of each is in `signed` in the state folder, durable, before its signature leaves this program, and
the next order is built on all of them. Copies of certified orders go, but for the last, which a
store that was put aside cannot make forgotten. A whole state folder that is put back to an earlier
day can: so nothing is sent before the peer process has heard a quorum, which tells it of orders
that it lacks. What lies in the folder is verified like orders from outside.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NamedTuple

from meterd.authority.roster import found
from meterd.ctl.owner import as_owner
from meterd.device.files import write_new
from meterd.device.mailbox import OUTBOX, Mailbox
from meterd.errors import (
    AbsentError,
    BlockRejectedError,
    BusyError,
    ConfigError,
    EncodingError,
    LedgerDamagedError,
    StorageError,
)
from meterd.ledger.block import decode_block
from meterd.ledger.encoding import seal, take_apart
from meterd.ledger.order import ForkResolve, Order, Replace, decode_order, open_order, spell

if TYPE_CHECKING:
    from pathlib import Path

    from nacl.signing import SigningKey

    from meterd.authority.roster import ChainId, Roster
    from meterd.ctl.node import KnownNode
    from meterd.ledger.block import Block
    from meterd.ledger.order import Change

SIGNED = "signed"
HEARD_S_MAX = 60  # a node says what it holds each 5 s: past a dozen of these it is gone
LETTER = "block-order{:012d}"
LETTERS = LETTER.format(0)[:11]
ORDER_BYTES_MAX = 65_536  # as long as a message may be


class Laid(NamedTuple):
    """One order of the chain.

    Attributes:
        order: What it says.
        sealed: With its seal.
        before: The network that it changes.
        posted: Whether it lies in the outbox.
        held: Whether the peer has it.
    """

    order: Order
    sealed: bytes
    before: Roster
    posted: bool
    held: bool


class Desk:
    """The distributor's chain as far as it is signed.

    Attributes:
        node: The distributor's node.
        chain_id: Its chain.
        orders: All orders, ascending.
        roster: The network once all of them are certified.
        certified: Up to which height they are.
    """

    def __init__(self, node: KnownNode) -> None:
        """Gather the orders.

        Raises:
            AbsentError: The network has no distributor.
            LedgerDamagedError: Two orders of one height are signed, or one does not follow.
        """
        if node.roster.distributor is None:
            raise AbsentError(
                f"{node.genesis.name} has no distributor: nobody gives orders in it",
                hint="it is named when a network is founded",
            )
        self.node, self.chain_id = node, node.roster.distributor
        held = node.core.chains.get(self.chain_id)
        self.certified = held.certified if held else 0
        self.signed_folder = node.state / SIGNED
        self.outbox_folder = node.line / OUTBOX
        signed, posted = _files(self.signed_folder, "order-"), _files(self.outbox_folder, LETTERS)
        self.orders: list[Laid] = []
        roster: Roster = found(node.genesis)
        stored = dict(enumerate(node.orders(), start=1))
        height = 1
        while sealed := stored.get(height) or signed.get(height) or posted.get(height):
            order, following = self._follow(roster, sealed)
            for other in (signed.get(height), posted.get(height)):
                if other is not None and _payload(other) != _payload(sealed):
                    raise LedgerDamagedError(
                        f"two orders {height} are signed: nothing more may be",
                        hint=f"compare {self.signed_folder} and {self.outbox_folder}; send neither",
                    )
            self.orders.append(Laid(order, sealed, roster, height in posted, height in stored))
            roster, height = following, height + 1
        beyond = [each for each in (*signed, *posted) if each >= height]
        if beyond:
            raise LedgerDamagedError(
                f"order {min(beyond)} is signed, and order {height} is not here",
                hint="let the peer process fetch it from its neighbours, then try again",
            )
        self.roster = roster

    def _follow(self, roster: Roster, sealed: bytes) -> tuple[Order, Roster]:
        key = roster.enrolled(self.chain_id).key_at(roster.head.height)
        try:
            order, _ = open_order(sealed, key, roster.genesis)
            return order, roster.add(order)
        except BlockRejectedError as error:
            raise LedgerDamagedError(
                f"order {roster.head.height + 1} does not hold: {error}",
                hint=f"see {self.signed_folder} and {self.outbox_folder}",
            ) from error

    @property
    def key(self) -> bytes:
        """The public key that the next order is sealed with."""
        return self.roster.enrolled(self.chain_id).key_at(self.roster.head.height)

    def check_heard(self) -> None:
        """Check that the peer process has heard a quorum lately, so that it lacks no order.

        Raises:
            AbsentError: It has not.
        """
        shown, committee = self.node.shown, self.node.roster.committee
        heard = int(committee.has(self.node.name))
        if shown is not None and not shown.stale:
            for peer in shown.told["peers"]:
                seconds = peer["heard_s"]
                lately = seconds is not None and seconds <= HEARD_S_MAX
                heard += int(lately and committee.has(peer["name"]))
        if heard < committee.quorum:
            raise AbsentError(
                f"the peer process has heard {heard} of {len(committee.voters)} voters lately, and"
                f" {committee.quorum} are a quorum: the network may have orders that are not here",
                hint="start `meterd peer` and wait; a second order of one height ends the chain",
            )

    def next_order(self, change: Change, effective_from_s: int | None = None) -> Order:
        """Return the next order, which peers would accept as far as it is known here.

        Raises:
            ConfigError: They would refuse it.
        """
        roster = self.roster
        time_s = max(int(time.time()), roster.head.time_s)
        kind, body = spell(change)
        order = Order(
            genesis=roster.genesis,
            distributor=self.chain_id[0],
            incarnation=self.chain_id[1],
            height=roster.head.height + 1,
            previous=roster.head.order_hash,
            time_s=time_s,
            effective_from_s=time_s if effective_from_s is None else effective_from_s,
            kind=kind,
            body=body,
        )
        try:
            roster.add(decode_order(order.encode()))
            self._check_base(change)
        except (BlockRejectedError, EncodingError) as error:
            raise ConfigError(
                f"the network would refuse this order: {error}",
                hint="nothing was signed; see `meterctl peers` and `meterctl order list`",
            ) from error
        return order

    def _check_base(self, change: Change) -> None:
        """Check that the block at which a chain is to end is the one that peers hold."""
        if isinstance(change, Replace):
            height, block_hash = change.final_height, change.final_hash
        elif isinstance(change, ForkResolve):
            height, block_hash = change.base_height, change.base_hash
        else:
            return
        held = self.node.core.chains.get((change.meter, change.old_incarnation))
        if held is not None and held.certified > height:
            raise BlockRejectedError(
                f"block {held.certified} of {change.meter} is certified, it cannot end at {height}"
            )
        if held is not None and held.hashes.get(height) not in (None, block_hash):
            raise BlockRejectedError(f"another block {height} of {change.meter} is held here")

    def block(self, chain_id: ChainId, height: int) -> Block | None:
        """Return a block that the peer holds, or None."""
        if self.node.store is None:
            return None
        for _, sealed in self.node.store.blocks(chain_id, height, height):
            return decode_block(take_apart(sealed).payload)
        return None

    def sign(self, order: Order, key: SigningKey) -> bytes:
        """Return `order` under its seal, once a copy of it is kept.

        Raises:
            BusyError: Another order of its height has been signed meanwhile.
            StorageError: The copy cannot be written; there is no signature then.
        """
        sealed = seal(order.encode(), key, order.genesis)
        self._keep(order.height, sealed)
        return sealed

    def adopt(self, sealed: bytes) -> None:
        """Keep the next order, which was signed elsewhere.

        Raises:
            BusyError: Another order of its height has been signed meanwhile.
            LedgerDamagedError: It does not hold.
            StorageError: The copy cannot be written.
        """
        order, self.roster = self._follow(self.roster, sealed)
        self._keep(order.height, sealed)

    def _keep(self, height: int, sealed: bytes) -> None:
        with as_owner(self.node.state):
            self.signed_folder.mkdir(mode=0o700, exist_ok=True)
            try:
                write_new(self._copy(height), sealed)
            except FileExistsError as error:
                raise BusyError(
                    f"order {height} has been signed meanwhile",
                    hint="see `meterctl order list`, then put yours again",
                ) from error

    def post(self, height: int, sealed: bytes) -> None:
        """Let an order lie in the outbox until it is certified, and ring.

        Raises:
            StorageError: The outbox is full, or fails.
        """
        with as_owner(_nearest(self.outbox_folder)):
            outbox = Mailbox(self.outbox_folder)
            if not outbox.put(LETTER.format(height), sealed):
                raise StorageError(
                    f"cannot put order {height} into {self.outbox_folder}",
                    hint="it is signed and kept: try `meterctl order send` later",
                )
            outbox.ring()

    def tidy(self) -> None:
        """Take away the copies of orders that are certified."""
        gone = [each.order.height for each in self.orders if each.order.height <= self.certified]
        with as_owner(self.node.state):
            for height in gone[:-1] if self.certified == len(self.orders) else gone:
                self._copy(height).unlink(missing_ok=True)
        if not self.outbox_folder.is_dir():
            return
        with as_owner(self.outbox_folder):
            for height in gone:
                (self.outbox_folder / LETTER.format(height)).unlink(missing_ok=True)

    def _copy(self, height: int) -> Path:
        return self.signed_folder / f"order-{height:012d}"


def _files(folder: Path, begin: str) -> dict[int, bytes]:
    """Return the orders in a folder by height: files whose names are `begin` and digits."""
    orders = {}
    try:
        for path in folder.iterdir():
            number = path.name.removeprefix(begin)
            if path.name.startswith(begin) and number.isascii() and number.isdecimal():
                with path.open("rb") as file:
                    orders[int(number)] = file.read(ORDER_BYTES_MAX)
    except FileNotFoundError:
        return orders
    return orders


def _payload(sealed: bytes) -> bytes:
    """Return what is sealed; what is misspelt counts as another order."""
    try:
        return take_apart(sealed).payload
    except EncodingError:
        return sealed


def _nearest(folder: Path) -> Path:
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    return folder
