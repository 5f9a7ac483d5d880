"""Nissa: metrics, events, health, HTTP API."""
