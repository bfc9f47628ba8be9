"""The command lines: one file per program, each from its flags to one call.

`program` says what they have in common, `config` how `--config` is read, and `flags` has what
several of them ask for. JAX is imported by the calls alone, so that `--help` does not wait for it.
"""
