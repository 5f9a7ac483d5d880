"""Long exercises with real servers; each module is one command."""
