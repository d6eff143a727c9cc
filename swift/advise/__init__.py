"""Doctor, memory and time estimates, isolated environments. Room kept by the design; nothing is built here yet."""
