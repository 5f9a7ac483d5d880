"""``esper token``: who may ask what of ``esper serve-metrics``."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from esper.errors import ConfigError
from esper_cli.completion import complete_overrides
from esper_cli.keys import tell_key_made
from esper_cli.terminal import print_json, print_lines, table

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from esper.security.sources import Announce
    from esper.security.token_keys import TokenAuthority
    from esper.security.tokens import TokenHolder

app = typer.Typer(no_args_is_help=True, help="Issue, verify and revoke tokens for the HTTP API.")
keys = typer.Typer(no_args_is_help=True, help="List, rotate and retire the keys that sign tokens.")
app.add_typer(keys, name="keys")

Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE",
        help="Overrides of the configuration, such as nissa.tokens.person_minutes=60.",
        autocompletion=complete_overrides,
        show_default=False,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command("issue", epilog="Example: esper token issue --role viewer --for prometheus > token")
def issue_token(
    role: Annotated[str, typer.Option(help="viewer reads; operator also steers runs; admin may all.")],
    name: Annotated[str, typer.Option("--for", metavar="NAME", help="Whom it is for.")],
    minutes: Annotated[
        int | None, typer.Option(min=1, help="How long it lasts; as long as may be unless told.")
    ] = None,
    person: Annotated[
        bool, typer.Option("--person", help="For a person: nissa.tokens.person_minutes at most.")
    ] = False,
    as_json: AsJson = False,
    overrides: Overrides = None,
) -> None:
    """Print a new token alone on stdout, and on stderr what it allows and its id.

    Whoever has it may do what it says until it expires or is revoked.
    """
    from esper.assembly.tokens import build_token_rules
    from esper.security import new_key
    from esper.security.tokens import issue

    cfg, authority = _configured(overrides or ())
    if not authority.has_keys():
        key = new_key()
        with _entered(cfg, "token_key.adding", key.id) as announce:
            authority.begin(key, announce)
    token, holder = issue(
        authority, build_token_rules(cfg), name=name, role=role, minutes=minutes, person=person
    )
    said = _described(holder)
    _note(cfg, "token.issued", holder.id, name=name, role=role, expires=said["expires"])
    if as_json:
        print_json({"token": token, **said})
        return
    print_lines(f"{_line(holder)}; its id: {holder.id}", stderr=True)
    sys.stdout.write(token + "\n")


@app.command("verify", epilog="Example: esper token verify < token")
def verify_token(as_json: AsJson = False, overrides: Overrides = None) -> None:
    """Read a token from stdin and say whom it is for, or why it is refused (and end with 12)."""
    from esper.assembly.tokens import build_token_rules, build_trusted
    from esper.security.tokens import MOST_CHARACTERS, verify

    cfg, _ = _configured(overrides or ())
    if sys.stdin.isatty():
        print_lines("paste the token, then Enter and Ctrl-D", stderr=True)
    # Not as an argument: every user of the machine can see those.
    token = sys.stdin.read(2 * MOST_CHARACTERS).strip()
    holder = verify(token, build_trusted(cfg)(), build_token_rules(cfg))
    if as_json:
        print_json(_described(holder))
    else:
        print_lines(f"{_line(holder)}; its id: {holder.id}")


@app.command("revoke", epilog="Example: esper token revoke --all-of prometheus")
def revoke_token(
    id_and_overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[ID] [KEY=VALUE]...", help="The token's id, not the token.", show_default=False
        ),
    ] = None,
    all_of: Annotated[
        str | None, typer.Option(metavar="NAME", help="All tokens issued for NAME until now.")
    ] = None,
) -> None:
    """Have a token be valid no more, or all of a name; a running server knows within a second."""
    from esper.security.tokens import checked_id

    given = list(id_and_overrides or ())
    ids = [text for text in given if "=" not in text]
    if len(ids) + (all_of is not None) != 1:
        raise ConfigError("name the id of one token, or --all-of NAME", hint="see: esper token revoke --help")
    cfg, authority = _configured([text for text in given if "=" in text])
    if all_of is not None:
        with _entered(cfg, "token.revoking_all", all_of) as announce:
            authority.revoke_all(all_of, announce)
        print_lines(f"revoked all tokens of {all_of}")
    else:
        with _entered(cfg, "token.revoking", checked_id(ids[0])) as announce:
            authority.revoke(ids[0], announce)
        print_lines(f"revoked token {ids[0]}")


@keys.command("ls", epilog="Example: esper token keys ls")
def list_keys(as_json: AsJson = False, overrides: Overrides = None) -> None:
    """List the keys whose tokens are valid; the first signs."""
    _, authority = _configured(overrides or ())
    ring = authority.keys()
    rows = [{"id": key.id, "made": key.made, "signs": key is ring.primary} for key in ring.keys]
    if as_json:
        print_json(rows)
        return
    shown = table(["key", "made", ""], whole=["key", "made"])
    for row in rows:
        shown.add_row(
            str(row["id"]), str(row["made"]).replace("+00:00", "Z"), "signs" if row["signs"] else ""
        )
    print_lines(shown)


@keys.command("rotate", epilog="Example: esper token keys rotate")
def rotate_keys(overrides: Overrides = None) -> None:
    """Sign with a new key. Tokens of the older ones are valid until they expire, or their key is retired."""
    from esper.security import new_key

    cfg, authority = _configured(overrides or ())
    key = new_key()
    with _entered(cfg, "token_key.adding", key.id) as announce:
        ring = authority.rotate(key, announce)
    print_lines(f"key {ring.primary.id} signs from now on; once tokens of the older ones have expired:")
    print_lines(*(f"  esper token keys retire {key.id}" for key in ring.keys[1:]))


@keys.command("retire", epilog="Example: esper token keys retire 0123456789abcdef")
def retire_key(
    key_id: Annotated[str, typer.Argument(metavar="ID", help="The key's id.")], overrides: Overrides = None
) -> None:
    """Forget a key that does not sign any more: no token of it is valid from now on."""
    cfg, authority = _configured(overrides or ())
    with _entered(cfg, "token_key.retiring", key_id) as announce:
        authority.retire(key_id, announce)
    print_lines(f"retired key {key_id}: tokens signed with it are refused")


def _configured(overrides: Sequence[str]) -> tuple[DictConfig, TokenAuthority]:
    from esper.assembly.tokens import build_token_authority
    from esper_cli.config import compose

    cfg = compose(list(overrides))
    return cfg, build_token_authority(cfg)


def _note(cfg: DictConfig, what: str, subject: str, **detail: str) -> None:
    """Enter it in the audit trail; what cannot be entered there is not done."""
    from esper.assembly.storage import build_library
    from esper.security.audit import Action

    with build_library(cfg, on_key_made=tell_key_made, adopt_later=True) as library:
        library.note(Action(what, subject, detail=detail))


@contextmanager
def _entered(cfg: DictConfig, what: str, subject: str) -> Iterator[Announce]:
    """Enter a change of the files of tokens in the audit trail; what cannot be entered there is not done."""
    from esper.assembly.file_changes import entered
    from esper.assembly.storage import build_library

    with (
        build_library(cfg, on_key_made=tell_key_made, adopt_later=True) as library,
        entered(library, what, subject) as announce,
    ):
        yield announce


def _described(holder: TokenHolder) -> dict[str, str]:
    return {"id": holder.id, "name": holder.name, "role": holder.role, "expires": _moment(holder.expires)}


def _line(holder: TokenHolder) -> str:
    return f"{holder.role} token for {holder.name}, valid until {_moment(holder.expires)}"


def _moment(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
