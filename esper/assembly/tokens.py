"""Tokens of a configuration. Importing this does not import PyTorch."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from esper.security.token_keys import TokenAuthority
from esper.security.token_trust import TrustedFile
from esper.security.tokens import TokenRules


def build_token_authority(cfg: DictConfig) -> TokenAuthority:
    """What signs tokens, and says which are trusted."""
    return TokenAuthority(Path(cfg.nissa.tokens.signing_keys), Path(cfg.nissa.tokens.trusted_keys))


def build_trusted(cfg: DictConfig) -> TrustedFile:
    """What a server trusts."""
    return TrustedFile(Path(cfg.nissa.tokens.trusted_keys))


def build_token_rules(cfg: DictConfig) -> TokenRules:
    """What tokens say, and how long they last; raises ConfigError."""
    tokens = cfg.nissa.tokens
    return TokenRules(str(tokens.issuer), str(tokens.audience), tokens.service_minutes, tokens.person_minutes)
