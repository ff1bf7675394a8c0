"""Builds what whole-device tests boot: Debian with systemd and sshd, and what meterd depends on.

It is made once and kept; each test lays its changes over it. Takes root, mmdebstrap and a minute.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
BASE = ROOT / ".container"
SUITE = "trixie"  # the Debian that Raspberry Pi OS of today is made from
PYTHON = "3.13"  # its Python
VENV = "/usr/lib/meterd"
PACKAGES = (
    "systemd",
    "systemd-sysv",
    "dbus",
    "udev",
    "python3",
    "python3-venv",
    "python3-systemd",
    "openssh-server",
    "nftables",
    "iproute2",
    "usbguard",
    "mosquitto",
)
EXTRAS = ("cli", "ca")


def dependencies() -> list[str]:
    """Return what a device's meterd depends on, as pip wants it named."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    optional = project["optional-dependencies"]
    return [*project["dependencies"], *(name for extra in EXTRAS for name in optional[extra])]


def build() -> None:
    """Make the file tree anew."""
    if BASE.exists():
        shutil.rmtree(BASE)
    BASE.mkdir()
    tree = BASE / "root"
    run(
        # In a mount namespace: what it mounts in the tree ends with it, even where it is killed.
        *("unshare", "--mount", "mmdebstrap"),
        "--quiet",
        "--variant=minbase",
        f"--include={','.join(PACKAGES)}",
        SUITE,
        str(tree),
    )
    run("chroot", str(tree), "python3", "-m", "venv", "--system-site-packages", VENV)
    with tempfile.TemporaryDirectory(dir=tree) as wheels:
        kinds = ("manylinux_2_34", "manylinux_2_28", "manylinux2014")
        run(
            *(sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"),
            *(f"--python-version={PYTHON}", "--only-binary=:all:", f"--dest={wheels}"),
            *(f"--platform={kind}_{platform.machine()}" for kind in kinds),
            *dependencies(),
        )
        inside = f"/{Path(wheels).name}"
        install(tree, *(f"{inside}/{wheel.name}" for wheel in sorted(Path(wheels).glob("*.whl"))))
    for unit in ("ssh.service", "mosquitto.service", "usbguard.service", "usbguard-dbus.service"):
        run("chroot", str(tree), "systemctl", "--quiet", "disable", unit)


def install(tree: Path, *wheels: str) -> None:
    """Put wheels, named as the tree sees them, into its environment; nothing is fetched."""
    run(
        *("chroot", str(tree), "env", "--ignore-environment", "PATH=/usr/bin:/usr/sbin"),
        *("PIP_CONFIG_FILE=/dev/null", "PIP_ROOT_USER_ACTION=ignore"),
        *(f"{VENV}/bin/pip", "install", "--quiet", "--no-deps", "--no-index", *wheels),
    )


def run(*command: str) -> None:
    """Run a command; what it says is shown where it fails.

    Raises:
        subprocess.CalledProcessError: It failed.
    """
    done = subprocess.run(
        command, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=dict(os.environ)
    )
    if done.returncode:
        sys.stderr.write(done.stdout.decode(errors="replace"))
        done.check_returncode()


if __name__ == "__main__":
    build()
