"""The command line: settings, answers in the terminal, progress bars."""
