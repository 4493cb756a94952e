"""Experiments of the papers as programs: each prints its result, writes it as JSON and draws its figure."""
