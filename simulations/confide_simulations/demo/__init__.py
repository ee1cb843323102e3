"""The demo: four organizations, as real processes, fine-tune one model, and every claim is scored at the end."""
