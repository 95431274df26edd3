"""The command line: options, calls, and what is printed."""
