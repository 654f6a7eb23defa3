"""``python -m kvload``."""

from kvload.cli.main import main

main()
