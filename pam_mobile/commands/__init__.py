"""A verb a file: parse, call, print."""
