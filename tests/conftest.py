"""What pytest must know before the tests, and what several of them use."""

import pytest


def pytest_configure(config):
    config.addinivalue_line(
        "markers",
        "backend: the body layer on another backend of Keras; skipped where that is not"
        " installed",
    )


def as_options(**settings):
    "Arguments of a function as options of a command; one for each value of a tuple."
    words = []
    for name, value in settings.items():
        for one in value if isinstance(value, tuple) else (value,):
            words += [f"--{name.replace('_', '-')}", str(one)]
    return words


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


# minutes each: begun first, so that no core waits for them at the end
LONGEST = (
    "test_train.py",
    "test_training_step.py",
    "test_cli.py",
    "test_smpl_layer.py",
)


def pytest_collection_modifyitems(items):
    order = {name: i for i, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.name, len(order)))
