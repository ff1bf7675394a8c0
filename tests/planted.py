"""Bugs that the simulator has to find: each is planted into the real code for a while.

A bug is a line of the code written otherwise. Where the line is not there any more the planting
fails, and the bug has to be planted anew.
"""

from __future__ import annotations

import inspect
import textwrap
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from meterd.authority import (
    asking,
    attestation,
    boot,
    certificate,
    ending,
    judging,
    node,
    promises,
    recall,
    roster,
    runs,
    voting,
)
from meterd.device.store import Store
from meterd.ledger import encoding
from tests import sim_nodes, sim_oracle, simulator
from tests.sim_plan import Plan, Step

if TYPE_CHECKING:
    from collections.abc import Iterator


_SOURCES: dict[Any, str] = {}  # of functions that are planted: one may have several edits


class Edit(NamedTuple):
    """A line that is written otherwise.

    Attributes:
        owner: The class or module that holds the function.
        function: Its name.
        old: What stands there, once.
        new: What stands there instead.
        at: Where it is planted, if not there: modules that have imported it by its name.
    """

    owner: Any
    function: str
    old: str
    new: str
    at: tuple[Any, ...] = ()


class Bug(NamedTuple):
    """A planted bug.

    Attributes:
        edits: How it is planted.
        plan: What to play, under several seeds.
        refuted: What the oracle says of it.
        seeds: How many seeds are tried.
    """

    edits: tuple[Edit, ...]
    plan: Plan
    refuted: str
    seeds: int = 40


@contextmanager
def planted(bug: Bug) -> Iterator[None]:
    """Plant a bug, and take it out again."""
    with ExitStack() as stack:
        for edit in bug.edits:
            stack.enter_context(_edited(edit))
        yield


@contextmanager
def _edited(edit: Edit) -> Iterator[None]:
    real = getattr(edit.owner, edit.function)
    source = _SOURCES.get(real) or textwrap.dedent(inspect.getsource(real))
    assert source.count(edit.old) == 1, f"{edit.function} has changed: plant this bug anew"
    made: dict[str, Any] = {}
    source = source.replace(edit.old, edit.new)
    exec(source, real.__globals__, made)
    _SOURCES[made[edit.function]] = source
    owners = edit.at or (edit.owner,)
    try:
        for owner in owners:
            setattr(owner, edit.function, made[edit.function])
        yield
    finally:
        for owner in owners:
            setattr(owner, edit.function, real)


_CALM = Plan(
    0, drop=0.0, crashes=0, partitions=0, broker_deaths=0, jumps=0, meters=1, seconds=8, brief=True
)


def _put_back(
    ms: int, *more: Step, by_ms: int = 3500, off_ms: int = 0, brief: bool = False
) -> Plan:
    """Return a plan in which a card is put back at `ms`, by `by_ms`.

    One neighbour alone holds what it has sealed since; that one comes back once the others have
    answered, and before the meter seals, as its peer process has stopped.
    """
    script = (
        Step(ms - by_ms, "image", ("house-0",)),
        Step(ms - by_ms + 50, "cut", (by_ms - 100, ("house-0", "house-3"))),
        Step(ms - 30, "cut", (780, ("house-3",))),
        Step(ms, "restore", ("house-0",)),
        Step(ms + 790, "stop_peer", ("house-0", off_ms)),
        *more,
    )
    return replace(_CALM, seconds=ms // 1000 + 9, script=script, brief=brief)


_STORM = replace(_CALM, drop=0.3, crashes=12, partitions=2, meters=2)

BUGS: dict[str, Bug] = {
    "a majority is a quorum": Bug(
        (
            Edit(roster, "quorum", "(voters + faults_max(voters)) // 2", "voters // 2"),
            Edit(sim_oracle, "needed", "(voters + faults(voters)) // 2", "voters // 2"),
        ),
        # Two of five are cut off from two; the liar and its meter have a face for each side.
        replace(
            _CALM,
            voters=5,
            meters=5,
            liars=(4,),
            forkers=(4,),
            forking=0.0,
            script=(
                Step(0, "show", (("house-0", "house-1", "house-2", "house-3"),)),
                Step(4400, "show", (("house-0", "house-1"),)),
                Step(4500, "cut", (3000, ("house-0", "house-1"))),
                Step(4600, "let_fork", ("house-4",)),
            ),
        ),
        "two certificates",
    ),
    "a lock is not persisted": Bug(
        (
            Edit(
                sim_nodes.SimNode,
                "_do",
                "self.store.perform(effect.records)",
                "self.store.perform(tuple(r for r in effect.records if not "
                "(isinstance(r, PutBatch) and r.batch.kid == self.kid)))",
            ),
        ),
        _STORM,
        "is honest, and (signs two batches|attests two histories)",
    ),
    "a lock is released by a restart": Bug(
        (
            Edit(
                Store,
                "_snapshot",
                "votes=votes,",
                "votes=tuple(vote for vote in votes if vote[0] != kid),",
            ),
            Edit(
                Store,
                "_snapshot",
                "sequences=tuple(sequences),",
                "sequences=tuple(one for one in sequences if one[0] != kid),",
            ),
            Edit(recall.Recall, "settled", "known < boot_answers(", "known < 0 * boot_answers("),
        ),
        _STORM,
        "is honest, and (signs two batches|attests two histories)",
    ),
    "it is sent before it is persisted": Bug(
        (
            Edit(
                sim_nodes.SimNode,
                "perform",
                "for effect in effects:",
                "for effect in sorted(effects, key=lambda one: not isinstance(one, Send)):",
            ),
        ),
        replace(_STORM, drop=0.6, light=3),  # the boot rule mends what any quorum has heard
        "is honest, and (signs two batches|attests two histories)",
    ),
    "no genesis in the signature": Bug(
        (Edit(attestation, "_signed", "genesis, root", "bytes(32), root"),),
        replace(_CALM, sister=True),
        "is honest, and accused",
    ),
    "a boot answer without its nonce": Bug(
        (
            Edit(recall.Recall, "take", " or body.nonce != self._node.nonce", ""),
            Edit(
                asking.Asking,
                "take_head",
                "self._heads_asked.get(body.nonce)",
                "set()",
            ),
            Edit(
                boot.HeadSearch,
                "take",
                "asked_ms = self._asked.get(body.nonce)",
                "asked_ms = max(self._asked.values(), default=None)",
            ),
        ),
        replace(_CALM, restored=(0,), haunts=1.0),
        "seals block",
    ),
    "an ancestor is evidence": Bug(
        (Edit(certificate, "_two_votes", "if here == low.leaf.block_hash:", "if not here:"),),
        replace(_CALM, forgeries=4),
        "authority .* is honest, and accused",
    ),
    "an epoch begins without handover": Bug(
        (
            Edit(
                voting.Voting,
                "_turn",
                "len(self._closers(committee)) < committee.quorum and",
                "len(self._closers(committee)) < 0 and",
            ),
            Edit(voting.Voting, "_locks_adopted", ">= committee.quorum", ">= 0"),
        ),
        # Two of the old voters hear of the order and of nothing after it but a liar's word; the
        # liar's meter shows them one block, and those who are to vote with it from then on another.
        replace(
            _CALM,
            meters=4,
            liars=(3,),
            forkers=(3,),
            forking=0.0,
            spares=2,
            shy=True,
            script=(
                Step(0, "show", (("house-0", "house-1"),)),
                Step(2000, "change_roster", (("house-0", "house-1"), ("spare-0", "spare-1"))),
                Step(2160, "deafen", (("house-0", "house-1"), 4000)),
                Step(2900, "let_fork", ("house-3",)),
            ),
        ),
        "two certificates",
    ),
    "a meter does not ask before it seals": Bug(
        (
            Edit(
                boot.HeadSearch,
                "may_seal",
                "needed = self.needed(roster)",
                "needed = 0",
            ),
        ),
        replace(_CALM, restored=(0,)),
        "seals block",
    ),
    "an answer counts for ever": Bug(
        (Edit(boot.HeadSearch, "_fresh", "if now_ms - asked_ms < FRESH_MS", ""),),
        _put_back(7550, off_ms=2500, brief=True),
        "seals block",
    ),
    "a promise is not kept": Bug(
        (Edit(promises.Promises, "allowed", "self._given.get(meter, ())", "()"),),
        _put_back(11_550),
        "seals block",
    ),
    "a meter seals on before its first block is certified": Bug(
        (Edit(boot.HeadSearch, "may_seal", "return self.free", "return True"),),
        _put_back(18_550, Step(19_350, "cut", (7000, ("house-0",))), by_ms=9000),  # unseen then
        "seals block",
    ),
    "an unverified seal is evidence": Bug(
        (
            Edit(
                encoding,
                "verify_seal",
                "key.verify(_signed(sealed.kid, sealed.payload, genesis), sealed.seal)",
                "pass",
                (certificate,),  # alone: whoever takes a block for the chain still verifies it
            ),
        ),
        replace(_CALM, forgeries=2),
        "meter .* is honest, and accused",
    ),
    "of a frozen chain nothing is fetched": Bug(
        (
            Edit(asking.Asking, "_lacking", "or held.lacking:", "or held.frozen:"),
            Edit(
                asking.Asking,
                "take_digest",
                "here != block_hash:",
                "here != block_hash and not held.frozen:",
            ),
            Edit(judging.Judging, "_take_block", "if held.lacking or", "if held.frozen or"),
            Edit(runs.Runs, "_take", "or held.lacking or", "or held.frozen or"),
        ),
        # One is cut off while the others certify a block of which it then sees the twin.
        replace(
            _CALM,
            meters=2,
            forkers=(0,),
            forking=0.0,
            seconds=13,
            script=(
                Step(4400, "show", (("house-1", "house-2"),)),
                Step(4500, "let_fork", ("house-0",)),
                Step(4950, "cut", (900, ("house-3",))),
                *(Step(ms, "resolve") for ms in range(7000, 13_000, 300)),
            ),
        ),
        "not all is certified",
    ),
    "whom an order removes is a stranger at once": Bug(
        (
            Edit(
                node.Node,
                "key_of",
                "reversed(self.roster.committees)",
                "self.roster.committees[self.epoch - 1 :]",
            ),
        ),
        replace(_CALM, drop=0.3, liars=(3,), spares=1, changes=((2, 1),), removals=True),
        "not all is certified",
    ),
    "a chain ends where its end is certified here": Bug(
        (
            Edit(
                ending,
                "end_of",
                "ours, elsewhere = held.certified, set[int]()",
                "return End(held.certified, held.hashes[held.certified], elsewhere=False)",
                (simulator, judging),
            ),
        ),
        # It is ended as soon as its revocation is known to be in force.
        replace(
            _CALM,
            drop=0.4,
            seconds=12,
            script=tuple(Step(ms, "replace_meter") for ms in range(8000, 12_000, 20)),
        ),
        "it ends at|not all is certified",
    ),
    "what was certified before the key was revoked is not taken": Bug(
        (
            Edit(
                ending,
                "open_to",
                "return max(best, min(some, held.certified + DISPUTED_MAX))",
                "return 0",
                (judging, runs),
            ),
        ),
        replace(_CALM, drop=0.3, partitions=3, meters=2, replaces=9),
        "not all is certified",
    ),
    "a vote counts twice": Bug(
        (
            Edit(
                voting.Voting,
                "certify",
                "if len(heights) >= committee.quorum:",
                "if len(heights := sorted(heights * 2, reverse=True)) >= committee.quorum:",
            ),
        ),
        replace(_CALM, light=2),
        "for certified, it is not",
    ),
}
