"""``python -m reshard`` is the command ``reshard``."""

from .cli.app import main

main()
