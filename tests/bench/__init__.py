"""Figures beside their aims: medians of CPU time, as ratios to a baseline of the same run."""
