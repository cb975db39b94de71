"""What the programs of tools/benchmarks share. They find it as ``lib``, because it is in their folder."""

# Before any import of MMPretrain, which needs names that transformers 5 no longer has (mergemix_mm/upstream.py).
import mergemix_mm  # noqa: F401
