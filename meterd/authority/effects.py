"""What goes into a node's core, and what comes out: events and effects, all of them values.

The shell performs effects in their order and stops at the first that fails; then the process ends.
`Persist` comes before every `Send` that depends on it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from meterd.authority.attestation import Batch, Leaf
    from meterd.authority.roster import ChainId


class Now(NamedTuple):
    """The time of an event.

    Attributes:
        mono_ms: A clock that never goes back, for timeouts.
        wall_s: Unix seconds.
        synchronised: Whether wall time is good enough to judge others by.
    """

    mono_ms: int
    wall_s: int
    synchronised: bool


# --- events -----------------------------------------------------------------------------------


class Received(NamedTuple):
    """A message came, on the topic of `sender`, as the broker says; nothing of it is verified."""

    sender: str
    message: bytes


class Sealed(NamedTuple):
    """This device's meter sealed a block, or this node's distributor an order."""

    message: bytes


class Alarmed(NamedTuple):
    """This device's meter tells of an event of its own.

    Attributes:
        name: Of the letter that it lies in.
        message: What it says, sealed.
    """

    name: str
    message: bytes


class Asked(NamedTuple):
    """This device's meter wants to know its head (the boot rule).

    Attributes:
        meter: Its name.
        nonce: Of this question.
        height: Up to where its card holds its chain.
        order: Up to where it knows the orders.
    """

    meter: str
    nonce: bytes
    height: int = 0
    order: int = 0


class Loaded(NamedTuple):
    """What a `Load` found: sealed blocks in order, ascending."""

    load: Load
    blocks: tuple[bytes, ...]


class Assembled(NamedTuple):
    """Evidence or a certificate that the shell has put together."""

    evidence: bytes


class Tick(NamedTuple):
    """Time has passed."""


class Connected(NamedTuple):
    """A broker can be reached again: what was said meanwhile is lost."""


class Stopping(NamedTuple):
    """The node ends in good order."""


Event: TypeAlias = (
    Received | Sealed | Alarmed | Asked | Loaded | Assembled | Tick | Connected | Stopping
)


# --- effects ----------------------------------------------------------------------------------


class PutBlocks(NamedTuple):
    """Keep blocks of a chain: (height, hash, sealed), ascending; all pass `checks`.

    With `UNSEALED` among these, their own seals have not been verified.
    """

    chain: ChainId
    blocks: tuple[tuple[int, bytes, bytes], ...]
    received_s: int
    checks: int


class DropBlocks(NamedTuple):
    """Forget blocks of a chain from a height on: a quorum certified others."""

    chain: ChainId
    first: int


class PutBatch(NamedTuple):
    """Keep a voter's batch; one `beside` its own sequence for evidence alone."""

    batch: Batch
    message: bytes
    beside: bool = False


class PutSealed(NamedTuple):
    """The seals of a chain's blocks up to a height have been verified."""

    chain: ChainId
    height: int


class PutSeal(NamedTuple):
    """Keep a block, which was kept before with another seal, with this one, that holds."""

    chain: ChainId
    height: int
    sealed: bytes


class PutCertified(NamedTuple):
    """A chain is certified up to a height, in an epoch."""

    chain: ChainId
    height: int
    epoch: int


class PutEvidence(NamedTuple):
    """Keep evidence for ever."""

    evidence_id: bytes
    evidence: bytes


class PutCertificate(NamedTuple):
    """Keep the certificate of an order or a block; the votes that made it are not all here."""

    chain: ChainId
    height: int
    certificate: bytes


class PutCounters(NamedTuple):
    """The last counter of senders."""

    counters: tuple[tuple[str, int], ...]


class PutStart(NamedTuple):
    """The number of this start, which the messages that are said from now on begin with."""

    number: int


class PutEpoch(NamedTuple):
    """This node has begun an epoch."""

    epoch: int


class PutPromise(NamedTuple):
    """This node attests nothing of a meter above a place, for a while from now on."""

    meter: str
    incarnation: int
    height: int


class PutAlarm(NamedTuple):
    """Keep a meter's last alarm, which its seal has been verified of."""

    meter: str
    message: bytes


Record: TypeAlias = (
    PutBlocks
    | DropBlocks
    | PutBatch
    | PutSealed
    | PutSeal
    | PutCertified
    | PutEvidence
    | PutCertificate
    | PutCounters
    | PutStart
    | PutEpoch
    | PutPromise
    | PutAlarm
)


class Persist(NamedTuple):
    """Make all of it durable, or none."""

    records: tuple[Record, ...]


class Send(NamedTuple):
    """Publish below this node's own name: on `block`, `attest`, `answer/NAME` and so on."""

    topic: str
    message: bytes
    retain: bool = False


class Load(NamedTuple):
    """Read blocks of a chain, `first` to `last`, as many as fit; `purpose` comes back with them."""

    chain: ChainId
    first: int
    last: int
    purpose: tuple[str, ...] = ()
    extra: bytes = b""


class SendBatches(NamedTuple):
    """Send a voter's batches to a peer, `first` to `last`, as many as fit."""

    to: str
    kid: bytes
    first: int
    last: int


class SendEvidence(NamedTuple):
    """Send kept evidence to a peer."""

    to: str
    evidence_id: bytes


class SendCertificate(NamedTuple):
    """Send the certificate of an order or a block to a peer.

    Attributes:
        to: Which peer.
        chain: Of which chain.
        height: Of which block.
        certified: Of which one else, if that is too long for a message: the last certified one.
    """

    to: str
    chain: ChainId
    height: int
    certified: int


class SendClosings(NamedTuple):
    """Send the batches that close an epoch to a peer."""

    to: str
    epoch: int


class Accuse(NamedTuple):
    """Put together the proof that a voter attested two histories: it comes back `Assembled`."""

    kid: bytes
    low: Leaf
    low_number: int
    high: Leaf
    high_number: int


class Certify(NamedTuple):
    """Put together the certificate of an order, or of this device's own block, for its meter.

    Out of these votes of an epoch, (key id, batch number, leaf), or of the nearest in the store.
    """

    chain: ChainId
    height: int
    epoch: int = 0
    votes: tuple[tuple[bytes, int, Leaf], ...] = ()


class Deliver(NamedTuple):
    """Hand a message to this device's meter process: `answer`, `block` by height, `evidence`."""

    kind: str
    message: bytes
    height: int = 0


class Taken(NamedTuple):
    """A letter of the outbox need not lie there any more: what it says is kept, or refused."""

    name: str


class Tell(NamedTuple):
    """Say what happened, to the journal and to whoever asks; `level` 0 info, 1 warning, 2 error."""

    level: int
    event: str
    fields: tuple[tuple[str, str | int], ...]


Effect: TypeAlias = (
    Persist
    | Send
    | Load
    | SendBatches
    | SendEvidence
    | SendCertificate
    | SendClosings
    | Accuse
    | Certify
    | Deliver
    | Taken
    | Tell
)
