"""From a record to a conversation, and from a conversation to text: layouts, prompts and chat templates."""
