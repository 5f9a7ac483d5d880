"""Data sets that ship, and loaders for those in a folder that the user names."""
