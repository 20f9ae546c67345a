"""What pytest must know before the tests."""


def pytest_configure(config):
    config.addinivalue_line("markers", "backend: the body layer on another backend of Keras; skipped where that is not installed")
