"""What a set of paired runs shows: statistics and a verdict, from plain numbers alone."""
