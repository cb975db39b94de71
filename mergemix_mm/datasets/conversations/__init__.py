"""Layouts of conversations in records, prompts, and the chat templates that turn conversations into text."""
