"""The commands, each a module with `main(arguments)` that returns an exit status; the scripts of launcher/ run them.

A module checks its arguments before it imports what takes seconds.
"""
