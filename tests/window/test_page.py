"""The page as a server gives it: to everyone a chat of their own, on this machine alone, until Ctrl-C."""

import os
import signal
import socket
import threading
import urllib.request

import pytest

from e2e_lib.config import ConfigError, Inference
from e2e_lib.window import page
from e2e_lib.window.partners import Answerer, Partners
from e2e_lib.window.uploads import MAX_BYTES


@pytest.fixture
def partners(systems, config):
    return Partners(Answerer("tiny", systems["end_to_end"], Inference()), config)


@pytest.fixture
def port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def when_served(lines, act):
    """Acts once the address is said; what ``serve`` says goes to ``lines``."""
    def say(line):
        lines.append(line)
        if "http" in line:
            threading.Thread(target=act).start()
    return say


def test_each_visitor_has_a_chat_of_their_own_until_ctrl_c(partners, port, monkeypatch):
    windows, pages, lines, before = [], [], [], signal.getsignal(signal.SIGINT)

    class Window(page.ChatWindow):
        def __init__(self, *args):
            super().__init__(*args)
            windows.append(self)

    def visit_twice():
        try:
            for _ in range(2):
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=30) as answer:
                    pages.append(answer.read().decode())
        finally:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(page, "ChatWindow", Window)
    page.serve(partners, when_served(lines, visit_twice), port=port)
    assert lines == [f"The chat is at http://127.0.0.1:{port} (Ctrl-C ends it).", "\nThe page is closed."]
    assert len(windows) == 2 and windows[0].partner is not windows[1].partner
    assert all(page.TITLE in text and '<html lang="en"' in text for text in pages) and len(pages) == 2
    assert signal.getsignal(signal.SIGINT) is before
    with socket.socket() as again:  # nobody listens any more
        assert again.connect_ex(("127.0.0.1", port)) != 0


def test_a_taken_port_is_refused_with_a_sentence(partners):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"127.0.0.1:{port} .*in use.*--port"):
            page.serve(partners, print, port=port)


@pytest.mark.parametrize("host", ["no such host", "198.51.100.7", "::1"])
def test_an_address_that_this_machine_has_not_is_refused_with_a_sentence(partners, port, host):
    with pytest.raises(ConfigError, match=f"cannot be served at {host}:{port}"):
        page.serve(partners, print, host=host, port=port)


def test_elsewhere_than_on_this_machine_it_says_that_anybody_can_chat(partners, port):
    lines = []
    page.serve(partners, when_served(lines, lambda: os.kill(os.getpid(), signal.SIGINT)), host="localhost", port=port)
    assert lines == [f"The chat is at http://localhost:{port} (Ctrl-C ends it).",
                     "Whoever reaches this address can chat; nothing asks for a password.", "\nThe page is closed."]


def test_it_listens_to_this_machine_alone_and_takes_no_word_from_other_pages(partners, port):
    server = page.start(partners, 0, page.HOST, port)
    try:
        assert server.address == "127.0.0.1"
        # What a browser sends at once is limited before it is read: to one photo of the largest size.
        assert MAX_BYTES < server._tornado.settings["websocket_max_message_size"] < 1.1 * MAX_BYTES
        assert server._tornado.websocket_origins == {f"127.0.0.1:{port}", f"localhost:{port}"}
    finally:
        server.stop()
