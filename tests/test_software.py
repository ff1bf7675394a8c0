from __future__ import annotations

import hashlib
import shutil
from base64 import urlsafe_b64encode
from typing import TYPE_CHECKING

import pytest

from meterd.software import PACKAGE, Installed, SoftwareChangedError, check_installed, software_id

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A small package of the real one's shape, as a wheel's installer leaves it."""
    site = tmp_path / "lib" / "site-packages"
    texts = {
        "meterd/__init__.py": "",
        "meterd/ctl.py": "print('a table')\n",
        "meterd/device/control.py": "socket = 1\n",
        "meterd/device/log.py": "sync = 1\n",
        "meterd/errors.py": "class MeterdError(Exception): pass\n",
        "meterd/ledger/ledger.cddl": "block = [tstr]\n",
        "meterd/metering/energy.py": "UJ = 1\n",
        "meterd/metering/with, comma.py": "",
        "../bin/meterd": "#!/bin/sh\n",
    }
    rows = []
    for name, text in texts.items():
        path = site / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        digest = urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
        shown = f'"{name}"' if "," in name else name
        rows.append(f"{shown},sha256={digest},{len(text)}\n")
    info = site / "meterd-0.1.0.dist-info"
    info.mkdir()
    rows += ["meterd/__pycache__/ctl.cpython-311.pyc,,\n", "meterd-0.1.0.dist-info/RECORD,,\n"]
    (info / "RECORD").write_text("".join(rows))
    return site / "meterd"


def flip_a_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    "name",
    [
        "__init__.py",
        "device/log.py",
        "device/new_part_of_the_log.py",
        "errors.py",
        "ledger/ledger.cddl",
        "metering/energy.py",
        "metering/new.py",
    ],
)
def test_the_id_changes_with_a_byte_of_a_relevant_module(package: Path, name: str) -> None:
    before = software_id(package)
    with (package / name).open("ab") as file:
        file.write(b"#")
    assert software_id(package) != before


@pytest.mark.parametrize("name", ["ctl.py", "device/control.py", "demo.py", "../../bin/meterd"])
def test_the_id_stays_with_a_byte_of_another(package: Path, name: str) -> None:
    before = software_id(package)
    with (package / name).open("ab") as file:
        file.write(b"#")
    assert software_id(package) == before


def test_the_id_changes_when_contents_change_places(package: Path) -> None:
    before = software_id(package)
    one, other = package / "errors.py", package / "metering" / "energy.py"
    texts = one.read_text(), other.read_text()
    one.write_text(texts[1])
    other.write_text(texts[0])
    assert software_id(package) != before


def test_the_id_changes_with_the_name_of_a_relevant_module(package: Path) -> None:
    """Though all contents are as before, and in the same order."""
    before = software_id(package)
    path = package / "metering" / "energy.py"
    path.rename(path.with_name("energz.py"))
    assert software_id(package) != before


def test_the_id_is_the_same_wherever_the_package_lies(tmp_path: Path) -> None:
    shutil.copytree(PACKAGE, tmp_path / "elsewhere")
    assert software_id(tmp_path / "elsewhere") == software_id()


def test_the_id_covers_what_reads_measures_and_seals(tmp_path: Path) -> None:
    """So that a module that moves does not leave the identifier in silence."""
    package = tmp_path / "meterd"
    shutil.copytree(PACKAGE, package)
    for name in ("metering/board.py", "metering/energy.py", "ledger/encoding.py", "config.py"):
        before = software_id(package)
        assert (package / name).is_file(), name
        with (package / name).open("ab") as file:
            file.write(b"#")
        assert software_id(package) != before, name


def test_what_was_installed_is_verified(package: Path) -> None:
    expected = "9 installed files are as their RECORD says"
    assert check_installed(package) == Installed("verified", 9, expected)


@pytest.mark.parametrize(
    "name", ["ctl.py", "metering/energy.py", "metering/with, comma.py", "../../bin/meterd"]
)
def test_a_flipped_byte_is_refused_and_named(package: Path, name: str) -> None:
    path = (package / name).resolve()
    path.write_bytes(path.read_bytes() or b"\n")
    flip_a_byte(path)
    with pytest.raises(SoftwareChangedError, match=f"{path.name} is not as it was installed"):
        check_installed(package)


def test_a_missing_file_is_refused_and_named(package: Path) -> None:
    (package / "errors.py").unlink()
    with pytest.raises(SoftwareChangedError, match=r"meterd/errors\.py is missing"):
        check_installed(package)


@pytest.mark.parametrize("name", ["metering/energy/__init__.py", "ctl.abi3.so", "ssl.pyc"])
def test_an_added_module_is_refused_and_named(package: Path, name: str) -> None:
    path = package / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"")
    with pytest.raises(SoftwareChangedError, match=f"meterd/{name} was added"):
        check_installed(package)


def test_byte_code_that_python_cached_is_no_addition(package: Path) -> None:
    cache = package / "metering" / "__pycache__"
    cache.mkdir()
    (cache / "energy.cpython-311.pyc").write_bytes(b"")
    assert check_installed(package).state == "verified"


@pytest.mark.parametrize(
    ("record", "message"),
    [
        pytest.param(None, "has no RECORD", id="none"),
        pytest.param("", "names no file", id="an empty one"),
        pytest.param("meterd/ctl.py\n", "damaged at line 1", id="a damaged one"),
        pytest.param("meterd/errors.py,md5=0,1\n", "errors.py is not as", id="another hash"),
        pytest.param("meterd/errors.py,,1\n", "names no file", id="one without hashes"),
        pytest.param("meterd/lost.py,sha256=0,1\n", "lost.py is missing", id="one with others"),
    ],
)
def test_an_installation_is_refused_whose_record_is(
    package: Path, record: str | None, message: str
) -> None:
    path = package.parent / "meterd-0.1.0.dist-info" / "RECORD"
    path.unlink()
    if record is not None:
        path.write_text(record)
    with pytest.raises(SoftwareChangedError, match=message):
        check_installed(package)


def test_a_file_that_the_record_does_not_name_any_more_is_refused(package: Path) -> None:
    path = package.parent / "meterd-0.1.0.dist-info" / "RECORD"
    rows = path.read_text().splitlines(keepends=True)
    path.write_text("".join(row for row in rows if not row.startswith("meterd/errors.py")))
    with pytest.raises(SoftwareChangedError, match=r"meterd/errors\.py was added"):
        check_installed(package)


def test_two_installations_in_one_place_are_refused(package: Path) -> None:
    shutil.copytree(
        package.parent / "meterd-0.1.0.dist-info", package.parent / "meterd-0.2.0.dist-info"
    )
    with pytest.raises(SoftwareChangedError, match="installed twice"):
        check_installed(package)


def test_a_source_tree_says_that_it_is_one(tmp_path: Path) -> None:
    package = tmp_path / "meterd"
    package.mkdir()
    expected = "editable install: not checked against a RECORD"
    assert check_installed(package) == Installed("editable", 0, expected)
