"""What the programs of tools/benchmarks share. They find it as ``lib``, because it is in their folder."""
