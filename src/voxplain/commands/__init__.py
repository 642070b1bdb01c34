"""The sub-commands of the command line, one file per group: they parse arguments, and others do the work."""
