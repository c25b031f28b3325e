"""Names of the launcher that Python code imports; the launcher itself is the native program `deepspeed`."""
