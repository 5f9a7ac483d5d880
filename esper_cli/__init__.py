"""The command line of Esper."""
