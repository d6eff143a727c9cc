"""The web UI: forms made from config sections, jobs that are `swift ...` processes, pages of their files."""
