"""What peers tell each other besides blocks and batches: digests, questions, answers, refusals.

Each is a COSE_Sign1 under the sender's voting key, bound to the network, with a counter that never
goes back: 31 bits that rise with each start, 32 bits of how much it has said since. So a
message is good once, even after a restart of either side. Blocks, batches and evidence bear the
signatures of whoever made them and can be passed on by anybody.

>>> from nacl.signing import SigningKey
>>> key = SigningKey(bytes(32))
>>> said = Said("house-1", 1 << 32, Digest((0, bytes(32)), (), ()))
>>> open_said(say(said, key, bytes(32)), lambda _name: bytes(key.verify_key), bytes(32)) == said
True
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from nacl.signing import VerifyKey

from meterd.errors import BlockRejectedError, EncodingError
from meterd.ledger.account import NAME, shaped
from meterd.ledger.encoding import (
    HASH_BYTES,
    KEY_ID_BYTES,
    decode,
    encode,
    seal,
    take_apart,
    verify_seal,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from nacl.signing import SigningKey


BLOCKS_CONTEXT = "meterd/sealed/v1"
NONCE_BYTES = 16
REASON_CHARS_MAX = 200
HEADS_MAX = 256  # heads in one digest; more chains take turns
ASKED_MAX = 64  # questions in one message
COUNTER_START_BITS = 32
COUNTER_MAX = 2**63 - 1  # what a store can count to
COUNTED_FROM_S = 1_577_836_800  # 2020: starts are numbered by the seconds since, or one by one


class Digest(NamedTuple):
    """What the sender holds, so that others see what they lack.

    Attributes:
        order: Height and hash of its last certified order.
        heads: (name, incarnation, height, hash) of chains, as many as fit, in turns.
        batches: (key id, number, hash) of the last batch of each voter.
        evidence: Ids of the evidence it holds: SHA-256 of each.
    """

    order: tuple[int, bytes]
    heads: tuple[tuple[str, int, int, bytes], ...]
    batches: tuple[tuple[bytes, int, bytes], ...]
    evidence: tuple[bytes, ...] = ()


class AskBlocks(NamedTuple):
    """Blocks of a chain, from one height to another, both included."""

    name: str
    incarnation: int
    first: int
    last: int


class AskBatches(NamedTuple):
    """A voter's batches, from one number to another, both included."""

    kid: bytes
    first: int
    last: int


class AskEvidence(NamedTuple):
    """Evidence by its id."""

    evidence: bytes


class AskOwnBatch(NamedTuple):
    """The boot rule of an authority: my last batch as you hold it."""

    kid: bytes
    nonce: bytes


class AskHead(NamedTuple):
    """The boot rule of a meter: the highest validly sealed block of this meter that you hold."""

    meter: str
    nonce: bytes


class OwnBatch(NamedTuple):
    """The answer to `AskOwnBatch`; number 0 where none is held.

    Attributes:
        epoch: The answering node's epoch.
        order: Its last certified order.
        kid: Whose batch.
        nonce: As asked.
        number: The last batch's number.
        batch_hash: Its hash.
    """

    epoch: int
    order: tuple[int, bytes]
    kid: bytes
    nonce: bytes
    number: int
    batch_hash: bytes


class HeadHeld(NamedTuple):
    """The answer to `AskHead`; incarnation and height 0 where none is held."""

    epoch: int
    order: tuple[int, bytes]
    meter: str
    nonce: bytes
    incarnation: int
    height: int
    block_hash: bytes


class Refusal(NamedTuple):
    """Why the sender does not attest a block."""

    name: str
    incarnation: int
    height: int
    block_hash: bytes
    reason: str


class AskCertificate(NamedTuple):
    """For the certificate of the order, or the block, at a height, on `answer/…`.

    Votes that are lacking here may be votes of a liar that shows them to some alone, and no later
    ones come: an order counts by votes of the epoch that it ends, and nothing more is attested of a
    chain with two histories.
    """

    name: str
    incarnation: int
    height: int


class AskClosings(NamedTuple):
    """For the batches by which voters have closed an epoch, each as it was signed.

    One of a liar that has signed another sequence here fits nowhere; it closes the epoch all the
    same, and whoever could not see that would be left behind in it.
    """

    epoch: int


Question: TypeAlias = (
    AskBlocks | AskBatches | AskEvidence | AskOwnBatch | AskHead | AskCertificate | AskClosings
)


class Fetch(NamedTuple):
    """Questions to one peer."""

    to: str
    questions: tuple[Question, ...]


Body: TypeAlias = Digest | Fetch | OwnBatch | HeadHeld | Refusal


class Said(NamedTuple):
    """A message and who said it.

    Attributes:
        sender: Name of the node.
        counter: Never goes back for one sender.
        body: What it says.
    """

    sender: str
    counter: int
    body: Body


_QUESTIONS: dict[str, tuple[type, tuple[type, ...]]] = {
    "blocks": (AskBlocks, (str, int, int, int)),
    "batches": (AskBatches, (bytes, int, int)),
    "evidence": (AskEvidence, (bytes,)),
    "own-batch": (AskOwnBatch, (bytes, bytes)),
    "head": (AskHead, (str, bytes)),
    "certificate": (AskCertificate, (str, int, int)),
    "closings": (AskClosings, (int,)),
}
_WORDS = {kind: word for word, (kind, _) in _QUESTIONS.items()}
_CONTEXTS: dict[type, str] = {
    Digest: "meterd/digest/v1",
    Fetch: "meterd/fetch/v1",
    OwnBatch: "meterd/own-batch/v1",
    HeadHeld: "meterd/head/v1",
    Refusal: "meterd/refusal/v1",
}


def _lists(value: Any) -> Any:  # noqa: ANN401 - nested values
    return [_lists(item) for item in value] if isinstance(value, tuple) else value


def say(said: Said, key: SigningKey, genesis: bytes) -> bytes:
    """Return the message of `said` under the sender's voting key."""
    body = said.body
    if isinstance(body, Fetch):
        fields: list[Any] = [
            body.to,
            [[_WORDS[type(question)], *question] for question in body.questions],
        ]
    else:
        fields = _lists(tuple(body))
    return seal(encode([_CONTEXTS[type(body)], said.sender, said.counter, *fields]), key, genesis)


def open_said(message: bytes, key_of: Callable[[str], bytes], genesis: bytes) -> Said:
    """Return what `message`, from outside, says, its signature verified.

    Args:
        message: A COSE_Sign1.
        key_of: The key of a node by its name; empty where it has none.
        genesis: Hash of the network's genesis.

    Raises:
        EncodingError: It is misspelt.
        BlockRejectedError: The sender has no key, or did not sign it.
    """
    sealed = take_apart(message)
    value = decode(sealed.payload)
    if type(value) is not tuple or len(value) < 4 or not shaped(value[:3], str, str, int):  # noqa: PLR2004
        raise EncodingError("not a message between peers")
    context, sender, counter = value[:3]
    if counter > COUNTER_MAX:
        raise EncodingError("the message's counter cannot be")
    body = _read(context, value[3:])
    key = key_of(sender)
    if not key:
        raise BlockRejectedError(f"{sender[:40]} has no key in this network")
    verify_seal(sealed, VerifyKey(key), genesis)
    return Said(sender, counter, body)


def _read(context: str, fields: tuple[Any, ...]) -> Body:
    if context == _CONTEXTS[Digest] and shaped(fields, tuple, tuple, tuple, tuple):
        return _read_digest(fields)
    if context == _CONTEXTS[Fetch] and shaped(fields, str, tuple):
        if len(fields[1]) > ASKED_MAX:
            raise EncodingError(f"more than {ASKED_MAX} questions")
        return Fetch(fields[0], tuple(map(_read_question, fields[1])))
    if context == _CONTEXTS[OwnBatch] and shaped(fields, int, tuple, bytes, bytes, int, bytes):
        _check_order(fields[1])
        _check_lengths((fields[2], KEY_ID_BYTES), (fields[3], NONCE_BYTES), (fields[5], HASH_BYTES))
        return OwnBatch(*fields)
    if context == _CONTEXTS[HeadHeld] and shaped(fields, int, tuple, str, bytes, int, int, bytes):
        _check_order(fields[1])
        _check_lengths((fields[3], NONCE_BYTES), (fields[6], HASH_BYTES))
        return HeadHeld(*fields)
    if context == _CONTEXTS[Refusal] and shaped(fields, str, int, int, bytes, str):
        _check_lengths((fields[3], HASH_BYTES))
        if len(fields[4]) > REASON_CHARS_MAX or not fields[4].isprintable():
            raise EncodingError("the reason is too long, or not of printable characters")
        return Refusal(*fields)
    raise EncodingError("no message between peers of any kind known here")


def _check_order(order: Any) -> None:  # noqa: ANN401 - any decoded value
    if not shaped(order, int, bytes) or len(order[1]) != HASH_BYTES:
        raise EncodingError("the order of the message is misshapen")


def _check_lengths(*pairs: tuple[bytes, int]) -> None:
    if any(len(data) != length for data, length in pairs):
        raise EncodingError("a key id, a nonce or a hash of the message has the wrong length")


def _read_digest(fields: tuple[Any, ...]) -> Digest:
    order, heads, batches, evidence = fields
    _check_order(order)
    if max(map(len, (heads, batches, evidence))) > HEADS_MAX:
        raise EncodingError(f"more than {HEADS_MAX} entries in the digest")
    good = (
        all(shaped(head, str, int, int, bytes) and NAME.fullmatch(head[0]) for head in heads)
        and all(shaped(batch, bytes, int, bytes) for batch in batches)
        and all(type(one) is bytes for one in evidence)
    )
    if not good:
        raise EncodingError("heads, batches or evidence of the digest are misshapen")
    _check_lengths(
        *((head[3], HASH_BYTES) for head in heads),
        *((batch[0], KEY_ID_BYTES) for batch in batches),
        *((batch[2], HASH_BYTES) for batch in batches),
        *((one, HASH_BYTES) for one in evidence),
    )
    return Digest(order, heads, batches, evidence)


def _read_question(value: Any) -> Question:  # noqa: ANN401 - any decoded value
    if type(value) is not tuple or not value or value[0] not in _QUESTIONS:
        raise EncodingError("a question of no kind known here")
    kind, shape = _QUESTIONS[value[0]]
    if not shaped(value[1:], *shape):
        raise EncodingError("a question is misshapen")
    question: Question = kind(*value[1:])
    match question:
        case AskEvidence():
            _check_lengths((question.evidence, HASH_BYTES))
        case AskOwnBatch():
            _check_lengths((question.kid, KEY_ID_BYTES), (question.nonce, NONCE_BYTES))
        case AskHead():
            _check_lengths((question.nonce, NONCE_BYTES))
        case AskBatches():
            _check_lengths((question.kid, KEY_ID_BYTES))
        case AskBlocks() | AskCertificate() | AskClosings():
            pass
    return question


def blocks_message(sealed: tuple[bytes, ...]) -> bytes:
    """Return a message of several sealed blocks."""
    return encode([BLOCKS_CONTEXT, list(sealed)])
