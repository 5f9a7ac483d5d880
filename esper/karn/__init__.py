"""Karn: invents blueprints from field reports."""
