"""Tuning: measure this machine and model, predict every candidate, check the best, remember the choice."""
