"""The account and its rules. Pure: bytes in, verdicts out."""
