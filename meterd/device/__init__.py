"""One file for each outside thing: port, clock, card, key, service manager, control socket."""
