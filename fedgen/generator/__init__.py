"""Synthetic examples, written on the server before there is a federation. Each module is one option."""
