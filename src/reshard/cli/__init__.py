"""The command line: parse, make a request, call a statement, show what it returns."""
