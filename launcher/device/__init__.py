"""The Neuron devices of this machine, and the software that drives them; nothing of Neuron is imported."""
