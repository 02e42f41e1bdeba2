"""Drafters: whatever proposes tokens cheaply. One file per kind; `base.py` is the contract."""
