"""Limits of tests that end what hangs. They are no measure of speed: a busy machine may take ten times as long."""

# Seconds after which a command that a test started hangs. The slowest one takes about a minute on two idle cores.
HANGS = 1000
