"""Tolaria: the training loop, seed orchestrator, rollback, checkpoints."""
