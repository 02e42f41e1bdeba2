"""Language models behind one forward call. `hf.py` drives any transformers causal model, unmodified."""
