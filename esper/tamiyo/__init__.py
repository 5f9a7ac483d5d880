"""Tamiyo: decides when, where and with what the network grows."""
