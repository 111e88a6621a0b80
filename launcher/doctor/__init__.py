"""``text-generation-launcher doctor``: what here keeps a model from being served."""
