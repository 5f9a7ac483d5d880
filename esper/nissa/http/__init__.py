"""Serving over HTTP: the listener, TLS, who is let in, and what bounds a request."""
