"""``python -m gkt_plugins.cli``: the same as ``gkt``."""

from gkt_plugins.cli import main

main()
