"""Keys and sealed bytes: what is stored at rest can be read and changed by holders of a key only."""
