"""What the programs of tools/benchmarks share. They import it from their own folder, as Python finds it: ``lib``."""
