"""The desk of the vault without a meter: in which order things become durable, and who may ask."""

from __future__ import annotations

import asyncio
import os
from base64 import b64decode, b64encode
from typing import TYPE_CHECKING, Any

import pytest

from meterd.device.card import BESIDE, Card, CardFullError
from meterd.device.control import _Control
from meterd.device.control_roles import may
from meterd.device.vault import StoredVault
from meterd.device.vault_events import DETAIL
from meterd.errors import (
    AbsentError,
    BusyError,
    StorageError,
    UsageError,
    VaultRefusedError,
    WrongPassphraseError,
)
from meterd.pins import EVENT_EVERY_MS, EVENTS_AT_ONCE
from meterd.privacy.share import decode_share, new_share, take
from meterd.vault_desk import REQUESTS_MAX, VaultDesk
from tests.device.test_control import Meter
from tests.device.test_vault import DEVICE, KEY, NAME, QUICK, crashed, draw

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine
    from pathlib import Path

    from meterd.device.card import Operation
    from meterd.ledger.event import Details
    from meterd.privacy.share import Share

OTHER_KEY = b"o" * 32


class Desk:
    """A desk, and in which order files and events became durable."""

    def __init__(self, state: Path) -> None:
        self.state, self.done, self.now_ms = state, list[tuple[str, Any]](), 0
        self.desk = VaultDesk(
            state,
            DEVICE,
            bound=False,
            version=0,
            record=self._record,
            now_ms=lambda: self.now_ms,
        )

    async def _record(self, kind: str, details: Details) -> tuple[int, int]:
        self.done.append((kind, dict(details)))
        return len(self.done), 7

    @property
    def events(self) -> list[tuple[str, Any]]:
        return [each for each in self.done if each[0].startswith("vault_")]

    async def keep(
        self, share: Share, key: bytes = KEY, *, version: int | None = None, uid: int = 0
    ) -> Any:  # noqa: ANN401
        version = self.desk.version if version is None else version
        return await self.desk.kept(b64encode(share.encode()).decode(), key.hex(), version, uid)

    def share(self, *purposes: str, key: bytes = KEY) -> Share:
        with StoredVault(self.state, DEVICE) as stored:
            return take(stored.vault, "s-1", key, purposes)


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    """Return a desk whose vault holds one person's name, in its first version."""
    one = Desk(tmp_path)
    share = new_share("s-1", QUICK, KEY, draw).put(KEY, "person", 1, NAME, draw)
    reply = asyncio.run(one.keep(share, b""))
    assert (reply["version"], reply["wall_ms"], reply["purposes"]) == (1, 7, ["person"])
    one.done.clear()
    return one


async def put(desk: Desk) -> None:
    await desk.keep(desk.share().put(KEY, "person", 2, b"Bob", draw))


async def rotate(desk: Desk) -> None:
    await desk.desk.rotated(0)


async def rekey(desk: Desk) -> None:
    await desk.keep(desk.share("person").rekeyed(KEY, draw))


async def repass(desk: Desk) -> None:
    await desk.keep(desk.share().with_passphrase(KEY, QUICK, OTHER_KEY, draw))


async def erase(desk: Desk) -> None:
    await desk.desk.erased("s-1", 0)


CHANGES = [
    pytest.param(put, "vault_put", (b"Bob", KEY), id="put"),
    pytest.param(rotate, "vault_rotated", (NAME, KEY), id="another root key"),
    pytest.param(rekey, "vault_rotated", (NAME, KEY), id="another key of a person"),
    pytest.param(repass, "vault_rotated", (NAME, OTHER_KEY), id="another passphrase"),
    pytest.param(erase, "vault_erased", (None, KEY), id="erase"),
]


@pytest.mark.parametrize(("change", "kind", "after"), CHANGES)
def test_v7_power_may_fail_at_each_step_of_each_change(
    desk: Desk,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[Desk], Coroutine[Any, Any, None]],
    kind: str,
    after: tuple[bytes | None, bytes],
) -> None:
    """One valid state, as it was or as it shall be; and no event before its version is durable."""
    tmp_path = desk.state
    folder = tmp_path / "vault"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    performed: list[Operation] = []
    real = Card._do

    def do(card: Card, operation: Operation) -> None:
        if folder in {operation.path.parent, operation.path}:
            performed.append(operation)
            desk.done.append(("card", operation.kind))
        real(card, operation)

    monkeypatch.setattr(Card, "_do", do)
    asyncio.run(change(desk))
    monkeypatch.undo()
    names = [name for name, _ in desk.done]
    assert names == ["card"] * (len(names) - 1) + [kind], "the event comes last, and once"
    assert desk.events[-1][1][DETAIL] == 2
    performed = [one for one in performed if one != ("sync_folder", folder, b"")]
    there = tmp_path / "there"
    there.mkdir()
    for name, data in before.items():
        (there / name).write_bytes(data)
    operations = [
        *(one._replace(path=there / one.path.name) for one in performed),
        type(performed[0])("sync_folder", there),
    ]
    seen = set[bytes | None]()
    for number, (_, files) in enumerate(crashed(there, operations)):
        again = tmp_path / f"again-{number}"
        (again / "vault").mkdir(parents=True, mode=0o700)
        for name, data in files.items():
            (again / "vault" / name).write_bytes(data)
        now = held(again, after[1])
        assert now in (NAME, after[0])
        seen.add(now)
    assert seen == {NAME, after[0]}
    assert held(tmp_path, after[1], version_min=2) == after[0]


def held(state: Path, key_after: bytes, *, version_min: int = 1) -> bytes | None:
    """Return the name in a vault, by the passphrase of before or after; None where it is gone."""
    with StoredVault(state, DEVICE, version_min=version_min) as stored:
        for key in (KEY, key_after):
            try:
                return take(stored.vault, "s-1", key, ("person",)).get(key, "person")
            except WrongPassphraseError:
                continue
            except AbsentError:
                return None
    raise AssertionError("no passphrase opens it")


@pytest.mark.parametrize(("change", "kind", "_after"), CHANGES)
def test_v7_a_card_that_is_full_leaves_the_vault_and_the_meter_runs(
    desk: Desk,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[Desk], Coroutine[Any, Any, None]],
    kind: str,
    _after: tuple[bytes | None, bytes],
) -> None:
    def full(_card: Card, _operations: list[Operation]) -> None:
        raise CardFullError("replace content-2: no space left on device")

    monkeypatch.setattr(Card, "perform", full)
    with pytest.raises(CardFullError):
        asyncio.run(change(desk))
    monkeypatch.undo()
    assert (desk.events, held(desk.state, KEY)) == ([], NAME)
    assert desk.desk._broken.empty()
    asyncio.run(change(desk))
    assert desk.events[-1][0] == kind


def test_l3_a_card_that_fails_under_a_change_ends_the_process(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(_card: Card, _operations: list[Operation]) -> None:
        raise StorageError("sync_folder vault: input/output error")

    async def both() -> None:
        watching = asyncio.create_task(desk.desk.watch())
        with pytest.raises(StorageError):
            await rotate(desk)
        await watching

    monkeypatch.setattr(Card, "perform", fails)
    with pytest.raises(StorageError, match="input/output error"):
        asyncio.run(both())
    assert desk.events == []


def test_a_change_is_told_of_though_whoever_asked_has_gone(desk: Desk) -> None:
    async def go() -> None:
        asking = asyncio.create_task(desk.desk.erased("s-1", 0))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        while desk.desk._running:
            await asyncio.wait(desk.desk._running)

    asyncio.run(go())
    assert [kind for kind, _ in desk.events] == ["vault_erased"]
    assert held(desk.state, KEY) is None


def test_what_was_read_is_on_record_before_it_is_handed_out(desk: Desk) -> None:
    async def refuses(_kind: str, _details: Details) -> tuple[int, int]:
        raise StorageError("the card is gone")

    reply = asyncio.run(desk.desk.taken("s-1", KEY.hex(), ["person"], 1000))
    assert decode_share(b64decode(reply["share"])).get(KEY, "person") == NAME
    about = {"subject": "s-1", "purpose": "person", "vault": 1, "uid": 1000}
    assert desk.events == [("vault_read", about)]
    desk.desk._record = refuses
    with pytest.raises(StorageError):
        asyncio.run(desk.desk.taken("s-1", KEY.hex(), ["person"], 1000))


def test_who_is_known_is_not_replaced_without_the_passphrase_before(desk: Desk) -> None:
    fresh = new_share("s-1", QUICK, OTHER_KEY, draw).put(OTHER_KEY, "person", 2, b"", draw)
    with pytest.raises(UsageError, match="the passphrase before is needed"):
        asyncio.run(desk.keep(fresh, b""))
    with pytest.raises(WrongPassphraseError):
        asyncio.run(desk.keep(fresh, OTHER_KEY))
    assert held(desk.state, KEY) == NAME


def test_two_who_change_at_once_do_not_lose_a_record(desk: Desk) -> None:
    share = desk.share().put(KEY, "contract", 1, b"4711", draw)
    asyncio.run(put(desk))
    with pytest.raises(BusyError, match="changed meanwhile"):
        asyncio.run(desk.keep(share, version=1))
    assert held(desk.state, KEY) == b"Bob"


def test_the_wait_after_mistakes_holds_for_the_right_passphrase_too_and_ends(desk: Desk) -> None:
    wrong = OTHER_KEY.hex()
    for _ in range(3):
        with pytest.raises(WrongPassphraseError, match="not the passphrase of s-1"):
            asyncio.run(desk.desk.taken("s-1", wrong, ["person"], 1000))
    desk.now_ms += 7_999
    for asked in (
        desk.desk.taken("s-1", KEY.hex(), ["person"], 1000),
        desk.keep(desk.share().put(KEY, "person", 2, b"", draw), uid=1000),
    ):
        with pytest.raises(BusyError, match="too many wrong passphrases for s-1") as busy:
            asyncio.run(asked)
        assert busy.value.hint == "the next is heard in 1 s"
    assert [kind for kind, _ in desk.events] == ["vault_refused"] * 3
    desk.now_ms += 1
    asyncio.run(desk.desk.taken("s-1", KEY.hex(), ["person"], 1000))
    assert desk.events[-1][0] == "vault_read"
    with pytest.raises(WrongPassphraseError, match="not the passphrase of s-1"):
        asyncio.run(desk.desk.taken("s-1", wrong, ["person"], 1000))
    asyncio.run(desk.desk.taken("s-1", KEY.hex(), ["person"], 1000))


def test_who_guesses_keeps_the_operator_from_nothing(desk: Desk) -> None:
    for uid in (1000, 1001, 1002):
        with pytest.raises(WrongPassphraseError):
            asyncio.run(desk.desk.taken("s-1", OTHER_KEY.hex(), [], uid))
    with pytest.raises(BusyError, match="too many wrong"):
        asyncio.run(desk.desk.taken("s-1", KEY.hex(), [], 1003))
    for uid in (0, os.geteuid()):
        asyncio.run(desk.desk.taken("s-1", KEY.hex(), [], uid))


async def ask(desk: Desk, key: bytes, *purposes: str) -> str:
    """Return what becomes of a request: nothing, or the error's name."""
    try:
        await desk.desk.taken("s-1", key.hex(), list(purposes), TECHNICIAN)
    except (BusyError, WrongPassphraseError) as error:
        return type(error).__name__
    return ""


def test_who_has_a_passphrase_fills_no_card_with_events_of_reading(desk: Desk) -> None:
    came = [asyncio.run(ask(desk, KEY, "person")) for _ in range(EVENTS_AT_ONCE + 9)]
    assert came == [""] * EVENTS_AT_ONCE + ["BusyError"] * 9
    assert len(desk.events) == EVENTS_AT_ONCE
    desk.now_ms += EVENT_EVERY_MS
    assert [asyncio.run(ask(desk, KEY, "person")) for _ in range(2)] == ["", "BusyError"]


def test_who_has_a_passphrase_fills_no_card_with_events_of_wrong_ones(desk: Desk) -> None:
    for _ in range(EVENTS_AT_ONCE + 9):
        assert asyncio.run(ask(desk, OTHER_KEY)) == "WrongPassphraseError"
        assert asyncio.run(ask(desk, KEY)) == ""
    assert [kind for kind, _ in desk.events] == ["vault_refused"] * EVENTS_AT_ONCE
    desk.now_ms += EVENT_EVERY_MS
    asyncio.run(ask(desk, OTHER_KEY))
    assert desk.events[-1][1]["untold"] == 9
    desk.now_ms += EVENT_EVERY_MS
    asyncio.run(ask(desk, OTHER_KEY))
    assert "untold" not in desk.events[-1][1]


def test_requests_whose_askers_have_gone_do_not_heap_up(desk: Desk) -> None:
    async def come_and_go() -> int:
        loop = asyncio.get_running_loop()
        with StoredVault(desk.state, DEVICE):  # it answers, in a moment, that it is busy
            for _ in range(50 * REQUESTS_MAX):
                asked = loop.create_task(ask(desk, KEY))
                await asyncio.sleep(0)
                asked.cancel()
                await asyncio.gather(asked, return_exceptions=True)
            waiting = list(desk.desk._running)
        await asyncio.gather(*waiting, return_exceptions=True)
        return len(waiting)

    assert 0 < asyncio.run(come_and_go()) <= REQUESTS_MAX
    assert asyncio.run(ask(desk, KEY)) == ""


@pytest.mark.parametrize(
    ("ask", "kind", "message"),
    [
        (lambda d: d.taken("s-1", "77", [], 0), UsageError, "is 64 hex digits"),
        (lambda d: d.taken("s-1", "x" * 64, [], 0), UsageError, "is 64 hex digits"),
        (lambda d: d.taken("s-9", "00" * 32, [], 0), AbsentError, "nothing of s-9"),
        (lambda d: d.kept("?", "", 1, 0), UsageError, "no person's part"),
        (lambda d: d.kept("AAAA", "", 1, 0), UsageError, "no person's part"),
        (lambda d: d.erased("s-9", 0), AbsentError, "nothing of s-9"),
    ],
)
def test_what_is_asked_wrongly_changes_nothing(
    desk: Desk,
    ask: Callable[[VaultDesk], Coroutine[Any, Any, object]],
    kind: type[Exception],
    message: str,
) -> None:
    before = {path: path.read_bytes() for path in (desk.state / "vault").iterdir()}
    with pytest.raises(kind, match=message):
        asyncio.run(ask(desk.desk))
    assert {path: path.read_bytes() for path in (desk.state / "vault").iterdir()} == before
    assert desk.events == []


def test_without_a_device_secret_there_is_no_vault() -> None:
    with pytest.raises(AbsentError, match="no secret of its own"):
        told(_Control(Meter(), 0).VaultList())


def test_the_devices_own_keys_are_neither_handed_out_nor_erased(desk: Desk) -> None:
    with StoredVault(desk.state, DEVICE) as stored:
        vault = stored.vault.with_subject("device", draw).put("device", "seal-1", b"", draw)
        stored.keep(vault)
    with pytest.raises(VaultRefusedError, match="is a part of the device"):
        asyncio.run(desk.desk.erased("device", 0))
    with pytest.raises(VaultRefusedError, match="is a part of the device"):
        asyncio.run(desk.desk.taken("device", KEY.hex(), ["seal-1"], 0))


TECHNICIAN = 31_999


def told(answer: Awaitable[Any]) -> Any:  # noqa: ANN401 - whatever is answered
    """Return what a method of the socket answers."""

    async def wait() -> Any:  # noqa: ANN401
        return await answer

    return asyncio.run(wait())


def test_a_member_of_the_group_lists_and_reads_by_passphrase_and_changes_nothing(
    desk: Desk,
) -> None:
    control = _Control(Meter(), TECHNICIAN, desk.desk)
    listed = told(control.VaultList()).parameters
    assert [one["subject"] for one in listed["subjects"]] == ["s-1"]
    with pytest.raises(WrongPassphraseError):
        told(control.VaultTake(subject="s-1", key="00" * 32, purposes=["person"]))
    told(control.VaultTake(subject="s-1", key=KEY.hex(), purposes=["person"]))
    assert not any(may("technician", name) for name in ("VaultKeep", "VaultRotate", "VaultErase"))
    assert held(desk.state, KEY) == NAME
    for uid in (0, os.geteuid()):
        told(_Control(Meter(), uid, desk.desk).VaultRotate())


def test_nothing_half_written_is_left_behind(desk: Desk) -> None:
    (desk.state / "vault" / f"content-2{BESIDE}").write_bytes(b"power failed")
    asyncio.run(put(desk))
    asyncio.run(rotate(desk))
    assert sorted(path.name for path in (desk.state / "vault").iterdir()) == ["content-3", "key"]
