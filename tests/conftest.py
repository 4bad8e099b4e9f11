"""What all tests share."""

pytest_plugins = ["tests.services.databases", "tests.services.engine", "tests.services.redis"]
