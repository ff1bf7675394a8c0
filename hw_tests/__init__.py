"""What is tried on a Pi with its board, a known load and its pins; `--port sim` tries the tests."""
