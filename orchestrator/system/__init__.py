"""The operating system's primitives that every plane shares: processes, files, network namespaces, the log."""
