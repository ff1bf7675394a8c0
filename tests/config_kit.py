"""The least settings that are good, and what is said of others."""

from __future__ import annotations

from typing import TYPE_CHECKING

from meterd.config import Settings, check

if TYPE_CHECKING:
    from meterd.config_tables import Mistake

LEAST = """\
[meter]
name = "kitchen-12"
[board]
port = "/dev/ttyAMA0"
[[clamp]]
name = "mains"
role = "mains"
"""


def good(text: str) -> Settings:
    settings, mistakes = check(text, source="meterd.toml")
    assert mistakes == []
    assert settings is not None
    return settings


def least(table: str = "", /, **values: str) -> str:
    """The least settings, with these values of one table added or put in the place of its own."""
    lines = LEAST.splitlines()
    header = "[[clamp]]" if table == "clamp" else f"[{table}]"
    if table and header not in lines:
        lines.append(header)
    for key, value in values.items():
        at = lines.index(header) + 1
        own = [k for k, line in enumerate(lines[at:], at) if line.startswith(f"{key} =")]
        lines[own[0] if own else at : own[0] + 1 if own else at] = [f"{key} = {value}"]
    return "\n".join(lines) + "\n"


def mistakes_in(text: str) -> list[Mistake]:
    settings, mistakes = check(text, source="meterd.toml")
    assert (settings is None) == any(not mistake.warning for mistake in mistakes)
    return mistakes
