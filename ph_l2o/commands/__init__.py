"""What the command line does: configuration, folders, errors, and the two commands."""
