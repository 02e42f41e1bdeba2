"""Measuring: suites of prompts, the harness, one result schema, reports and comparisons."""
