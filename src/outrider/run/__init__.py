"""Running: the step, the rows, and the public face. The only place that counts, stops and times."""
