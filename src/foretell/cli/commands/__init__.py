"""One file per command: its options, its help, and what to import once it runs."""
