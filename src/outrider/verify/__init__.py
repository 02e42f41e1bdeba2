"""Verifiers: pure rules that decide which drafted tokens stand.

The guarantee of a preset is its verifier's.
"""
