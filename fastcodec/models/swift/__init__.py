"""The default model: its network, its integer entropy side, its released form, and the tools that make them."""
