"""One file per command: its options and its help. `foretell.cli.COMMANDS` names what does it."""
