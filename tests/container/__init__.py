"""A whole device: a booted container with a real systemd, the units, a pty for a board."""
