"""What whoever asks of a stored account is told: good, bad and where first, or unreadable.

>>> Verdict(verdict="good").key
'self-asserted'
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from meterd.errors import EncodingError
from meterd.ledger.account import decode_genesis
from meterd.ledger.chain import open_chain
from meterd.ledger.encoding import digest
from meterd.ledger.findings import Start
from meterd.ledger.judge import judge
from meterd.ledger.segment import STREAMS, read_header
from meterd.ledger.stored import Bad, End, Tail

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from meterd.ledger.account import Genesis
    from meterd.ledger.chain import Chain, Head
    from meterd.ledger.findings import Findings, Tools
    from meterd.ledger.judge import Files
    from meterd.ledger.segment import Header


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What whoever verifies knows from elsewhere than the account itself.

    Attributes:
        genesis: The network's genesis, or empty.
        key: The sealing key, 32 bytes, or empty.
        head: Height and hash of a block that the account must hold, or None.
    """

    genesis: bytes = b""
    key: bytes = b""
    head: tuple[int, bytes] | None = None

    @property
    def key_said(self) -> str:
        """What a verdict says of the key; a block's hash vouches for genesis and key too."""
        return "given" if self.genesis or self.key or self.head else "self-asserted"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What an audit found.

    Attributes:
        verdict: `good`, `bad` or `unreadable`.
        blocks: Blocks that verify.
        records: Rows that those blocks take.
        first_bad: The first bad place, or None.
        tail: Bytes past the last durable mark that count for nothing, or None; none of them where
            only the event is missing that says that the last block was sealed.
        key: `given` if genesis, key or a block's hash came from elsewhere, else `self-asserted`.
        head: The last block that verifies, or None.
        open_rows: Rows that are linked and not sealed yet.
        pruned: Segments of samples that were rightly pruned.
        reason: Why it is unreadable, or an empty text.
    """

    verdict: str
    blocks: int = 0
    records: int = 0
    first_bad: Bad | None = None
    tail: Tail | None = None
    key: str = "self-asserted"
    head: Head | None = None
    open_rows: int = 0
    pruned: int = 0
    reason: str = ""


class _Opened(NamedTuple):
    """An account's empty chain, or what is wrong with its genesis."""

    chain: Chain | None
    bad: Bad | None
    reason: str


def verdict(
    genesis: bytes,
    files: Files,
    tools: Tools,
    known: Known,
    opener: Callable[[Genesis, str], Chain] = open_chain,
) -> Verdict:
    """Judge a whole account from its genesis on.

    Args:
        genesis: The account's genesis as stored; empty where there is none.
        files: Its segments.
        tools: What reads and audits its samples.
        known: What the caller knows from elsewhere.
        opener: Opens a meter's empty chain by the genesis, and by orders where there are any.
    """
    key = known.key_said
    opened = _open(genesis, files, known, opener)
    if opened.chain is None:
        if opened.bad:
            return Verdict(verdict="bad", key=key, first_bad=opened.bad)
        return Verdict(verdict="unreadable", key=key, reason=opened.reason)
    start = Start(chain=opened.chain, ends={stream: End() for stream in STREAMS})
    found = judge(files, start, tools)
    bad = found.first_bad or _check_head(found, known)
    return Verdict(
        verdict="bad" if bad else "good",
        blocks=len(found.blocks),
        records=found.records,
        first_bad=bad,
        tail=_tail(found),
        key=key,
        head=found.chain.head,
        open_rows=sum(part.segment.rows - part.first_row for part in found.open),
        pruned=len(found.pruned),
    )


def _headers(files: Files) -> Iterator[Header]:
    heads = {
        "events": files.events,
        "blocks": files.blocks,
        "samples": [(file.number, file.head) for file in files.samples],
    }
    for stream, segments in heads.items():
        for _, data in segments:
            try:
                header, _ = read_header(data, stream)
            except EncodingError:
                continue
            yield header


def _open(
    stored: bytes, files: Files, known: Known, opener: Callable[[Genesis, str], Chain]
) -> _Opened:
    """Return the empty chain that genesis and headers agree on."""
    if known.genesis and stored and stored != known.genesis:
        return _Opened(None, _bad_genesis("the account's genesis is not the given one"), "")
    genesis_bytes = known.genesis or stored
    genesis_hash = digest(genesis_bytes)
    named = next((head for head in _headers(files) if head.genesis == genesis_hash), None)
    if named is None and genesis_bytes and any(_headers(files)):
        return _Opened(None, _bad_genesis("the genesis is not the one that the segments name"), "")
    try:
        genesis = decode_genesis(genesis_bytes)
        alone = genesis.meters[0].name if len(genesis.meters) == 1 else ""
        chain = opener(genesis, (named.meter if named else "") or alone)
    except EncodingError as error:
        return _Opened(None, None, f"no genesis to judge by: {error}")
    if known.key and known.key not in (chain.sealer, *(key for _, key in chain.keys)):
        reason = f"the account is {chain.sealer.hex()}'s by its genesis, not the given key's"
        return _Opened(None, _bad_genesis(reason), "")
    return _Opened(chain, None, "")


def _bad_genesis(reason: str) -> Bad:
    return Bad("genesis", None, None, 0, 0, reason)


def _tail(found: Findings) -> Tail | None:
    if found.tails:
        return found.tails[0]
    if found.unclaimed:
        end = found.ends["events"]
        return Tail("events", end.number, end.counted_bytes, b"")
    return None


def _check_head(found: Findings, known: Known) -> Bad | None:
    if known.head is None:
        return None
    height, block_hash = known.head
    head, end = found.chain.head, found.ends["blocks"]
    if height > head.height:
        reason = f"the account ends at block {head.height}, block {height} is known: cut back"
        return Bad("blocks", height, head.end_s, end.number, end.counted_bytes, reason)
    hashes = [block.previous for block in found.blocks] + [head.block_hash]
    if hashes[height] != block_hash:
        start_s = found.blocks[height - 1].start_s if height else None
        reason = f"block {height} is not the one that is known: two histories"
        return Bad("blocks", height, start_s, end.number, 0, reason)
    return None
