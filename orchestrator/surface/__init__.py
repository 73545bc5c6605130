"""Where the planes are put together: configuration, the command, the processes of one machine, and the demo."""
