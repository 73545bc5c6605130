"""The simulator's runner: Python's standard library only, and few imports, since its CPU may be an emulated one."""
