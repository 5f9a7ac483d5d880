"""Real servers for tests, started on free ports, as root or not; each module is a pytest plugin."""
