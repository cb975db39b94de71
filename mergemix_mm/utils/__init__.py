"""What every part of the package may use, and what imports none of them."""
