"""A chat window served as a page: a chat of its own for everyone who opens it."""

import asyncio
import logging
import signal
from collections.abc import Callable
from typing import Any

import panel as pn

from e2e_lib.config import ConfigError
from e2e_lib.window.chat_window import ChatWindow, prepare
from e2e_lib.window.partners import Partners
from e2e_lib.window.uploads import MAX_BYTES

HOST, PORT = "127.0.0.1", 5006  # this machine alone
TITLE = "A chat with photos both ways"
# All of it is what the page is about; screen readers jump to that.
_TEMPLATE = """\
{% extends base %}
{% block contents %}
<main>{{ embed(roots.chat) }}</main>
{% endblock %}
"""


def page(partners: Partners, seed: int) -> pn.Template:
    """What a page shows: an empty chat, also after it is reloaded."""
    template = pn.Template(_TEMPLATE)
    template.add_panel("chat", pn.Column(
        pn.pane.HTML(f'<h1 style="font-size:1.5em;margin:0">{TITLE}</h1>'), ChatWindow(partners, seed),
        sizing_mode="stretch_width", margin=(10, 20)))
    return template


def start(partners: Partners, seed: int, host: str, port: int) -> pn.io.server.Server:
    """A server, ready for ``io_loop.start()``, that gives each visitor a chat of their own.

    ``host`` is the address or name that it listens at, and by which browsers reach it: pages from elsewhere
    cannot speak to it. Raises ConfigError for an address or port that cannot be had.
    """
    prepare(in_notebook=False)
    names = {host, "localhost"} if host == HOST else {host}
    try:
        return pn.io.server.get_server(
            lambda: page(partners, seed), port=port, address=host, title=TITLE,
            websocket_origin=[f"{name}:{port}" for name in sorted(names)],
            # A photo comes in one message, with some hundred bytes around it.
            websocket_max_message_size=MAX_BYTES + 100_000)
    except (OSError, ValueError) as error:
        raise ConfigError(f"the page cannot be served at {host}:{port} ({_reason(error)}); another chat may "
                          "be there already: name another port with --port") from None


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error).lower()


def _report(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Reports what goes wrong, but not that somebody closed the page while an answer was on its way."""
    if type(context.get("exception")).__name__ != "WebSocketClosedError":
        loop.default_exception_handler(context)


def serve(partners: Partners, say: Callable[[str], None], seed: int = 0, host: str = HOST,
          port: int = PORT) -> None:
    """Serves the page until Ctrl-C. Raises ConfigError where ``start`` does."""
    before = signal.getsignal(signal.SIGINT)
    logging.getLogger("tornado.access").setLevel(logging.ERROR)  # a style sheet that is not there is no news
    server = start(partners, seed, host, port)  # which ends the loop at Ctrl-C
    try:
        server.start()
        server.io_loop.asyncio_loop.set_exception_handler(_report)  # type: ignore[attr-defined]
        say(f"The chat is at http://{host}:{port} (Ctrl-C ends it).")
        if host != HOST:
            say("Whoever reaches this address can chat; nothing asks for a password.")
        server.io_loop.start()
    finally:
        server.stop()
        signal.signal(signal.SIGINT, before)
    say("\nThe page is closed.")
