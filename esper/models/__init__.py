"""Host networks of the shipped experiments."""
