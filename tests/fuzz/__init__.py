"""What bytes from outside may do: be refused. The same targets for Hypothesis and for atheris."""
