"""``esper watch``: a run as it goes on, in the terminal."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from esper.errors import ConfigError, RunError
from esper_cli.completion import complete_names, complete_overrides
from esper_cli.runs import open_store, run_ids
from esper_cli.terminal import console, print_lines

if TYPE_CHECKING:  # they take a while to import; --help and completion must not wait for it
    from esper.nissa.replay import ToldRun
    from esper_cli.watch_source import News, Source
    from esper_cli.watch_view import Viewer

EPILOG = "Example: esper watch latest --epoch 5"


def watch(
    run: Annotated[
        str,
        typer.Argument(
            metavar="RUN",
            help="A run's id, the start of one, or latest.",
            autocompletion=complete_names(lambda: ["latest", *run_ids()]),
        ),
    ] = "latest",
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY=VALUE",
            help="Overrides of the configuration, such as runs=FOLDER.",
            autocompletion=complete_overrides,
            show_default=False,
        ),
    ] = None,
    epoch: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Show the run as it was at the end of epoch N, and leave."),
    ] = None,
    url: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="A run of the esper serve-metrics there, with the token in ESPER_TOKEN.",
            show_default=False,
        ),
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="Show the run as it is now, and leave.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the run's events as JSON lines.")] = False,
) -> None:
    """Watch a run, its curves, layers, adaptations, caches and alerts, until it ends or Ctrl-C.

    Where there is no terminal it prints a line an event, from the first on. Ends with 1 if the run did not
    finish.
    """

    def source() -> Source:
        return _source(run, overrides or [], url)

    if epoch is not None:
        _show_epoch(source, epoch, as_json)
        return
    told = _follow(source(), _viewer(as_json, once), once)
    if once or told.status.goes_on:
        return
    if not as_json:
        from esper_cli.history import why_it_ended

        print_lines(f"run {told.run_id}: {told.status.value}", *why_it_ended(told))
    if told.status != "finished":
        raise typer.Exit(1)


def _source(run: str, overrides: Sequence[str], url: str | None) -> Source:
    if url is None:
        from esper_cli.watch_source import JournalSource

        store = open_store(overrides)
        return JournalSource(store.root / store.find(run))
    if overrides:
        raise ConfigError(f"{overrides[0]} is about runs on this machine", hint="leave it out, or --url")
    from esper_cli.watch_remote import ServerSource

    return ServerSource(url, run, os.environ.get("ESPER_TOKEN"))


def _viewer(as_json: bool, once: bool) -> Viewer:
    from esper_cli.watch_view import FrameViewer, JsonViewer, LineViewer, LiveViewer

    if as_json:
        return JsonViewer()
    if once:
        return FrameViewer()
    out = console()
    return LiveViewer() if out.is_terminal and not out.is_dumb_terminal else LineViewer()


def _follow(source: Source, viewer: Viewer, once: bool) -> ToldRun:
    """Show the run until it ends or the viewer leaves, or once; returns it as it is then."""
    from esper.nissa.replay import ToldRun
    from esper_cli.watch_source import POLL_SECONDS

    told = ToldRun(source.folder)
    with viewer:
        while True:
            news = source.read()
            if news.afresh:
                told = ToldRun(source.folder)
            told.tell(news.events, alive=news.alive)
            viewer.show(told, news.events)
            if news.more:
                continue
            ended = once or not told.status.goes_on
            if (ended and not viewer.busy) or not viewer.wait(POLL_SECONDS):
                return told


def _show_epoch(open_source: Callable[[], Source], epoch: int, as_json: bool) -> None:
    from esper.nissa.replay import EventLog, ToldRun, until_epoch
    from esper_cli.watch_view import FrameViewer, JsonViewer

    source, log = open_source(), EventLog()
    whole, then = ToldRun(source.folder), ToldRun(source.folder)
    for news in _what_there_is(source):
        log.add(news.events)
        whole.tell(news.events, alive=news.alive)
    if all(item.epoch != epoch - 1 for item in whole.epochs):
        done = f"it has done {len(whole.epochs)} of {whole.total_epochs}"
        raise RunError(f"run {whole.run_id} has no epoch {epoch}", hint=done)
    events = until_epoch(log.events, epoch - 1)
    if as_json:
        # Read once more: the log has not all that the journal has.
        left = len(events)
        for news in _what_there_is(open_source()):
            JsonViewer().show(whole, news.events[:left])
            left -= len(news.events[:left])
        return
    then.tell(events, alive=len(events) < len(log.events) or news.alive)
    with FrameViewer(f"after epoch {epoch}") as viewer:
        viewer.show(then, events)


def _what_there_is(source: Source) -> Iterator[News]:
    """What ``source`` holds now."""
    while (news := source.read()).more:
        yield news
    yield news
