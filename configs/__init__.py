"""One file per experiment: `get_config(arg)` returns everything it can set."""
