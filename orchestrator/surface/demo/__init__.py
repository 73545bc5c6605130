"""The main job, end to end, on this machine: simulated GitHub, real virtual machine, real wall, proof at the end."""
