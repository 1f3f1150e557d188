"""Smaller and faster models, and what that costs: measured, never promised. Imports nothing: deployed code has no torch."""
