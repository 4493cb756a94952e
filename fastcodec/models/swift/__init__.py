"""The default model: its network, its integer entropy side, its released form, and what makes them."""
