"""meterd: exact energy from a clamp, in an account that anybody can check."""
