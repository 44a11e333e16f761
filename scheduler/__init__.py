"""Decides which requests run, where and how wide. No torch in here."""
