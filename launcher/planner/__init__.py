"""``text-generation-launcher plan``: what fits which Inferentia2 instance, worked out without a device."""
