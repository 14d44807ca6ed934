"""The command line and the long jobs behind its verbs."""
