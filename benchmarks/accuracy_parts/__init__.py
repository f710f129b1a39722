"""Accuracies of the methods: the trainings, which runs do them, and what they do to the network."""
