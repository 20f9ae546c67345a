"""What pytest must know before the tests, and what several of them use."""

import pytest


def pytest_configure(config):
    config.addinivalue_line(
        "markers",
        "backend: the body layer on another backend of Keras; skipped where that is not"
        " installed",
    )


@pytest.fixture
def run(monkeypatch, capsys):
    "Run a command in this process: exit code, stdout, stderr."
    from hmr_nb.shell.commands import main

    def call(*words):
        monkeypatch.setattr("sys.argv", ["hmr_nb", *map(str, words)])
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = stop.code or 0
        out = capsys.readouterr()
        return code, out.out, out.err

    return call
