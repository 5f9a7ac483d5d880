"""The revisions, oldest first; each knows its way up and its way down."""
