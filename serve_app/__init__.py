"""The answer path: text -> edge -> decide -> cloud -> answer."""
