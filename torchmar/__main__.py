"""``python -m torchmar``."""

from torchmar.cli import main

main()
