"""Policies: how much to draft, and when to stop drafting."""
